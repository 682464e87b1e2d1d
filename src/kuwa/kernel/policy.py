"""Which replica takes a request, among those that are ready and have a free slot.

The dispatcher keeps one policy per access code, tells it whenever a replica's load or state changed, and asks it
to choose. A choice costs the same for one replica and for a thousand: of many the order is kept, not computed per
request.

Which policy an access code has is a setting: `least_loaded`, or `prefix` and `session`, which bring a request to
where its conversation, or its session, has been before (`kernel/trail` says what those are).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Set as AbstractSet
from math import inf
from typing import Literal

from kuwa.kernel.replica import UNLIMITED, Replica

PolicyName = Literal["least_loaded", "prefix", "session"]
POLICIES: tuple[PolicyName, ...] = ("least_loaded", "prefix", "session")

Trail = tuple[int, ...]
"""The marks of a request's beginnings, shortest first; the last one is of the whole request."""

NOMINAL_SLOTS = 64  # what an upstream without a limit counts as beside replicas that have one

# A replica is gone back to while its load is at most NEAR times the lowest, and AHEAD requests more.
NEAR = 1.25
AHEAD = 2
MAX_PLACES = 50_000  # some 15 MB; more conversations than the caches of a hundred replicas hold
FOLLOWED = 4  # requests that one place attracts before the next replica is to compute the same
COMMON = 8  # a beginning known in so many places is everyone's, and attracts nobody

FEW = 8  # among so many the least loaded is found faster by looking than by keeping an order


def load_of(replica: Replica) -> float:
    """The part of its slots that the replica holds."""
    return replica.running / _size(replica)


def _size(replica: Replica) -> int:
    return replica.slots if replica.slots < UNLIMITED else NOMINAL_SLOTS


class LeastLoaded:
    """Lowest load first; among equals the one that has waited longest, so that they take turns.

    Load is the part of its slots that a replica holds. Of few replicas the first is looked for when it is asked for.
    Beyond `FEW` those with a free slot are kept by load: `_levels` holds those of one load, who came to it first stands
    first, and `_loads` the loads that occur, in order.
    """

    __slots__ = ("_levels", "_loads", "_ready")

    def __init__(self) -> None:
        self._ready: dict[Replica, float | None] = {}  # and the level of each; who took a turn last stands last
        self._levels: dict[float, dict[Replica, None]] | None = None
        self._loads: list[float] = []

    def update(self, replica: Replica) -> None:
        """The replica's state, slots or load changed; the others come before it."""
        self.discard(replica)
        if replica.state == "ready":
            self._ready[replica] = None
            if self._levels is not None:
                self._move(replica, self._levels)

    def took(self, replica: Replica) -> None:
        """The replica was given a request: the others come before it."""
        if self._levels is not None:
            self.freed(replica)
        elif replica in self._ready and len(self._ready) > 1:
            self.update(replica)

    def freed(self, replica: Replica) -> None:
        """One of the replica's slots is free again."""
        if self._levels is not None and replica in self._ready:
            self._move(replica, self._levels)

    def discard(self, replica: Replica) -> None:
        """The replica no longer serves this access code, or takes no requests of it for now."""
        load = self._ready.pop(replica, None)
        if load is not None and self._levels is not None:
            self._leave(replica, load, self._levels)

    def choose(self, excluded: AbstractSet[str], trail: Trail = ()) -> Replica | None:
        """The replica to take, or None. Who asks takes it: the choice shows only after `took`."""
        if len(self._ready) > FEW:
            return self._first(excluded)
        self._levels = None
        chosen: Replica | None = None
        lowest = inf
        for replica in self._ready:
            running = replica.running
            slots = replica.facts.slots
            if running < slots and not (excluded and replica.id in excluded):
                load = running / (slots if slots < UNLIMITED else NOMINAL_SLOTS)
                if chosen is None or load < lowest:
                    chosen, lowest = replica, load
        return chosen

    def _move(self, replica: Replica, levels: dict[float, dict[Replica, None]]) -> None:
        """Give the replica its place in the order, behind those of the same load."""
        before = self._ready[replica]
        if before is not None:
            self._leave(replica, before, levels)
        slots = replica.facts.slots
        if replica.running >= slots:
            self._ready[replica] = None
            return
        load = self._ready[replica] = replica.running / (slots if slots < UNLIMITED else NOMINAL_SLOTS)
        level = levels.get(load)
        if level is None:
            level = levels[load] = {}
            insort(self._loads, load)
        level[replica] = None

    def _leave(self, replica: Replica, load: float, levels: dict[float, dict[Replica, None]]) -> None:
        level = levels[load]
        del level[replica]
        if not level:
            del levels[load]
            self._loads.remove(load)

    def _first(self, excluded: AbstractSet[str]) -> Replica | None:
        """The first of many."""
        levels = self._levels
        if levels is None:
            levels = self._levels = {}
            self._loads = []
            for replica in self._ready:
                self._move(replica, levels)
        for load in self._loads:
            for replica in levels[load]:
                if not (excluded and replica.id in excluded):
                    return replica
        return None


