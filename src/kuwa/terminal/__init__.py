"""`kuwa chat`, `kuwa ps` and `kuwa doctor`: a kernel as a person at a terminal meets it. Stands on `kuwa.client`."""
