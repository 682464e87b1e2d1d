"""The executors that come with Kuwa, registered through the same entry-point group as anybody's."""
