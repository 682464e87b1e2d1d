"""The three kinds of life of a replica, each a small state machine without I/O.

- `Leased`: one of our executors. It renews its lease; silence ends it.
- `Polled`: an executor of the v1.0 wire. It registers once and is asked GET /health, for ten minutes also after it
  fell silent, since it would never register again.
- `Configured`: a server of the kernel's own settings (`--upstream`), asked GET /models for as long as the kernel runs.

The registry tells a life what happened and when (`now`, monotonic seconds) and in which state its replica is, and
applies the `Transition` that it returns. Whatever depends on the kind of a replica is asked of its life: outside this
module only `kernel/wires` tell kinds apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal
from urllib.parse import urlsplit

from kuwa.wire.lease import LEASE_TTL_S, ExecutorState

State = Literal["starting", "ready", "suspect", "draining", "ejected", "gone"]
STATES: tuple[State, ...] = ("starting", "ready", "suspect", "draining", "ejected", "gone")
Source = Literal["lease", "old", "upstream"]
Answer = Literal["ok", "refused", "silent"]
"""To a poll of a replica's health: `refused` if its port is closed, `silent` for any other failure."""

SUSPECT_AFTER_S = 4.5
GRACE_S = 30.0  # an executor of the v1.0 wire registers before it listens
BUSY_SILENCE_S = 120.0  # one that computes on its event loop does not answer while it computes
TOMBSTONE_S = 60.0
LOST_POLLED_S = 600.0  # so long an executor of the v1.0 wire that fell silent is asked whether it is back
POLL_S = 2.0
POLL_STARTING_S = 0.5
POLL_FAILED_S = 1.0
POLL_LOST_S = 5.0
POLL_UPSTREAM_S = 10.0
POLL_UPSTREAM_FAILED_S = 2.0


@dataclass(frozen=True, slots=True)
class Transition:
    """The state that a replica enters, which may be the one it is in. `note` says why; None keeps the note it has."""

    state: State
    note: str | None = None


class Lifecycle:
    """What the kinds share, and their defaults.

    `lost`: the process was given up as dead or frozen and has not come back, so what still waits for it need wait no
    longer. `next_poll`: when its health is to be asked.
    """

    source: ClassVar[Source]
    shares_address: ClassVar[bool] = False
    """Whether several replicas may have one address."""
    one_process: ClassVar[bool] = True
    """Whether a broken connection may be the death of the replica; many processes may serve one upstream."""

    __slots__ = ("heard_at", "lost", "next_poll")

    def __init__(self, now: float) -> None:
        self.heard_at = now
        self.next_poll = math.inf
        self.lost = False

    @property
    def lease(self) -> Leased | None:
        """The lease that it renews, by which it holds its id and its address against older processes."""
        return None

    @property
    def kept_s(self) -> float:
        """How long it is remembered after it has gone."""
        return TOMBSTONE_S

    def named(self, state: State, now: float) -> bool:
        """It is registered once more by an executor of the v1.0 wire. Whether that names another of its access codes;
        else it comes from a new process."""
        del state, now
        return False

    def codes_without(self, name: str, codes: tuple[str, ...]) -> tuple[str, ...]:
        """What is left of its access codes when `name` is unregistered; without any it leaves."""
        del name, codes
        return ()

    def health_url(self, address: str) -> str:
        """What to GET to learn whether it works."""
        parts = urlsplit(address)
        return f"{parts.scheme}://{parts.netloc}/health"

    def forgive(self, seconds: float) -> None:
        """The kernel did not run for so long: that was no silence of the replica."""
        self.heard_at += seconds

    def left(self) -> None:
        """It was unregistered, or another process has taken its place."""
        self.next_poll = math.inf

    def expire(self, state: State, now: float, *, busy: bool) -> Transition | None:
        """Time has passed. `busy`: it computes a request."""
        del state, now, busy
        return None

    def doubted(self, state: State, now: float) -> Transition | None:
        """A connection to it broke, or its port is closed."""
        del state, now
        return None

    def answered(self, state: State, answer: Answer, note: str, now: float) -> Transition | None:
        """Its health was asked. `note` says what is wrong where the answer is not `ok`."""
        raise NotImplementedError


