"""A generator driven by hand: the story of one request, without a task or a future.

A story runs at once, until it yields: then it waits. Whoever brings about what it waits for (a slot, the end of an
attempt) calls `wake`, and it runs on from there, in the same call. It looks for itself whether that is what it waited
for (`while not relay.over: yield`), so waking it once too often does no harm. That saves a turn of the event loop and
some microseconds at each step of the hot path, and the story stays one function with `try` and `finally`.

The price: a story cannot `await`. What needs asyncio (a connection being made) runs in a task that wakes it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator

import msgspec

from kuwa.wire.errors import ClientGone

log = logging.getLogger("kuwa.kernel.story")

Steps = Generator[None, None, None]

_OVER = object()


class Story(msgspec.Struct, eq=False):
    """Drives one generator. Never re-entered: what happens while it runs, it sees before it waits again.

    `last_resort` is called when the generator raises: a story is woken from the callbacks of connections, where an
    exception would reach nobody and leave the client without an answer.
    """

    steps: Steps
    last_resort: Callable[[], None]
    over: bool = False
    running: bool = False
    interruption: BaseException | None = None

    def wake(self) -> None:
        """Run on to where it waits next, from its beginning at first. Does nothing when it is over."""
        if self.running or self.over:
            return
        self.running = True
        try:
            self.over = next(self.steps, _OVER) is _OVER
        except Exception:  # noqa: BLE001 - whatever a story raises is logged, and its exchange cut
            self._broke()
        finally:
            self.running = False
        if self.interruption is not None:
            self._interrupt()

    def interrupt(self, error: BaseException) -> None:
        """Raise `error` where the story waits. Does nothing when it is over."""
        if self.over:
            return
        self.interruption = error
        if not self.running:
            self._interrupt()

    def client_gone(self) -> None:
        self.interrupt(ClientGone())

    def _interrupt(self) -> None:
        self.running = True
        try:
            while self.interruption is not None:
                error, self.interruption = self.interruption, None
                self.steps.throw(error)
        except StopIteration:
            self.over = True
        except Exception:  # noqa: BLE001 - whatever a story raises is logged, and its exchange cut
            self._broke()
        finally:
            error = None  # it knows this frame, and all that the story held would wait for the garbage collector
            self.running = False

    def _broke(self) -> None:
        self.over = True
        log.exception("a request failed inside the kernel, or while its client was told of a failure")
        self.last_resort()
