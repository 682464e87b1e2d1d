"""The front door: who is alive, who takes a request, and how the bytes travel."""
