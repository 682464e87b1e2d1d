"""Calls an executor's `llm_compute`, whatever interface it was written for, as one asynchronous iterator.

`server` makes one `Compute` per executor; the signature is looked at once. A blocking generator runs in a thread
of its own. Nothing here knows of HTTP.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any, cast

from kuwa.executor.chunks import Chunk
from kuwa.executor.failures import SetupFailed
from kuwa.executor.interface import Executor
from kuwa.executor.legacy import form_of, history_of, modelfile_of
from kuwa.executor.request import Request

# How many chunks a thread may be ahead of the client.
THREAD_AHEAD = 256

_GIVE: dict[str, Callable[[Request], Any]] = {
    "request": lambda request: request,
    "data": form_of,
    "history": history_of,
    "modelfile": modelfile_of,
}


class Compute:
    """How one executor's `llm_compute` and `abort` want to be called."""

    def __init__(self, executor: Executor) -> None:
        """Raises SetupFailed for a signature that cannot be served."""
        self._compute = executor.llm_compute
        self._abort = executor.abort
        self._positional, self._named = _arguments(executor)
        self._blocking = inspect.isgeneratorfunction(executor.llm_compute)
        self._abort_takes_request = "request" in inspect.signature(executor.abort).parameters
        self.can_abort = type(executor).abort is not Executor.abort

    def open(self, request: Request) -> AsyncIterator[Chunk]:
        """Begin to compute `request`. Close the iterator to cancel it."""
        args = [_GIVE[name](request) for name in self._positional]
        kwargs = {name: _GIVE[name](request) for name in self._named}
        if self._blocking:
            compute = cast("Callable[..., Iterator[Chunk]]", self._compute)
            return _in_thread(lambda: compute(*args, **kwargs))
        return _as_iterator(self._compute(*args, **kwargs))

    async def abort(self, request: Request) -> Any:
        """Tell the executor that `request` was cancelled; what its `abort` returned."""
        result = self._abort(request=request) if self._abort_takes_request else self._abort()
        return await result if inspect.isawaitable(result) else result


def _arguments(executor: Executor) -> tuple[list[str], list[str]]:
    """Which of `_GIVE` to pass by position and which by name.

    The old framework passed the form by position, so a single argument of any other name is the form.
    """
    parameters = list(inspect.signature(executor.llm_compute).parameters.values())
    plain = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    named = [p.name for p in plain if p.name in _GIVE]
    strange = [p for p in plain if p.name not in _GIVE and p.default is p.empty]
    if not strange and (named or not plain):
        return [], named
    if len(strange) == 1 and not named and strange[0].kind is not strange[0].KEYWORD_ONLY:
        return ["data"], []
    raise SetupFailed(
        f"{type(executor).__name__}.llm_compute asks for {', '.join(p.name for p in strange)}; "
        "it is given request, or history and modelfile, or data"
    )


def _as_iterator(result: Any) -> AsyncIterator[Chunk]:
    if hasattr(result, "__aiter__"):
        return cast("AsyncIterator[Chunk]", aiter(result))
    return _of_value(result)


async def _of_value(result: Any) -> AsyncIterator[Chunk]:
    """A coroutine, a text or a plain iterator as an asynchronous one."""
    if inspect.isawaitable(result):
        result = await result
    if result is None:
        return
    if isinstance(result, str):
        yield result
    elif hasattr(result, "__aiter__"):
        async for chunk in cast("AsyncIterator[Chunk]", result):
            yield chunk
    else:
        async with aclosing(cast("Any", _in_thread(lambda: iter(result)))) as chunks:
            async for chunk in chunks:
                yield chunk


async def _in_thread(start: Callable[[], Iterator[Chunk]]) -> AsyncIterator[Chunk]:
    """The chunks of a blocking iterator that runs in a thread.

    Closing this waits until the thread has left the iterator: only then is the model free for the next request.
    """
    thread = _Thread(start)
    try:
        while True:
            for chunk in thread.taken():
                yield chunk
            if thread.ended:
                break
            await thread.news()
        if thread.error is not None:
            raise thread.error
    finally:
        await thread.stop()


class _Thread:
    """Runs an iterator and hands its chunks to the event loop. Daemonic: a hung model cannot keep the process."""

    def __init__(self, start: Callable[[], Iterator[Chunk]]) -> None:
        self._start = start
        self._loop = asyncio.get_running_loop()
        self._chunks: deque[Chunk] = deque()
        self._room = threading.Semaphore(THREAD_AHEAD)
        self._cancelled = False
        self._news = asyncio.Event()
        self.ended = False
        self.error: Exception | None = None
        threading.Thread(target=self._run, name="kuwa-llm-compute", daemon=True).start()

    def taken(self) -> Iterator[Chunk]:
        """The chunks that have come, each making room for another."""
        self._news.clear()
        while self._chunks:
            self._room.release()
            yield self._chunks.popleft()

    async def news(self) -> None:
        await self._news.wait()

    async def stop(self) -> None:
        self._cancelled = True
        self._room.release()
        while not self.ended:
            self._news.clear()
            await self._news.wait()

    def _run(self) -> None:
        error: Exception | None = None
        try:
            iterator = self._start()
            try:
                for chunk in iterator:
                    self._room.acquire()
                    if self._cancelled:
                        break
                    self._chunks.append(chunk)
                    self._loop.call_soon_threadsafe(self._news.set)
            finally:
                close = getattr(iterator, "close", None)
                if close is not None:
                    close()
        except Exception as raised:  # noqa: BLE001 - it is raised again on the event loop, in the request's task
            error = raised
        try:
            self._loop.call_soon_threadsafe(self._end, error)
        except RuntimeError:
            return  # the event loop was closed while the model was still at it

    def _end(self, error: Exception | None) -> None:
        self.error = error
        self.ended = True
        self._news.set()
