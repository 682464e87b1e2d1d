"""One request's job: it waits for a slot, computes, sends what comes, and cleans up, whatever happens.

`server` makes one `Job` per request; everything here runs on the server's event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable
from typing import Any, Protocol, cast

from kuwa.executor.answer import Answer, Whole
from kuwa.executor.chunks import Progress, RawStream
from kuwa.executor.compute import Compute
from kuwa.executor.figures import Figures
from kuwa.executor.interface import Executor
from kuwa.executor.request import Request
from kuwa.executor.resumable import announcement
from kuwa.executor.slots import Slots, full
from kuwa.executor.wires import EVENT_STREAM, Wire
from kuwa.http.exchange import JSON_LINE, Exchange
from kuwa.wire import resume
from kuwa.wire.errors import (
    ClientGone,
    InternalError,
    KuwaError,
    QueueFull,
    RequestCancelled,
)
from kuwa.wire.names import PROVIDER_KEY_HEADER, echoable_request_id
from kuwa.wire.openai import Usage

# A generator that never waits for anything would keep everybody else from being served.
YIELD_S = 0.005
ABORT_TIMEOUT_S = 5.0
# Between two comments that say that a request is still computed. The first one commits the status 200, so that whoever
# refuses a request should have done so before.
PROGRESS_S = 2.0

_STREAM_LINES = b"content-type: %b\r\ncache-control: no-cache\r\n" % EVENT_STREAM

log = logging.getLogger("kuwa.executor")


class Serves(Protocol):
    """What a job needs of the server. `chunks` counts those that were sent."""

    executor: Executor
    compute: Compute
    slots: Slots
    chunks: int
    fingerprint: str
    figures: Figures | None

    def job_ended(self, job: Job) -> None: ...


class Job:
    """One request under way: it waits for a slot, computes, and cleans up, whatever happens."""

    def __init__(self, server: Serves, exchange: Exchange, request_id: str, wire: Wire) -> None:
        self.server = server
        self.exchange = exchange
        self.id = request_id
        self.wire = wire
        self.cancelled = False
        self.request: Request | None = None
        self._opening = b""
        self._why: KuwaError = RequestCancelled("The request was cancelled.")
        self._answer: Answer | None = None
        self._task: asyncio.Task[None] | None = None
        self._abort: asyncio.Task[Any] | None = None
        self._computing = False
        self._began = self._first = 0.0
        self._told = False
        self._from_kernel = exchange.headers.get(b"x-kuwa-request-id") is not None

    def start(self, work: Awaitable[None]) -> None:
        self.exchange.on_gone = self.cancel
        self.exchange.errors = self.wire.failures
        self._task = asyncio.get_running_loop().create_task(self._run(work), name=f"kuwa-{self.id}")
        # Not at the end of `_run`: a task that is cancelled before its first step never enters it.
        self._task.add_done_callback(lambda task: self._over(task, work))

    def _over(self, task: asyncio.Task[None], work: Awaitable[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("request %s was not answered", self.id, exc_info=error, extra=self._hiding())
            self.exchange.abort()
        close = getattr(work, "close", None)
        if close is not None and not self._computing:
            close()
        self.server.job_ended(self)

    def cancel(self, why: KuwaError | None = None) -> None:
        """The client went away, or somebody asked for an end (`why`): stop computing."""
        if self.cancelled or self._task is None:
            return
        self.cancelled = True
        self._why = why or self._why
        if self._computing:
            self.server.slots.cancelling += 1
            if self.request is not None:
                # Beside the closing of the iterator, not after it: it may be what lets a blocked thread go.
                self._abort = asyncio.get_running_loop().create_task(self.server.compute.abort(self.request))
        self._task.cancel()

    def untold_counts(self) -> Usage | None:
        """What the request cost, where it was computed and its client was not told."""
        if self._answer is None or self._told or not self._from_kernel:
            return None
        return Usage.of(self._answer.counts())

    async def ended(self) -> str:
        """Wait until the job has ended; what the executor's `abort` said."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=ABORT_TIMEOUT_S)
        done = self._abort is not None and self._abort.done() and not self._abort.cancelled()
        result = self._abort.result() if self._abort and done and self._abort.exception() is None else ""
        return str(result or "")

    async def _run(self, work: Awaitable[None]) -> None:
        slots = self.server.slots
        try:
            await self._take_slot(slots)
            try:
                self._computing = True
                await work
            finally:
                await self._leave(slots)
        except asyncio.CancelledError:
            self._end_cancelled()
        except ClientGone:
            pass
        except KuwaError as error:
            self._failed(error)
        except Exception as error:
            log.error("request %s failed", self.id, exc_info=error, extra=self._hiding())
            self._failed(InternalError("The executor failed at this request; its log says why."))

    def _hiding(self) -> dict[str, Any]:
        """For the log: a provider's exception may repeat the key that the request brought."""
        key = brought_key(self.exchange) or (self.request.provider_key if self.request is not None else "")
        return {"hidden": (key,)}

    async def _take_slot(self, slots: Slots) -> None:
        if slots.take():
            return
        loop = asyncio.get_running_loop()
        granted: asyncio.Future[None] = loop.create_future()
        waiter = slots.wait(lambda: granted.set_result(None), loop.time())
        try:
            await asyncio.wait([granted], timeout=waiter.deadline - loop.time())
        except asyncio.CancelledError:
            if granted.done():
                slots.release()
            raise
        finally:
            slots.give_up(waiter)
        if not granted.done():
            raise full(slots.limit)

    async def _leave(self, slots: Slots) -> None:
        """The iterator is closed; wait for `abort`, too, before the slot goes to the next request."""
        if self._abort is not None:
            try:
                async with asyncio.timeout(ABORT_TIMEOUT_S):
                    await self._abort
            except Exception as error:
                log.error("abort() of request %s failed", self.id, exc_info=error, extra=self._hiding())
        if self.cancelled:
            slots.cancelling -= 1
        slots.release()

    def answer(self, request: Request) -> Awaitable[None]:
        """What computes a chat or completion, in the form that its client asked for."""
        executor, exchange = self.server.executor, self.exchange
        request.provider_key = brought_key(exchange) or request.form.get(executor.provider_key_field, "")
        request.language = request.language or (exchange.headers.get(b"accept-language") or b"").decode("latin-1")
        for note in request.modelfile.ignored:
            log.info("request %s: the Modelfile holds an %s, which is left out", request.id, note)
        answer, self._opening = self.wire.answer(
            request, lambda: self._announced(request), now=int(time.time()), cuts_stops=not executor.handles_stop
        )
        return self._compute(answer, request)

    def _announced(self, request: Request) -> resume.Announcement | None:
        """How another executor can resume the stream, where the kernel asks for that."""
        if self.exchange.headers.get(resume.HEADER) != b"1":
            return None
        return announcement(request, self.server.fingerprint, self.server.executor.own_seed())

    async def _compute(self, answer: Answer, request: Request) -> None:
        """Compute `request` and send what comes. The loop over the chunks is the executor's hot path."""
        self.request, self._answer = request, answer
        time_now = asyncio.get_running_loop().time
        exchange = self.exchange
        self._began = yielded = told = time_now()
        chunks = self.server.compute.open(request)
        try:
            async for chunk in chunks:
                if isinstance(chunk, RawStream):
                    await self._pass_on(chunk, answer)
                elif type(chunk) is Progress:
                    if time_now() - told < PROGRESS_S:
                        continue
                    told = time_now()
                    self._write(answer.take(chunk))
                else:
                    self._send(answer.take(chunk))
                if exchange.connection.congested:
                    await exchange.drain()
                if answer.cut:
                    break
                if time_now() - yielded > YIELD_S:
                    await asyncio.sleep(0)
                    yielded = time_now()
        finally:
            close = getattr(chunks, "aclose", None)
            if close is not None:
                await close()
        if isinstance(answer, Whole):
            self._told = not exchange.gone
            exchange.respond(200, answer.finish(), self._headers(request))
        else:
            self._finish_stream(answer)
        self._report(answer, time_now())

    def _send(self, data: bytes) -> None:
        """Send what a chunk has become."""
        if self.cancelled:
            raise asyncio.CancelledError
        self.server.chunks += 1
        if not self._first:
            self._first = asyncio.get_running_loop().time()
        self._write(data)

    def _write(self, data: bytes) -> None:
        if data:
            exchange = self.exchange
            if not exchange.started:
                exchange.start(200, self._headers(cast("Request", self.request)))
                data = self._opening + data
            exchange.write(data)

    async def _pass_on(self, stream: RawStream, answer: Answer) -> None:
        """Send a stream's events as they are handed over: no task runs in between."""
        exchange = self.exchange
        failure: BaseException | None = None

        def give(datas: list[bytes]) -> bool:
            nonlocal failure
            try:
                self._send(answer.take_events(datas))
            except BaseException as error:  # noqa: BLE001 - it is raised again, in the request's task
                failure = error
                return True
            if exchange.connection.congested:
                stream.pause()
            return answer.cut

        exchange.source = stream
        try:
            await stream.run(give)
        finally:
            exchange.source = None
        if failure is not None:
            raise failure

    def _finish_stream(self, answer: Answer) -> None:
        exchange = self.exchange
        self._told = not exchange.gone
        if not exchange.started:
            exchange.start(200, self._headers(answer.request))
        exchange.write(answer.finish())
        exchange.end()

    def _report(self, answer: Answer, now: float) -> None:
        counts = Usage.of(answer.counts()) or Usage()
        seconds = now - self._began
        if self.server.figures is not None:
            self.server.figures.answered(
                seconds=seconds,
                first_s=(self._first or now) - self._began,
                characters=answer.characters,
                prompt_tokens=counts.prompt_tokens,
                completion_tokens=counts.completion_tokens,
            )
        log.debug("request %s: %d characters in %.3f s", self.id, answer.characters, seconds)

    def respond(self, body: bytes) -> None:
        """Answer with a whole JSON body."""
        self.exchange.respond(200, body, JSON_LINE + self._id_headers())

    def _headers(self, request: Request) -> bytes:
        headers = _STREAM_LINES if request.stream else JSON_LINE
        headers += self._id_headers()
        if request.trimmed_messages:
            headers += b"x-kuwa-trimmed-messages: %d\r\n" % request.trimmed_messages
        return headers

    def _id_headers(self) -> bytes:
        if self._from_kernel:
            return b""  # the kernel's answer has its own, and a head that repeats byte for byte is parsed once
        own = self.id.encode()
        theirs = self.exchange.headers.get(b"x-request-id") or b""
        echoed = echoable_request_id(theirs.decode("latin-1"))
        return b"x-request-id: %b\r\nx-kuwa-request-id: %b\r\n" % (echoed.encode() if echoed else own, own)

    def _end_cancelled(self) -> None:
        """Cancelled, and the client is still there: it is told, for what it has looks like a whole answer."""
        if self.exchange.gone or self.exchange.ended:
            return
        if self._answer is not None and self.wire.ends_cut:
            self._finish_stream(self._answer)
        else:
            self.fail(self._why)

    def _failed(self, error: KuwaError) -> None:
        if self.server.figures is not None and not isinstance(error, QueueFull):
            self.server.figures.failed()
        self.fail(error)

    def fail(self, error: KuwaError) -> None:
        """Answer with `error`, as the wire words it that the request came by."""
        self.exchange.fail(error, self._id_headers())


def brought_key(exchange: Exchange) -> str:
    """The user's own key for the model's provider. Never logged."""
    return (exchange.headers.get(PROVIDER_KEY_HEADER) or b"").decode("latin-1")