class Leased(Lifecycle):
    """Lives while it renews its lease; its health is asked only after a doubt."""

    source = "lease"
    __slots__ = ()

    @property
    def lease(self) -> Leased:
        return self

    def renewed(self, state: ExecutorState, progress: str, now: float) -> Transition:
        self.heard_at = now
        self.lost = False
        return Transition(state, progress)

    def expire(self, state: State, now: float, *, busy: bool) -> Transition | None:
        silent_s = now - self.heard_at
        if silent_s >= LEASE_TTL_S:
            self.lost = True
            self.next_poll = math.inf
            return Transition("gone", f"not renewed for {LEASE_TTL_S:g} s")
        if silent_s >= SUSPECT_AFTER_S and state == "ready":
            return Transition("suspect")
        return None

    def doubted(self, state: State, now: float) -> Transition | None:
        """No more requests until its health, asked at once, or its next renewal says more."""
        if state != "ready":
            return None
        self.next_poll = now
        return Transition("suspect")

    def answered(self, state: State, answer: Answer, note: str, now: float) -> Transition | None:
        self.next_poll = math.inf
        return Transition("ready", "") if answer == "ok" and state == "suspect" else None


class Polled(Lifecycle):
    """Starting until its health answers; suspect and then gone when it does not any more."""

    source = "old"
    __slots__ = ("failures", "named_at")

    def __init__(self, now: float) -> None:
        super().__init__(now)
        self.next_poll = self.named_at = now
        self.failures = 0

    @property
    def kept_s(self) -> float:
        return LOST_POLLED_S if self.lost else TOMBSTONE_S

    def named(self, state: State, now: float) -> bool:
        if state != "starting":
            return False
        self.named_at = now
        return True

    def codes_without(self, name: str, codes: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(code for code in codes if code != name)

    def expire(self, state: State, now: float, *, busy: bool) -> Transition | None:
        if state == "starting":
            silent_s, patience_s = now - self.named_at, GRACE_S
        else:
            silent_s = now - self.heard_at if self.failures else 0.0
            patience_s = BUSY_SILENCE_S if busy else LEASE_TTL_S
        if silent_s < patience_s:
            return None
        self.lost = True
        self.next_poll = now + POLL_LOST_S
        return Transition("gone")

    def answered(self, state: State, answer: Answer, note: str, now: float) -> Transition | None:
        if state == "gone" and not self.lost:
            self.next_poll = math.inf
            return None
        if answer == "ok":
            self.failures = 0
            self.lost = False
            self.heard_at = now
            self.next_poll = now + POLL_S
            return Transition("ready", "")
        if state == "gone":
            self.next_poll = now + POLL_LOST_S
            return None
        if state == "starting":
            self.next_poll = now + POLL_STARTING_S
            return Transition(state, note)
        self.failures += 1
        self.next_poll = now + POLL_FAILED_S
        if answer == "refused" and self.failures >= 2:
            self.next_poll = math.inf
            return Transition("gone", note)
        return Transition("suspect", note)


class Configured(Lifecycle):
    """Never gone. One failed poll may be the network's; after the second it gets no requests until a poll works."""

    source = "upstream"
    shares_address = True
    one_process = False
    __slots__ = ("failures",)

    def __init__(self, now: float) -> None:
        super().__init__(now)
        self.next_poll = now
        self.failures = 0

    def codes_without(self, name: str, codes: tuple[str, ...]) -> tuple[str, ...]:
        return codes

    def health_url(self, address: str) -> str:
        return f"{address}/models"

    def answered(self, state: State, answer: Answer, note: str, now: float) -> Transition | None:
        if answer == "ok":
            self.failures = 0
            self.heard_at = now
            self.next_poll = now + POLL_UPSTREAM_S
            return Transition("ready", "")
        self.failures += 1
        self.next_poll = now + POLL_UPSTREAM_FAILED_S
        return Transition("ejected" if self.failures >= 2 and state == "ready" else state, note)
