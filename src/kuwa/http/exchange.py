"""One request and its response, as handlers see them: `Head` and `Exchange`.

The connection makes an exchange for each request; a handler answers through it, at once or later, whole or
streamed. Everything here is used from the server's event loop only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Protocol
from urllib.parse import unquote

from kuwa.wire.errors import ClientGone, KuwaError

HeaderPair = tuple[bytes, bytes]
JSON_HEADERS: tuple[HeaderPair, ...] = ((b"content-type", b"application/json"),)
Handler = Callable[["Exchange"], None]

_NO_BODY_STATUS = frozenset({204, 304})
_STATUS_LINES = {status.value: b"HTTP/1.1 %d %s\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus}


class Source(Protocol):
    """What an exchange's bytes come from; paused while the client reads more slowly than it writes."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...


class Head:
    """A request's head, parsed once and never changed: heads that come again byte for byte share one object.

    `headers` are all but Content-Length, which belongs to one request: a handler has the body itself. `derived` is
    for the handler: what it read out of this head, so that it need not again when the head comes again.
    """

    __slots__ = (
        "_fields",
        "derived",
        "expects_continue",
        "headers",
        "keep_alive",
        "method",
        "path",
        "query",
        "refusal",
        "version",
    )

    def __init__(
        self, method: str, target: bytes, version: str, headers: tuple[HeaderPair, ...], keep_alive: bool
    ) -> None:
        raw_path, _, query = target.partition(b"?")
        self.method = method
        self.path = unquote(raw_path.decode("ascii")) if b"%" in raw_path else raw_path.decode("ascii")
        self.query = query
        self.version = version
        self.headers = headers
        self.keep_alive = keep_alive
        self._fields = dict(reversed(headers))
        self.expects_continue = self._fields.get(b"expect", b"").lower() == b"100-continue"
        self.refusal: KuwaError | None = None
        self.derived: object = None

    def get(self, name: bytes) -> bytes | None:
        """The first header called `name` (lower case), or None."""
        return self._fields.get(name)


class Connection(Protocol):
    """What an exchange needs of the connection it came by."""

    peer: tuple[str, int]
    local: tuple[str, int]

    @property
    def scheme(self) -> str: ...
    @property
    def draining(self) -> bool: ...
    @property
    def congested(self) -> bool: ...
    def write(self, data: bytes) -> None: ...
    async def drained(self) -> None: ...
    def abort(self) -> None: ...
    def exchange_ended(self, keep_alive: bool) -> None: ...


class Exchange:
    """One request and its response. Used from the server's event loop only."""

    __slots__ = (
        "_chunked",
        "_connection",
        "_head_bytes",
        "_keep_alive",
        "body",
        "ended",
        "gone",
        "head",
        "on_gone",
        "source",
        "started",
    )

    def __init__(self, connection: Connection, head: Head, body: bytes) -> None:
        self._connection = connection
        self._keep_alive = head.keep_alive
        self._chunked = False
        self._head_bytes = b""
        self.head = head
        self.body = body
        self.gone = False
        self.started = False
        self.ended = False
        self.on_gone: Callable[[], None] | None = None
        self.source: Source | None = None

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
        return self._connection.peer

    @property
    def local(self) -> tuple[str, int]:
        return self._connection.local

    @property
    def scheme(self) -> str:
        return self._connection.scheme

    @property
    def chunked(self) -> bool:
        """Whether the response body goes out in chunked framing; known after `start`."""
        return self._chunked

    @property
    def congested(self) -> bool:
        """Whether the client reads more slowly than was written: a new `source` is to pause until it is resumed."""
        return self._connection.congested

    def respond(self, status: int, body: bytes, headers: Iterable[HeaderPair] = JSON_HEADERS) -> None:
        """Send the whole response. Does nothing when the client is gone."""
        if self.gone:
            return
        fields = b"".join([b"%b: %b\r\n" % header for header in headers])
        if status not in _NO_BODY_STATUS:
            fields += b"content-length: %d\r\n" % len(body)
        if not self._stays_open():
            fields += b"connection: close\r\n"
        if self.head.method == "HEAD":
            body = b""
        self.started = True
        self._connection.write(b"%b%b\r\n%b" % (_STATUS_LINES[status], fields, body))
        self._finish()

    def start(self, status: int, headers: Iterable[HeaderPair]) -> None:
        """Begin a streamed response. Its head goes out with the first `write`, `flush` or `end`.

        A `content-length` among `headers` makes the body that long; else it is chunked (HTTP/1.1) or ends with the
        connection (HTTP/1.0).
        """
        parts = [_STATUS_LINES[status]]
        sized = status in _NO_BODY_STATUS
        for name, value in headers:
            sized = sized or name == b"content-length"
            parts += (name, b": ", value, b"\r\n")
        if not sized:
            if self.head.version == "1.1":
                self._chunked = True
                parts.append(b"transfer-encoding: chunked\r\n")
            else:
                self._keep_alive = False
        if not self._stays_open():
            parts.append(b"connection: close\r\n")
        parts.append(b"\r\n")
        self.started = True
        self._head_bytes = b"".join(parts)

    def flush(self) -> None:
        """Send the head of a started response now."""
        if self._head_bytes:
            self.write_framed(b"")

    def write(self, data: bytes) -> None:
        """Send one piece of the body. Never blocks; see `drain` and `source` for backpressure."""
        if not data or self.head.method == "HEAD":
            return
        self.write_framed(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def write_framed(self, frames: bytes) -> None:
        """Send bytes that already carry the response's framing (whole chunks when `chunked`)."""
        if self.gone:
            return
        if self._head_bytes:
            frames = self._head_bytes + frames
            self._head_bytes = b""
        self._connection.write(frames)

    def end(self, data: bytes = b"") -> None:
        """The streamed response is complete, with `data` as its last piece."""
        if self.gone:
            return
        if self.head.method == "HEAD":
            data = b""
        elif self._chunked:
            data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
        self.write_framed(data)
        self._finish()

    def fail(self, error: KuwaError, headers: Iterable[HeaderPair] = ()) -> None:
        """Answer with `error`: as a whole response, or as the closing events of a stream that has begun."""
        if self.gone or self.ended:
            return
        if self.started:
            if self._chunked or self.head.version == "1.0":
                self.write(error.event())
                self.end()
            else:
                self._connection.abort()
            return
        extra: list[HeaderPair] = [*JSON_HEADERS, *headers]
        if error.retry_after_s is not None:
            extra.append((b"retry-after", b"%d" % error.retry_after_s))
        self.respond(error.status, error.body(), extra)

    async def drain(self) -> None:
        """Wait until the client has taken enough of what was written. Raises ClientGone."""
        await self._connection.drained()
        if self.gone:
            raise ClientGone

    def abort(self) -> None:
        """Cut the connection: the response cannot be completed and must not look complete."""
        self._connection.abort()

    def lose(self) -> None:
        """Called by the connection when the client is gone."""
        self.gone = True
        callback, self.on_gone, self.source = self.on_gone, None, None
        if callback is not None:
            callback()

    def _stays_open(self) -> bool:
        return self._keep_alive and not self._connection.draining

    def _finish(self) -> None:
        self.ended = True
        self.on_gone = self.source = None
        self._connection.exchange_ended(self._stays_open())
