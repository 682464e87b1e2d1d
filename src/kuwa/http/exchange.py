"""One request and its response, as handlers see them: `Head` and `Exchange`.

The connection makes an exchange for each request; a handler answers through it, at once or later, whole or
streamed. Everything here is used from the server's event loop only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import unquote

import msgspec

from kuwa.wire.errors import PLAIN, ClientGone, ErrorShape, KuwaError, NotFound

HeaderPair = tuple[bytes, bytes]
JSON_LINE = b"content-type: application/json\r\n"
LARGE_BYTES = 64 * 1024  # what is larger is not copied to stand behind its head
Handler = Callable[["Exchange"], None]

_NO_BODY_STATUS = frozenset({204, 304})
_PHRASES = {status.value: status.phrase for status in HTTPStatus}
# Providers use statuses that no registry lists (520 to 529, 499): a phrase is for people, and any will do.
_STATUS_LINES = [
    b"HTTP/1.1 %d %s\r\n" % (status, _PHRASES.get(status, "Unregistered Status").encode()) for status in range(600)
]


class Source(Protocol):
    """What an exchange's bytes come from; paused while the client reads more slowly than it writes."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...


class Head:
    """A request's head, parsed once and never changed: heads that come again byte for byte share one object.

    `headers` are all but Content-Length, which belongs to one request: a handler has the body itself. `bodyless`: the
    response has none, whatever its head says (HEAD). `handler` answers such requests, and `errors` words their
    errors. `derived` is what the handler read out of this head, so that it need not again when the head comes again.
    """

    __slots__ = (
        "_fields",
        "bodyless",
        "derived",
        "errors",
        "expects_continue",
        "handler",
        "headers",
        "keep_alive",
        "method",
        "path",
        "query",
        "version",
    )

    def __init__(
        self, method: str, target: bytes, version: str, headers: tuple[HeaderPair, ...], keep_alive: bool
    ) -> None:
        raw_path, _, query = target.partition(b"?")
        self.method = method
        self.bodyless = method == "HEAD"
        self.path = unquote(raw_path.decode("ascii")) if b"%" in raw_path else raw_path.decode("ascii")
        self.query = query
        self.version = version
        self.headers = headers
        self.keep_alive = keep_alive
        self._fields = dict(reversed(headers))
        self.expects_continue = self._fields.get(b"expect", b"").lower() == b"100-continue"
        self.handler: Handler = unanswered
        self.errors: ErrorShape = PLAIN
        self.derived: Any = None

    def get(self, name: bytes) -> bytes | None:
        """The first header called `name` (lower case), or None."""
        return self._fields.get(name)


class ServerState(Protocol):
    """What an exchange asks of its server."""

    scheme: str
    draining: bool


class Writer(Protocol):
    def write(self, data: bytes, /) -> None: ...


class Connection(Protocol):
    """What an exchange needs of the connection it came by. `congested`: its client reads too slowly."""

    peer: tuple[str, int]
    local: tuple[str, int]
    congested: bool

    @property
    def server(self) -> ServerState: ...
    @property
    def transport(self) -> Writer: ...
    async def drained(self) -> None: ...
    def abort(self) -> None: ...
    def exchange_ended(self, keep_alive: bool) -> None: ...


