"""A coroutine driven by hand: the story of one request, without a task or a future per await.

`Story` runs its coroutine at once, until it awaits a `Signal`; whoever fires the signal runs it on from there, in
the same call. That saves a turn of the event loop and some microseconds at each step of the hot path, and the
story stays one function with `try` and `finally`.

The price: inside a story only signals may be awaited. What needs asyncio (a connection being made) runs in a task
that fires a signal.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Signal(Generic[T]):
    """Awaited by at most one story; fired at most once, before or after it is awaited."""

    __slots__ = ("_error", "_fired", "_story", "_value")

    def __init__(self) -> None:
        self._story: Story | None = None
        self._fired = False
        self._value: Any = None
        self._error: BaseException | None = None

    @property
    def fired(self) -> bool:
        return self._fired

    def fire(self, value: T) -> None:
        """Give the awaiting story `value` and run it on. A second call does nothing."""
        if not self._fired:
            self._fired = True
            self._value = value
            if self._story is not None:
                self._story.wake(self)

    def fail(self, error: BaseException) -> None:
        """Raise `error` in the awaiting story. A second call does nothing."""
        if not self._fired:
            self._error = error
            self.fire(None)  # type: ignore[arg-type]

    def __await__(self) -> Generator[Signal[T], None, T]:
        if not self._fired:
            yield self
        if self._error is not None:
            raise self._error
        return self._value

    def watch(self, story: Story) -> None:
        self._story = story


class Story:
    """Drives one coroutine. Never re-entered: what happens while it runs waits until it awaits again."""

    __slots__ = ("_coroutine", "_interruption", "_running", "_waits_for")

    def __init__(self, coroutine: Coroutine[Signal[Any], None, None]) -> None:
        self._coroutine = coroutine
        self._waits_for: Signal[Any] | None = None
        self._running = False
        self._interruption: BaseException | None = None

    @property
    def over(self) -> bool:
        return self._waits_for is None and not self._running

    def start(self) -> None:
        self._run(None)

    def interrupt(self, error: BaseException) -> None:
        """Raise `error` where the story waits. Does nothing when it is over."""
        if self._running:
            self._interruption = error
        elif self._waits_for is not None:
            self._run(error)

    def wake(self, signal: Signal[Any]) -> None:
        """Called by a signal that has fired."""
        if self._waits_for is signal and not self._running:
            self._run(None)

    def _run(self, error: BaseException | None) -> None:
        self._running = True
        try:
            while True:
                self._waits_for = None
                signal = self._coroutine.send(None) if error is None else self._coroutine.throw(error)
                error, self._interruption = self._interruption, None
                if error is None and not signal.fired:
                    signal.watch(self)
                    self._waits_for = signal
                    return
        except StopIteration:
            return
        finally:
            self._running = False
