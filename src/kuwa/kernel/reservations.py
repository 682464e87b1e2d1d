"""The slots of v1.0 chats: those held for a chat that `schedule` announced, and those that chats have taken.

A reservation is a ticket that holds a slot until its chat comes and claims it, or until it lapses. The dispatcher
grants and releases; this module knows which slot is held for whom, and until when. Pure: `now` is passed in.
"""

from __future__ import annotations

from dataclasses import dataclass

from kuwa.kernel.pool import WORTH_WAITING
from kuwa.kernel.queue import Ticket
from kuwa.kernel.replica import Replica

RESERVATION_S = 10.0
MAX_RESERVATIONS = 10_000

Key = tuple[str, str]
"""(history_id, user_id) of a v1.0 chat."""


@dataclass(slots=True)
class _Reservation:
    ticket: Ticket
    until: float


class Reservations:
    """The reservations by access code and key, and every ticket with a key that holds a slot. Its length is how many
    slots are held for chats that have been announced and have not come."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, Key], _Reservation] = {}
        self._keyed: dict[Ticket, None] = {}

    def __len__(self) -> int:
        return len(self._held)

    @property
    def full(self) -> bool:
        """Whether no more can be held."""
        return len(self._held) >= MAX_RESERVATIONS

    def hold(self, ticket: Ticket, key: Key, now: float) -> None:
        """The ticket holds its slot for the chat that will come with `key`."""
        self._held[ticket.access_code, key] = _Reservation(ticket, now + RESERVATION_S)

    def renew(self, access_code: str, key: Key, now: float) -> bool:
        """Hold the slot of this chat longer. False where none is held, or none on a replica that takes requests."""
        held = self._held.get((access_code, key))
        if held is None or not _usable(held.ticket):
            return False
        held.until = now + RESERVATION_S
        return True

    def withdraw(self, access_code: str, key: Key) -> Ticket | None:
        """End the reservation of this chat. Returns the ticket that has the slot, to be released."""
        held = self._held.pop((access_code, key), None)
        return held.ticket if held is not None else None

    def claim(self, ticket: Ticket, key: Key) -> Replica | None:
        """Hand a reserved slot over to its chat. One whose replica is no longer fit is left to lapse."""
        held = self._held.get((ticket.access_code, key))
        if held is None:
            return None
        replica = held.ticket.replica
        if replica is None or not _usable(held.ticket) or replica.id in ticket.excluded:
            return None
        del self._held[ticket.access_code, key]
        held.ticket.replica = None
        del self._keyed[held.ticket]
        breaker = replica.breakers.get(ticket.access_code)
        if breaker is not None and breaker.trial is held.ticket:
            breaker.trial = ticket
        ticket.replica = replica
        self._keyed[ticket] = None
        return replica

    def lapse(self, now: float) -> list[Ticket]:
        """End the reservations whose time is over. Returns the tickets that have the slots, to be released."""
        over = [name for name, held in self._held.items() if held.until <= now]
        return [self._held.pop(name).ticket for name in over]

    def granted(self, ticket: Ticket) -> None:
        """A ticket with a key got a slot."""
        self._keyed[ticket] = None

    def released(self, ticket: Ticket) -> None:
        """A ticket with a key gave its slot back."""
        self._keyed.pop(ticket, None)

    def holders(self) -> dict[Replica, Key]:
        """The key of one v1.0 chat that each replica holds a slot for."""
        return {t.replica: t.key for t in self._keyed if t.replica is not None and t.key is not None}


def _usable(ticket: Ticket) -> bool:
    """Whether the slot that the ticket holds is still worth something."""
    replica = ticket.replica
    return replica is not None and replica.state_at(ticket.access_code) in WORTH_WAITING