class Follow(LeastLoaded):
    """Back to where the longest known beginning of the request was computed, as long as that replica is near the
    least loaded one; else the least loaded.

    Remembered are the whole of each request, which the next turn of its conversation begins with, and the request
    without its last message, which others may share with it (a document, asked about again). With `spreads`, a
    beginning that many share spreads over the replicas as it is used, and attracts nobody once it is everywhere: a
    system prompt must not draw every conversation to one place. Without, it stands where it was last.
    `kept`, `spilled` and `fresh` count the choices: gone back, known but its replicas gone or too busy, not known.
    """

    __slots__ = ("_places", "_spreads", "fresh", "kept", "spilled")

    def __init__(self, *, spreads: bool) -> None:
        super().__init__()
        self._spreads = spreads
        self._places: dict[int, _Place] = {}  # the least recently used first
        self.kept = self.spilled = self.fresh = 0

    def choose(self, excluded: AbstractSet[str], trail: Trail = ()) -> Replica | None:
        least = super().choose(excluded)
        if least is None or not trail:
            return least
        chosen = self._follow(trail, excluded, load_of(least)) or least
        for mark in trail[-2:]:
            self._remember(mark, chosen)
        return chosen

    def _follow(self, trail: Trail, excluded: AbstractSet[str], lowest: float) -> Replica | None:
        known = False
        for mark in reversed(trail):
            place = self._places.get(mark)
            if place is None:
                continue
            known = True
            place.replicas = [replica for replica in place.replicas if replica.alive]
            if self._spreads and place.used_up:
                continue
            near = [r for r in place.replicas if self._is_near(r, lowest) and r.id not in excluded]
            if near:
                place.followed += 1
                self.kept += 1
                return min(near, key=load_of)
        if known:
            self.spilled += 1
        else:
            self.fresh += 1
        return None

    def _is_near(self, replica: Replica, lowest: float) -> bool:
        return (
            replica in self._ready
            and replica.running < replica.slots
            and replica.running <= NEAR * lowest * _size(replica) + AHEAD
        )

    def _remember(self, mark: int, replica: Replica) -> None:
        places = self._places
        place = places.pop(mark, None) or _Place()
        if not self._spreads:
            place.replicas = [replica]
        elif replica not in place.replicas and len(place.replicas) < COMMON:
            place.replicas.append(replica)
        places[mark] = place
        if len(places) > MAX_PLACES:
            del places[next(iter(places))]


class _Place:
    """Where one beginning has been computed, and how many requests have been brought there for it."""

    __slots__ = ("followed", "replicas")

    def __init__(self) -> None:
        self.replicas: list[Replica] = []
        self.followed = 0

    @property
    def used_up(self) -> bool:
        """Whether another replica is to compute the same, or enough have."""
        return len(self.replicas) >= COMMON or self.followed >= FOLLOWED * len(self.replicas)


def policy_named(name: PolicyName) -> LeastLoaded:
    """A fresh policy for one access code."""
    return LeastLoaded() if name == "least_loaded" else Follow(spreads=name == "prefix")
