"""When a replica that keeps failing is left alone for a while, and how it comes back. Pure; the registry keeps one
breaker per replica and asks it, `kernel/chat` reports how attempts went.

Three failures in a row open it: the replica is `ejected`, for 1 s at first and twice as long each time, up to 30 s.
Then its health is asked; if that is good the breaker is half open: one request at a time may show that it works.
"""

from __future__ import annotations

FAILURES = 3
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0


class Breaker:
    """Counts one replica's failures in a row. `half_open`: it is on trial, with one request at a time."""

    __slots__ = ("_pause_s", "failures", "half_open")

    def __init__(self) -> None:
        self.failures = 0
        self.half_open = False
        self._pause_s = FIRST_PAUSE_S

    @property
    def closed(self) -> bool:
        """Whether nothing is held against the replica."""
        return not (self.failures or self.half_open)

    @property
    def tripped(self) -> bool:
        """Whether it has failed so often that it is to be left alone, and has not worked since."""
        return self.half_open or self.failures >= FAILURES

    def fail(self) -> bool:
        """One more attempt failed. Returns whether the replica should be left alone now."""
        self.failures += 1
        return self.tripped

    def open(self) -> float:
        """Leave the replica alone; for how many seconds, until its health is asked."""
        pause_s = self._pause_s
        self._pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
        self.half_open = False
        return pause_s

    def probe(self) -> None:
        """Its health is good again: a request may show whether it works."""
        self.half_open = True

    def close(self) -> None:
        """A request went well."""
        self.failures = 0
        self.half_open = False
        self._pause_s = FIRST_PAUSE_S
