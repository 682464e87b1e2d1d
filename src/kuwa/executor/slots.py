"""The executor's own limit on how many requests are computed at once. Pure; `server` asks it, on the event loop.

The kernel counts slots too, but old kernels and direct clients do not, so the executor holds its limit by itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from kuwa.wire.errors import QueueFull

# A request may overtake the news that the one before it was given up: it waits a moment before it is refused.
GRACE_S = 0.25
# While a cancelled request still winds down, its slot is known to come free.
CANCEL_GRACE_S = 5.0


class Waiter:
    """A request that waits for a slot; `granted` is called once it has one."""

    __slots__ = ("deadline", "granted")

    def __init__(self, granted: Callable[[], None], deadline: float) -> None:
        self.granted = granted
        self.deadline = deadline


class Slots:
    """`limit` slots, and at most as many requests that wait a moment for one."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.running = 0
        self.cancelling = 0
        self._waiting: deque[Waiter] = deque()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def take(self) -> bool:
        """Take a slot now, if one is free and nobody waits for it."""
        if self.running >= self.limit or self._waiting:
            return False
        self.running += 1
        return True

    def wait(self, granted: Callable[[], None], now: float) -> Waiter:
        """Wait for a slot until the returned waiter's `deadline`. Raises QueueFull where too many wait already."""
        if len(self._waiting) >= self.limit:
            raise full(self.limit)
        waiter = Waiter(granted, now + (CANCEL_GRACE_S if self.cancelling else GRACE_S))
        self._waiting.append(waiter)
        return waiter

    def give_up(self, waiter: Waiter) -> None:
        """The waiter waits no longer."""
        if waiter in self._waiting:
            self._waiting.remove(waiter)

    def release(self) -> None:
        """A slot is free again: it goes to who waits longest."""
        if self._waiting:
            self._waiting.popleft().granted()
        else:
            self.running -= 1


def full(limit: int) -> QueueFull:
    return QueueFull(
        f"This executor computes {limit} request{'' if limit == 1 else 's'} at once and is busy; try again soon."
    )
