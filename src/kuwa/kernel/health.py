"""The kernel's clock: it lets registry and dispatcher know that time has passed, and asks replicas how they are.

Whose health is asked, where and when is the affair of `lifecycle`, and of a breaker that has opened.
`settle` is the one way by which changes of the registry reach the queues; `api/workers` calls it too.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

import structlog

from kuwa.http.client import fetch
from kuwa.kernel.dispatcher import Dispatcher
from kuwa.kernel.lifecycle import Answer
from kuwa.kernel.queue import Ticket
from kuwa.kernel.registry import Registry
from kuwa.kernel.replica import Replica
from kuwa.wire.errors import KuwaError

TICK_S = 0.25
POLL_TIMEOUT_S = 2.0

log: Any = structlog.get_logger("kuwa.kernel")


def settle(registry: Registry, dispatcher: Dispatcher, now: float) -> None:
    """Bring the registry's changes to the dispatcher, and wake the requests that they concern."""
    changed = registry.take_changes()
    for replica in changed:
        log.info(
            f"executor {replica.overall}",
            access_codes=" ".join(replica.access_codes),
            endpoint=replica.address,
            **({"ejected": replica.ejected} if replica.ejected else {}),
            **({"note": replica.note} if replica.note else {}),
        )
    _wake(dispatcher.changed(changed, now))


def _wake(settled: list[Ticket]) -> None:
    for ticket in settled:
        if ticket.granted is not None:
            ticket.granted()


class TickingClock:
    """Monotonic seconds: `now` as of the last tick, which costs nothing to read, and `time()` exactly."""

    __slots__ = ("now",)
    time = staticmethod(monotonic)

    def __init__(self) -> None:
        self.now = monotonic()


class Watch:
    """Ticks for as long as the kernel runs. One poll per replica is under way at a time.

    `sweeps` are called with the time at each tick, after registry and dispatcher.
    """

    def __init__(
        self,
        registry: Registry,
        dispatcher: Dispatcher,
        *,
        clock: TickingClock,
        sweeps: Sequence[Callable[[float], None]] = (),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._registry = registry
        self._dispatcher = dispatcher
        self._clock = clock
        self._sweeps = sweeps
        self._tls = tls
        self._polls: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        try:
            while True:
                self._tick(monotonic())
                await asyncio.sleep(TICK_S)
        finally:
            for poll in self._polls:
                poll.cancel()

    def _tick(self, now: float) -> None:
        self._clock.now = now
        self._registry.expire(now)
        settle(self._registry, self._dispatcher, now)
        _wake(self._dispatcher.sweep(now))
        for sweep in self._sweeps:
            sweep(now)
        for replica in self._registry.polls_due(now):
            poll = asyncio.get_running_loop().create_task(self._poll(replica))
            self._polls.add(poll)
            poll.add_done_callback(self._polls.discard)

    async def _poll(self, replica: Replica) -> None:
        answer, note = await self._ask(replica)
        now = monotonic()
        self._registry.health(replica, answer, now, note)
        settle(self._registry, self._dispatcher, now)

    async def _ask(self, replica: Replica) -> tuple[Answer, str]:
        """What the replica answered, and why not `ok` where it is not."""
        headers = [(b"authorization", replica.authorization)] if replica.authorization else []
        try:
            response = await fetch("GET", replica.health_url, headers=headers, timeout_s=POLL_TIMEOUT_S, tls=self._tls)
        except KuwaError as error:
            refused = isinstance(error.__cause__, ConnectionRefusedError)
            return ("refused" if refused else "silent"), error.message
        except (OSError, ValueError) as error:
            return "silent", str(error)
        if 200 <= response.status < 300:
            return "ok", ""
        return "silent", f"GET {replica.health_url} answered {response.status}"
