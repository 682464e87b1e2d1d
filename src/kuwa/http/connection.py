"""One client connection: bytes become `Exchange`s, one after another, and their responses go back in that order.

`ServerConnection` is the asyncio protocol of both programs' servers. It parses with httptools, checks Host and
Origin, enforces the limits, and hands each whole request to the handler of its path. Requests of one connection
form one FIFO: the next one's handler starts when the response before it has ended. A handler answers through its
`Exchange`, at once or later, whole or streamed.

Deadlines need no timer of their own: the server's sweep calls `check` on every connection a few times a second.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import httptools

from kuwa.http.exchange import Exchange, Handler, Head, HeaderPair, header_lines
from kuwa.http.heads import Cut, HeadMemo, KnownHead, cut_head
from kuwa.wire.errors import (
    ErrorShape,
    HeadersTooLarge,
    InternalError,
    InvalidRequest,
    KuwaError,
    RequestTimeout,
    RequestTooLarge,
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
CHUNK_LINE_BYTES = 12  # the most that the framing of a chunk takes without extensions: 8 digits and two line ends
MAX_REFUSED = 32  # connections beyond the bound that are told so at once; others are cut


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one server connection: bytes and seconds. `connections`: how many there may be at once."""

    connections: int = 1_000_000
    head_bytes: int = 32 * 1024
    head_count: int = 100
    body_bytes: int = 32 * 1024 * 1024
    write_buffer_bytes: int = 64 * 1024
    head_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    idle_timeout_s: float = 75.0
    write_stall_s: float = 30.0


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
        "_body_size",
        "_chunk_lines",
        "_closing",
        "_completed",
        "_current",
        "_cut",
        "_drain_waiters",
        "_expected",
        "_head_size",
        "_headers",
        "_known",
        "_missing",
        "_parsed",
        "_parser",
        "_phase",
        "_queue",
        "_reading_paused",
        "_since",
        "_stall_left",
        "_stall_since",
        "_target",
        "_upgrading",
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
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._headers: list[HeaderPair] = []
        self._head_size = 0  # of the head; then of what else is no body: chunk extensions and trailers
        self._chunk_lines = 0
        self._upgrading = False
        self._parsed: Head = cast("Head", None)
        self._body: list[bytes] = []
        self._body_limit = server.limits.body_bytes
        self._body_size = 0
        self._completed = 0
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
        self._parse(data)

    def _parse(self, data: bytes) -> None:
        completed, phase = self._completed, self._phase
        body_size, self._chunk_lines = self._body_size, 0
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            upgrade_at = upgrade.args[0]
        except httptools.HttpParserError as error:
            self._refuse(_refusal_of(error))
            return
        else:
            upgrade_at = 0
        if upgrade_at:
            self._ignore_upgrade(data[upgrade_at:])
            return
        if self._completed != completed:
            return
        # The parser keeps an unfinished header, trailer or chunk extension to itself: count what it was fed.
        if self._phase == "head":
            self._head_size += len(data)
        elif phase == "body":
            framing = len(data) - (self._body_size - body_size) - self._chunk_lines * CHUNK_LINE_BYTES
            self._head_size = max(-CHUNK_LINE_BYTES, self._head_size + framing)
        if self._head_size > self.server.limits.head_bytes:
            self._refuse(_head_too_large(self.server.limits))

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Read a request that asks for another protocol as the HTTP/1.1 request that it is (RFC 9110, section 7.8).

        The parser takes such a head for the end of HTTP, so the head is parsed again without the Upgrade header.
        """
        if not self._upgrading:
            self._refuse(InvalidRequest("This server does not open tunnels."))
            return
        self._upgrading = False
        method, version = self._parser.get_method(), self._parser.get_http_version().encode()
        fields = header_lines(field for field in self._headers if field[0] != b"upgrade")
        self._parser = httptools.HttpRequestParser(self)
        self._parse(b"%b %b HTTP/%b\r\n%b\r\n%b" % (method, self._target, version, fields, rest))

    def eof_received(self) -> bool | None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connections.discard(self)
        self._closing = True
        self._expected = None
        self._queue.clear()
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

    def on_message_begin(self) -> None:
        self._target = b""
        self._headers = []
        self._head_size = 0
        self._phase = "head"
        self._since = self.server.now

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self._headers) == self.server.limits.head_count:
            raise _head_too_large(self.server.limits)
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._parser.should_upgrade() and any(name == b"upgrade" for name, _ in self._headers):
            self._upgrading = True
            return
        self._head_size = 0
        self._parsed = head = self._read_head()
        cut, self._cut = self._cut, None
        if cut is not None and _memorable(head):
            self._known = self.server.memo.add(cut, head)
        self._body = []
        self._body_size = 0
        self._phase = "body"
        self._since = self.server.now
        if head.expects_continue and self._current is None and not self._queue:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)
        self._body_size += len(body)
        if self._body_size > self.server.limits.body_bytes:
            raise _body_too_large(self.server.limits)

    def on_chunk_header(self) -> None:
        self._chunk_lines += 1

    def on_message_complete(self) -> None:
        if self._upgrading:
            return
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        self._headers = []
        self._completed += 1
        self._phase = "idle"
        self._since = self.server.now
        if self._current is None and not self._queue:
            self._begin(self._parsed, body)
            return
        self._queue.append((self._parsed, body))
        if len(self._queue) >= MAX_PIPELINED or len(body) > self.server.limits.write_buffer_bytes:
            self._reading_paused = True
            self.transport.pause_reading()

    def _read_head(self) -> Head:
        limits = self.server.limits
        fields = self._headers
        size = len(self._target) + sum(len(name) + len(value) + 4 for name, value in fields)
        if size > limits.head_bytes:
            raise _head_too_large(limits)
        if not self._target.startswith(b"/") or not self._target.isascii():
            raise InvalidRequest("The request target must be a path such as /v1/models.")
        version = self._parser.get_http_version()
        hosts = [value for name, value in fields if name == b"host"]
        if len(hosts) > 1 or (not hosts and version == "1.1"):
            raise InvalidRequest("A request needs exactly one Host header.")
        length = next((value for name, value in fields if name == b"content-length"), b"0")
        if int(length) > limits.body_bytes:
            raise _body_too_large(limits)
        head = Head(
            self._parser.get_method().decode("ascii"),
            self._target,
            version,
            tuple(field for field in fields if field[0] != b"content-length"),
            self._parser.should_keep_alive(),
        )
        head.errors = self.server.errors(head.path)
        refusal = self.server.guard.check(
            hosts[0] if hosts else b"localhost",
            head.get(b"origin"),
            head.get(b"sec-fetch-site"),
            head.method,
            head.path,
        )
        head.handler = self.server.handler(head.method, head.path) if refusal is None else _refuses(refusal)
        return head

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
        self._current = Exchange(self, broken, b"", keep_alive=False)
        self._current.fail(error)

    def _error_shape(self) -> ErrorShape:
        """By what the request that is being read would be answered with an error, as far as its path is known."""
        if self._missing and self._known is not None:
            return self._known.head.errors
        return self.server.errors(self._target.partition(b"?")[0].decode("latin-1"))

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


def _head_too_large(limits: Limits) -> HeadersTooLarge:
    return HeadersTooLarge(f"The request head is beyond {limits.head_bytes} bytes or {limits.head_count} headers.")


def _body_too_large(limits: Limits) -> RequestTooLarge:
    return RequestTooLarge(f"The request body is larger than {limits.body_bytes} bytes.")


def _refusal_of(error: httptools.HttpParserError) -> KuwaError:
    """Why a request cannot be read: the refusal that one of the parser's callbacks raised, or the parser's own."""
    raised = error.__context__
    if isinstance(raised, KuwaError):
        return raised
    if raised is not None:
        log.error("reading a request failed", exc_info=raised)
        return InternalError("Internal server error; see the server log.")
    return InvalidRequest(f"This is no HTTP/1.1 request: {str(error).partition(chr(10))[0]}")


def _address(name: object) -> tuple[str, int]:
    if isinstance(name, tuple):
        host, port = cast("tuple[str, int]", name)[:2]
        return host, port
    return "", 0
