"""When a model that keeps failing at one replica is left alone there for a while, and how it comes back. Pure.

Each replica has a breaker for each access code that failed there since it last worked; `kernel/faults` keeps them and
says what a fault is. Three faults in a row open it: the replica is `ejected` for this access code, for 1 s at first and
twice as long each time, up to 30 s. Then its health is asked; if that is good the breaker is half open: one request at
a time may show that the model works.
"""

from __future__ import annotations

import math

FAILURES = 3
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
POLL_LAST_RESORT_S = 1.0


class Breaker:
    """What one access code suffered at one replica, in a row.

    `opened`: it gets no requests; `probing`: its health is being asked to end that. `half_open`: it is on trial, and
    `trial` is the request that is tried, if any. `faults` are held against the replica; `refused` are requests that it
    answered with an error of its own, which may be theirs.
    """

    __slots__ = (
        "_asked_at",
        "_pause_s",
        "_probe_at",
        "faults",
        "half_open",
        "note",
        "opened",
        "probing",
        "refused",
        "trial",
    )

    def __init__(self) -> None:
        self.faults: set[bytes] = set()
        self.refused: set[bytes] = set()
        self.opened = False
        self.half_open = False
        self.probing = False
        self.trial: object | None = None
        self.note = ""
        self._pause_s = FIRST_PAUSE_S
        self._probe_at = math.inf
        self._asked_at = -math.inf

    @property
    def tripped(self) -> bool:
        """Whether it has failed so often that it is to be left alone, and has not worked since."""
        return self.opened or self.half_open or len(self.faults) + len(self.refused) >= FAILURES

    @property
    def admits(self) -> bool:
        """Whether it may be given a request now."""
        return not (self.opened or self.trial is not None)

    def fail(self, fault: bytes) -> bool:
        """One more attempt failed; what is called by the same name counts once. Returns whether the replica should be
        left alone now."""
        if len(self.faults) < FAILURES:
            self.faults.add(fault)
        return self.half_open or len(self.faults) >= FAILURES

    def refuse(self, request: bytes) -> None:
        """The replica answered this request with an error of its own."""
        if len(self.refused) < FAILURES:
            self.refused.add(request)

    def explain(self, request: bytes) -> None:
        """It is known now whose failure that of this request was."""
        self.refused.discard(request)
        self.faults.discard(request)

    def open(self, now: float, why: str) -> None:
        """Leave the model alone there until its health is asked."""
        self.opened = True
        self.half_open = self.probing = False
        self.trial = None
        self.note = why
        self._asked_at = now
        self._probe_at = now + self._pause_s
        self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)

    def due(self, now: float, *, hurried: bool) -> bool:
        """Whether its health is to be asked; `hurried`: nothing else serves the access code."""
        return self.opened and (now >= self._probe_at or (hurried and now - self._asked_at >= POLL_LAST_RESORT_S))

    def asked(self, now: float) -> None:
        """Its health is being asked."""
        self._asked_at = now
        self.probing = True

    def probe(self) -> None:
        """Its health is good again: a request may show whether the model works."""
        self.opened = self.probing = False
        self.half_open = True

    def close(self) -> bool:
        """A request went well. Returns whether nothing is held against the replica any more: one that is ejected is
        asked first."""
        self.faults.clear()
        self.refused.clear()
        self.half_open = False
        self._pause_s = FIRST_PAUSE_S
        return not self.opened