class Exchange(msgspec.Struct, eq=False):
    """One request and its response. Used from the server's event loop only.

    Response headers are given as bytes, `name: value` and CRLF each (`header_lines`). `chunked`, known after `start`:
    the response body goes out in chunked framing. `source` is what the response comes from. `errors` words this one
    answer's errors, where its handler knows better than the head.
    """

    connection: Connection
    head: Head
    body: bytes
    keep_alive: bool
    gone: bool = False
    started: bool = False
    ended: bool = False
    chunked: bool = False
    on_gone: Callable[[], None] | None = None
    source: Source | None = None
    errors: ErrorShape | None = None
    unsent_head: bytes = b""

    @property
    def method(self) -> str:
        return self.head.method

    @property
    def path(self) -> str:
        return self.head.path

    @property
    def query(self) -> str:
        return self.head.query.decode("ascii")

    @property
    def headers(self) -> Head:
        return self.head

    @property
    def peer(self) -> tuple[str, int]:
        return self.connection.peer

    @property
    def local(self) -> tuple[str, int]:
        return self.connection.local

    @property
    def scheme(self) -> str:
        return self.connection.server.scheme

    def respond(self, status: int, body: bytes, headers: bytes = JSON_LINE) -> None:
        """Send the whole response. Does nothing when the client is gone."""
        if self.gone:
            return
        connection = self.connection
        stays_open = self.keep_alive and not connection.server.draining
        if not stays_open:
            headers += b"connection: close\r\n"
        size = len(body)
        if size > LARGE_BYTES or status in _NO_BODY_STATUS or self.head.bodyless:
            if status not in _NO_BODY_STATUS:
                headers += b"content-length: %d\r\n" % size
            head = b"%b%b\r\n" % (_STATUS_LINES[status], headers)
            if self.head.bodyless:
                body = b""
        else:
            head = b"%b%bcontent-length: %d\r\n\r\n%b" % (_STATUS_LINES[status], headers, size, body)
            body = b""
        # From here on nothing can raise: what has ended is not answered again.
        self.started = self.ended = True
        self.on_gone = self.source = None
        connection.transport.write(head)
        if body:
            connection.transport.write(body)
        connection.exchange_ended(stays_open)

    def start(self, status: int, headers: bytes, *, sized: bool = False) -> None:
        """Begin a streamed response. Its head goes out with the first `write`, `flush` or `end`.

        With `sized`, a Content-Length among `headers` says how long the body is; else it is chunked (HTTP/1.1) or
        ends with the connection (HTTP/1.0).
        """
        if not sized and status not in _NO_BODY_STATUS:
            if self.head.version == "1.1":
                self.chunked = True
                headers += b"transfer-encoding: chunked\r\n"
            else:
                self.keep_alive = False
        if not self.keep_alive or self.connection.server.draining:
            headers += b"connection: close\r\n"
        self.started = True
        self.unsent_head = b"%b%b\r\n" % (_STATUS_LINES[status], headers)

    def flush(self) -> None:
        """Send the head of a started response now."""
        if self.unsent_head:
            self.write_framed(b"")

    def write(self, data: bytes) -> None:
        """Send one piece of the body. Never blocks; see `drain` and `source` for backpressure."""
        if not data or self.head.bodyless:
            return
        self.write_framed(b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data)

    def write_framed(self, frames: bytes) -> None:
        """Send bytes that already carry the response's framing (whole chunks when `chunked`)."""
        if self.gone:
            return
        if self.unsent_head:
            frames = self.unsent_head + frames
            self.unsent_head = b""
        self.connection.transport.write(frames)

    def end(self, data: bytes = b"") -> None:
        """The streamed response is complete, with `data` as its last piece."""
        if self.gone:
            return
        if self.head.bodyless:
            data = b""
        elif self.chunked:
            data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
        self.write_framed(data)
        self.ended = True
        self.on_gone = self.source = None
        self.connection.exchange_ended(self.keep_alive and not self.connection.server.draining)

    def fail(self, error: KuwaError, headers: bytes = b"") -> None:
        """Answer with `error`: as a whole response, or as the closing events of a stream that has begun."""
        if self.gone or self.ended:
            return
        shape = self.errors or self.head.errors
        if self.started:
            if self.chunked or self.head.version == "1.0":
                self.end(shape.closing(error))
            else:
                self.connection.abort()
            return
        status, content_type, body = shape.refusal(error)
        headers += b"content-type: %b\r\n" % content_type
        if error.retry_after_s is not None:
            headers += b"retry-after: %d\r\n" % error.retry_after_s
        self.respond(status, body, headers)

    async def drain(self) -> None:
        """Wait until the client has taken enough of what was written. Raises ClientGone."""
        await self.connection.drained()
        if self.gone:
            raise ClientGone

    def abort(self) -> None:
        """Cut the connection: the response cannot be completed and must not look complete."""
        self.connection.abort()

    def lose(self) -> None:
        """Called by the connection when the client is gone."""
        self.gone = True
        callback, self.on_gone, self.source = self.on_gone, None, None
        if callback is not None:
            callback()


def header_lines(headers: Iterable[HeaderPair]) -> bytes:
    """Headers as the lines of a head."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def unanswered(exchange: Exchange) -> None:
    """The handler of what nobody answers."""
    exchange.fail(NotFound(f"There is no route {exchange.method} {exchange.path} here."))
