"""The tickets that wait for a slot of one access code, and whose turn it is.

Each principal has a line of its own, first in first out; the lines take turns by deficit round robin, so that one
principal's five hundred requests do not stand before another's one. Tickets that come back from a replica that
failed them stand before all lines: they have waited already. The dispatcher owns one queue per access code.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator

import msgspec

from kuwa.kernel.policy import Trail
from kuwa.kernel.replica import Replica
from kuwa.wire.errors import KuwaError

Weights = Callable[[str], float]

MIN_WEIGHT = 0.1
MAX_WEIGHT = 100.0


class Ticket(msgspec.Struct, eq=False):
    """One request's claim to a slot, from its admission to its release.

    `cost_bytes` is the size of the request while it waits. `key` is the v1.0 pair (history_id, user_id), which
    claims a slot reserved under it. `trail` is what the policy knows its conversation by. `excluded` holds the ids of
    the replicas that have failed it already: whoever sees such a failure adds the id between `release` and the next
    `acquire`. A ticket that waited ends with either `replica` or `error` set, and then `granted` is called, once, by
    whoever made the call that settled it.
    """

    access_code: str
    principal: str
    cost_bytes: int = 0
    key: tuple[str, str] | None = None
    trail: Trail = ()
    granted: Callable[[], None] | None = None
    excluded: frozenset[str] = frozenset()
    replica: Replica | None = None
    error: KuwaError | None = None
    queued: bool = False
    queued_at: float = 0.0


class _Line:
    """The waiting tickets of one principal. `deficit` is how many of them its turn still allows."""

    __slots__ = ("bytes", "deficit", "principal", "tickets")

    def __init__(self, principal: str) -> None:
        self.principal = principal
        self.tickets: OrderedDict[Ticket, None] = OrderedDict()
        self.bytes = 0
        self.deficit = 0.0


class FairQueue:
    """Lines of tickets and the order among them. Counts are exact at any time.

    `weights` gives a principal's share; 1 for everyone makes plain round robin.
    """

    __slots__ = ("_lines", "_turns", "_weights", "bytes", "returned", "waiting")

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._lines: dict[str, _Line] = {}
        self._turns: deque[_Line] = deque()
        self.returned: OrderedDict[Ticket, None] = OrderedDict()
        self.waiting = 0
        self.bytes = 0

    def __len__(self) -> int:
        return self.waiting + len(self.returned)

    def __iter__(self) -> Iterator[Ticket]:
        yield from self.returned
        for line in self._turns:
            yield from line.tickets

    def push(self, ticket: Ticket, now: float) -> None:
        ticket.queued = True
        ticket.queued_at = now
        self.bytes += ticket.cost_bytes
        if ticket.excluded:
            self.returned[ticket] = None
            return
        line = self._lines.get(ticket.principal)
        if line is None:
            line = self._lines[ticket.principal] = _Line(ticket.principal)
            self._turns.append(line)
        line.tickets[ticket] = None
        line.bytes += ticket.cost_bytes
        self.waiting += 1

    def pop(self) -> Ticket:
        """Take the ticket of the lines whose turn it is; there must be one."""
        turns = self._turns
        line = turns[0]
        while line.deficit < 1.0:
            line.deficit += min(max(self._weights(line.principal), MIN_WEIGHT), MAX_WEIGHT)
            if line.deficit >= 1.0:
                break
            turns.rotate(-1)
            line = turns[0]
        line.deficit -= 1.0
        ticket = next(iter(line.tickets))
        self.remove(ticket)
        if line.tickets and line.deficit < 1.0:
            turns.rotate(-1)
        return ticket

    def remove(self, ticket: Ticket) -> None:
        """Take out a ticket that waits, wherever it stands."""
        ticket.queued = False
        self.bytes -= ticket.cost_bytes
        if ticket in self.returned:
            del self.returned[ticket]
            return
        line = self._lines[ticket.principal]
        del line.tickets[ticket]
        line.bytes -= ticket.cost_bytes
        self.waiting -= 1
        if not line.tickets:
            del self._lines[ticket.principal]
            self._turns.remove(line)

    def held_by(self, principal: str) -> tuple[int, int]:
        """How many tickets of this principal wait in its line, and their bytes."""
        line = self._lines.get(principal)
        return (len(line.tickets), line.bytes) if line is not None else (0, 0)

    def older_than(self, moment: float) -> list[Ticket]:
        """The tickets that have waited since before `moment`."""
        old: list[Ticket] = []
        for tickets in (self.returned, *(line.tickets for line in self._turns)):
            for ticket in tickets:
                if ticket.queued_at > moment:
                    break
                old.append(ticket)
        return old

    def ahead_of(self, ticket: Ticket) -> int:
        """How many tickets will be served before this one if nobody else comes (exact for equal weights)."""
        if ticket in self.returned:
            return _index(self.returned, ticket)
        own = _index(self._lines[ticket.principal].tickets, ticket)
        ahead = len(self.returned) + own
        before = True
        for line in self._turns:
            if line.principal == ticket.principal:
                before = False
            else:
                ahead += min(len(line.tickets), own + 1 if before else own)
        return ahead


def _index(tickets: OrderedDict[Ticket, None], ticket: Ticket) -> int:
    for index, other in enumerate(tickets):
        if other is ticket:
            return index
    raise KeyError(ticket)
