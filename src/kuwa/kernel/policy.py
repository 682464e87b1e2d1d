"""Which replica takes a request, among those that are ready and have a free slot.

The dispatcher keeps one policy per access code, tells it whenever a replica's load or state changed, and asks it
to choose. A choice costs the same for one replica and for a thousand: the order is kept, not computed per request.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from heapq import heapify, heappop, heappush

from kuwa.kernel.registry import UNLIMITED, Replica

NOMINAL_SLOTS = 64  # what an upstream without a limit counts as beside replicas that have one

_Entry = tuple[float, int, Replica]


class LeastLoaded:
    """Lowest load first; among equals the one that has waited longest, so that they take turns.

    Load is the part of its slots that a replica holds. The heap's entries are (load, turn, replica); a replica's
    entry counts only while it carries the replica's latest turn. Older ones are dropped when they come up, and all
    at once when they outnumber the others.
    """

    __slots__ = ("_heap", "_turn", "_turns")

    def __init__(self) -> None:
        self._heap: list[_Entry] = []
        self._turns: dict[Replica, int] = {}
        self._turn = 0

    def update(self, replica: Replica) -> None:
        """The replica's running count, slots or state changed."""
        slots = replica.slots
        running = replica.running
        if running >= replica.admits or replica.state != "ready":
            self._turns.pop(replica, None)
            return
        self._turn = turn = self._turn + 1
        self._turns[replica] = turn
        heap = self._heap
        heappush(heap, (running / (slots if slots < UNLIMITED else NOMINAL_SLOTS), turn, replica))
        if len(heap) > 2 * len(self._turns) + 64:
            self._compact()

    def discard(self, replica: Replica) -> None:
        """The replica no longer serves this access code."""
        self._turns.pop(replica, None)

    def choose(self, excluded: AbstractSet[str]) -> Replica | None:
        """The replica to take, or None. Its choice shows only after `update`."""
        heap = self._heap
        turns = self._turns
        passed: list[_Entry] = []
        chosen: Replica | None = None
        while heap:
            entry = heap[0]
            replica = entry[2]
            if turns.get(replica) != entry[1]:
                heappop(heap)
            elif excluded and replica.id in excluded:
                passed.append(heappop(heap))
            else:
                chosen = replica
                break
        for entry in passed:
            heappush(heap, entry)
        return chosen

    def _compact(self) -> None:
        turns = self._turns
        self._heap = [entry for entry in self._heap if turns.get(entry[2]) == entry[1]]
        heapify(self._heap)
