"""One client connection: bytes become `Exchange`s, one after another, and their responses go back in that order.

`ServerConnection` is the asyncio protocol of both programs' servers. Its `RequestReader` parses; it checks Host and
Origin, enforces the deadlines, and hands each whole request to the handler of its path. Requests of one connection
form one FIFO: the next one's handler starts when the response before it has ended. A handler answers through its
`Exchange`, at once or later, whole or streamed.

Deadlines need no timer of their own: the server's sweep calls `check` on every connection a few times a second.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from kuwa.http.exchange import Exchange, Handler, Head
from kuwa.http.heads import Cut, HeadMemo, KnownHead, cut_head
from kuwa.http.request_reader import Limits, RequestReader, body_too_large
from kuwa.wire.errors import (
    ErrorShape,
    InternalError,
    KuwaError,
    RequestTimeout,
    TooManyConnections,
)

if TYPE_CHECKING:
    from kuwa.http.guard import HostGuard

log = logging.getLogger("kuwa.http")

Phase = Literal["new", "head", "body", "idle", "lingering"]
MAX_PIPELINED = 16
STALL_PROGRESS_BYTES = 1024
LINGER_S = 3.0
MAX_UNSENT_BYTES = 64 * 1024
MAX_REFUSED = 32  # connections beyond the bound that are told so at once; others are cut


class ServerContext(Protocol):
    """What all connections of a server share. `now` is a monotonic time refreshed by the sweep."""

    now: float
    scheme: str
    guard: HostGuard
    limits: Limits
    connections: set[ServerConnection]
    memo: HeadMemo[Head]
    draining: bool

    def handler(self, method: str, path: str) -> Handler: ...
    def errors(self, path: str) -> ErrorShape: ...


class ServerConnection(asyncio.Protocol):
    """The protocol object of one accepted connection."""

    __slots__ = (
        "_body",
        "_body_limit",
        "_closing",
        "_current",
        "_cut",
        "_drain_waiters",
        "_expected",
        "_known",
        "_missing",
        "_parsed",
        "_phase",
        "_queue",
        "_reader",
        "_reading_paused",
        "_since",
        "_stall_left",
        "_stall_since",
        "congested",
        "local",
        "peer",
        "server",
        "transport",
    )

    def __init__(self, server: ServerContext) -> None:
        self.server = server
        self.peer: tuple[str, int] = ("", 0)
        self.local: tuple[str, int] = ("", 0)
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._reader = RequestReader(self, server.limits)
        self._parsed: Head = cast("Head", None)
        self._body: list[bytes] = []
        self._body_limit = server.limits.body_bytes
        self._known: KnownHead[Head] | None = None
        self._expected: KnownHead[Head] | None = None  # the known head, while the next request may begin with it
        self._cut: Cut | None = None
        self._missing = 0
        self._queue: deque[tuple[Head, bytes]] = deque()
        self._current: Exchange | None = None
        self._phase: Phase = "new"
        self._closing = False
        self._reading_paused = False
        self._since = server.now
        self._stall_since = 0.0
        self._stall_left = 0
        self._drain_waiters: list[asyncio.Future[None]] = []
        self.congested = False

    # ---- asyncio.Protocol ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=self.server.limits.write_buffer_bytes)
        _keep_little_unsent(transport.get_extra_info("socket"))
        self.peer = _address(transport.get_extra_info("peername"))
        self.local = _address(transport.get_extra_info("sockname"))
        self.server.connections.add(self)
        surplus = len(self.server.connections) - self.server.limits.connections
        if surplus > MAX_REFUSED:
            self.abort()
        elif surplus > 0:
            self._refuse(TooManyConnections("This server has as many connections as it may open files for."))

    def data_received(self, data: bytes) -> None:
        expected = self._expected
        if expected is not None:
            start = expected.begins(data)
            if start and start + expected.body_bytes == len(data) and expected.body_bytes <= self._body_limit:
                self._begin(expected.head, data[start:])
                return
        if self._closing:
            return
        if self._missing:
            self._more_body(data)
            return
        between = self._phase == "idle" or self._phase == "new"
        if between and self._current is None and not self._queue and self._recognise(data):
            return
        try:
            self._reader.feed(data)
        except KuwaError as error:
            self._refuse(error)

    def eof_received(self) -> bool | None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connections.discard(self)
        self._closing = True
        self._expected = None
        self._queue.clear()
        self._body = []
        self._reader.close()
        self._release_drain()
        current, self._current = self._current, None
        if current is not None:
            current.lose()

    def pause_writing(self) -> None:
        self._stall_since = self.server.now
        self._stall_left = self.transport.get_write_buffer_size()
        self.congested = True
        if self._current is not None and self._current.source is not None:
            self._current.source.pause()

    def resume_writing(self) -> None:
        self._release_drain()
        if self._current is not None and self._current.source is not None:
            self._current.source.resume()

    # ---- what exchanges ask for ----------------------------------------------------------------------------

    async def drained(self) -> None:
        if self.congested:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._drain_waiters.append(waiter)
            await waiter

    def abort(self) -> None:
        self._closing = True
        self._expected = None
        self.transport.abort()

    def exchange_ended(self, keep_alive: bool) -> None:
        self._current = None
        if keep_alive and self._phase == "idle" and not self._queue and not self._closing:
            self._since = self.server.now
            self._expected = self._known
        elif self._phase == "lingering" and self.transport.can_write_eof():
            self.transport.write_eof()
        elif not keep_alive or self._closing:
            self._closing = True
            self.transport.close()
        elif self._queue:
            # Not at once: a run of pipelined requests answered on the spot must not recurse.
            asyncio.get_running_loop().call_soon(self._next)

    # ---- the sweep -----------------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """Enforce the deadlines; called by the server's sweep."""
        limits = self.server.limits
        if self.congested:
            self._check_stall(now, limits)
        if self._current is not None or self._queue:
            return
        age = now - self._since
        if self._phase == "head" and age > limits.head_timeout_s:
            self._refuse(RequestTimeout(f"No whole request head came within {limits.head_timeout_s:g} s."))
        elif self._phase == "body" and age > limits.body_timeout_s:
            self._refuse(RequestTimeout(f"No whole request body came within {limits.body_timeout_s:g} s."))
        elif age > {"new": limits.head_timeout_s, "lingering": LINGER_S}.get(self._phase, limits.idle_timeout_s):
            self.abort()

    @property
    def busy(self) -> bool:
        """Whether a request is being read or answered."""
        return self._current is not None or bool(self._queue) or self._phase in ("head", "body")

    def close_if_idle(self) -> None:
        if not self.busy:
            self._closing = True
            self._expected = None
            self.transport.close()

    def _check_stall(self, now: float, limits: Limits) -> None:
        left = self.transport.get_write_buffer_size()
        if self._stall_left - left >= STALL_PROGRESS_BYTES:
            self._stall_left, self._stall_since = left, now
        elif now - self._stall_since > limits.write_stall_s:
            self.abort()

    # ---- reading requests ----------------------------------------------------------------------------------

    def _recognise(self, data: bytes) -> bool:
        """Take a request whose head was read before, here or on another connection, without parsing it again.

        Only heads whose body is framed by Content-Length alone are known, so that what follows is the body, to the
        byte. Remembers for `on_headers_complete` how a head that is new here will be known again.
        """
        known = self._known
        start = known.begins(data) if known is not None else 0
        if known is None or not start:
            cut = cut_head(data)
            known = self.server.memo.get(cut) if cut is not None else None
            if known is None:
                self._cut = cut
                return False
            self._known = known
            start = known.begins(data)
        missing = known.body_bytes - len(data) + start
        if missing < 0 or known.body_bytes > self._body_limit:
            return False
        if missing:
            self._phase = "body"
            self._since = self.server.now
            self._missing = missing
            self._body = [data[start:]]
            return True
        self._phase = "idle"
        self._begin(known.head, data[start:])
        return True

    def _more_body(self, data: bytes) -> None:
        """Another piece of a body whose length is known."""
        rest = b""
        if len(data) > self._missing:
            data, rest = data[: self._missing], data[self._missing :]
        self._body.append(data)
        self._missing -= len(data)
        if self._missing:
            return
        body, self._body = b"".join(self._body), []
        self._phase = "idle"
        self._begin(cast("KnownHead[Head]", self._known).head, body)
        if rest:
            self.data_received(rest)

    def request_begins(self) -> None:
        self._phase = "head"
        self._since = self.server.now

    def head_complete(self, reader: RequestReader) -> None:
        """Have the guard judge a parsed head and look up who answers it. Raises KuwaError."""
        server = self.server
        if reader.body_bytes > self._body_limit:
            raise body_too_large(server.limits.body_bytes)
        head = Head(reader.method, reader.target, reader.version, reader.fields(), reader.keep_alive)
        head.errors = server.errors(head.path)
        refusal = server.guard.check(
            reader.host, head.get(b"origin"), head.get(b"sec-fetch-site"), head.method, head.path
        )
        head.handler = server.handler(head.method, head.path) if refusal is None else _refuses(refusal)
        self._parsed = head
        cut, self._cut = self._cut, None
        if cut is not None and _memorable(head):
            self._known = server.memo.add(cut, head)
        self._phase = "body"
        self._since = server.now
        if head.expects_continue and self._current is None and not self._queue:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def request_complete(self, body: bytes) -> None:
        self._phase = "idle"
        self._since = self.server.now
        if self._current is None and not self._queue:
            self._begin(self._parsed, body)
            return
        self._queue.append((self._parsed, body))
        if len(self._queue) >= MAX_PIPELINED or len(body) > self.server.limits.write_buffer_bytes:
            self._reading_paused = True
            self.transport.pause_reading()

    # ---- answering them ------------------------------------------------------------------------------------

    def _next(self) -> None:
        if self._current is not None or not self._queue:
            return
        head, body = self._queue.popleft()
        if self._reading_paused and not self._queue:
            self._reading_paused = False
            self.transport.resume_reading()
        self._begin(head, body)

    def _begin(self, head: Head, body: bytes) -> None:
        self._expected = None
        self._current = exchange = Exchange(self, head, body, head.keep_alive)
        try:
            head.handler(exchange)
        except Exception:
            # The event loop would log it and forget it, and the client would wait for ever.
            log.exception("a handler of %s failed", head.path)
            self._give_up(exchange)

    def _give_up(self, exchange: Exchange) -> None:
        """Answer a request whose handler failed; cut its connection where even that fails."""
        try:
            exchange.fail(InternalError("Internal server error; see the server log."))
        except Exception:
            log.exception("a failure could not be reported to the client")
            self.abort()

    def _refuse(self, error: KuwaError) -> None:
        """Answer a request that could not be read, then close: what follows it cannot be trusted."""
        if self._closing:
            return  # what comes after the last request of a connection is not read
        self._closing = True
        self._expected = None
        if self._current is not None or self._queue:
            # The responses before it are still due; the last of them closes the connection.
            if self._current is None:
                self.transport.close()
            return
        # A client still sending would lose the answer to a reset: what it sends is read and dropped for a while.
        self._phase = "lingering"
        self._since = self.server.now
        broken = Head("GET", b"/", "1.1", (), keep_alive=False)
        broken.errors = self._error_shape()
        self._body = []
        self._reader.close()
        self._current = Exchange(self, broken, b"", keep_alive=False)
        self._current.fail(error)

    def _error_shape(self) -> ErrorShape:
        """By what the request that is being read would be answered with an error, as far as its path is known."""
        if self._missing and self._known is not None:
            return self._known.head.errors
        return self.server.errors(self._reader.target.partition(b"?")[0].decode("latin-1"))

    def _release_drain(self) -> None:
        self.congested = False
        waiters, self._drain_waiters = self._drain_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


def _keep_little_unsent(connected: Any) -> None:
    """Let the system hold no more than this for a client that does not read; by itself it takes mebibytes, and the
    writer would hear of it only then. What is on its way is not counted, so that nobody is slowed down."""
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    if option is not None and getattr(connected, "family", None) in (socket.AF_INET, socket.AF_INET6):
        connected.setsockopt(socket.IPPROTO_TCP, option, MAX_UNSENT_BYTES)


def _refuses(error: KuwaError) -> Handler:
    """The handler of requests that are refused for their head."""
    return lambda exchange: exchange.fail(error)


def _memorable(head: Head) -> bool:
    return (
        head.keep_alive
        and not head.expects_continue
        and head.get(b"transfer-encoding") is None
        and head.get(b"upgrade") is None
        and head.get(b"connection") in (None, b"keep-alive", b"Keep-Alive")
    )


def _address(name: object) -> tuple[str, int]:
    if isinstance(name, tuple):
        host, port = cast("tuple[str, int]", name)[:2]
        return host, port
    return "", 0
