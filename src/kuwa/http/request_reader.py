"""Requests out of bytes: the parser of one connection, and what a request may not exceed. Pure.

Bytes go in by `feed`; the sink gets heads and bodies, in order, during that call. A head of which only the length of
its body is new does not come here (`heads`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

import httptools

from kuwa.http.exchange import HeaderPair, header_lines
from kuwa.wire.errors import HeadersTooLarge, InternalError, InvalidRequest, KuwaError, RequestTooLarge

log = logging.getLogger("kuwa.http")

CHUNK_LINE_BYTES = 12  # the most that the framing of a chunk takes without extensions: 8 digits and two line ends


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


class Sink(Protocol):
    """What takes the requests. A call that raises KuwaError ends the reading; `feed` raises the same."""

    def request_begins(self) -> None: ...
    def head_complete(self, reader: RequestReader) -> None:
        """The head has been read and checked: `method` to `fields` of the reader hold it."""
        ...

    def request_complete(self, body: bytes) -> None: ...


class RequestReader:
    """Parses HTTP/1.1 requests. `target`, `method` and the like are those of the request being read."""

    __slots__ = (
        "_body",
        "_body_size",
        "_chunk_lines",
        "_completed",
        "_headers",
        "_in_body",
        "_limits",
        "_overhead",
        "_parser",
        "_sink",
        "_upgrading",
        "body_bytes",
        "host",
        "keep_alive",
        "method",
        "target",
        "version",
    )

    def __init__(self, sink: Sink, limits: Limits) -> None:
        self._sink: Sink | None = sink
        self._limits = limits
        self._parser = httptools.HttpRequestParser(self)
        self._headers: list[HeaderPair] = []
        self._in_body = False
        self._overhead = 0  # bytes of the head; then of chunk extensions and trailers
        self._chunk_lines = 0
        self._upgrading = False
        self._body: list[bytes] = []
        self._body_size = 0
        self._completed = 0
        self.target = b""
        self.method = ""
        self.version = ""
        self.host = b""
        self.keep_alive = False
        self.body_bytes = 0

    def close(self) -> None:
        """Read no more: let go of the sink and of what has been read of a body."""
        self._sink = None
        self._body = []
        self._headers = []

    def fields(self) -> tuple[HeaderPair, ...]:
        """The headers but Content-Length, which belongs to one request; a head is kept for others like it."""
        return tuple(field for field in self._headers if field[0] != b"content-length")

    def feed(self, data: bytes) -> None:
        """Read on. Raises KuwaError for what cannot be read: what follows cannot be trusted."""
        while data and self._sink is not None:
            data = self._feed(data)

    def _feed(self, data: bytes) -> bytes:
        """Read `data`; gives what is to be read after it."""
        completed, in_body = self._completed, self._in_body
        body_size, self._chunk_lines = self._body_size, 0
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
            if self._upgrading:
                return self._without_upgrade() + rest
            raise InvalidRequest("This server does not open tunnels.") from None
        except httptools.HttpParserError as error:
            raise _refusal_of(error) from error
        if self._completed != completed:
            return b""
        # The parser keeps an unfinished header, trailer or chunk extension to itself: count what it was fed.
        if not self._in_body:
            self._overhead += len(data)
        elif in_body:
            framing = len(data) - (self._body_size - body_size) - self._chunk_lines * CHUNK_LINE_BYTES
            self._overhead = max(-CHUNK_LINE_BYTES, self._overhead + framing)
        if self._overhead > self._limits.head_bytes:
            raise _head_too_large(self._limits)
        return b""

    def _without_upgrade(self) -> bytes:
        """The head of a request that asks for another protocol, as HTTP/1.1 alone (RFC 9110, section 7.8). The parser
        takes such a head for the end of HTTP; a new one reads it again."""
        self._upgrading = False
        method, version = self._parser.get_method(), self._parser.get_http_version().encode()
        fields = header_lines(field for field in self._headers if field[0] != b"upgrade")
        self._parser = httptools.HttpRequestParser(self)
        return b"%b %b HTTP/%b\r\n%b\r\n" % (method, self.target, version, fields)

    # ---- called by the parser ------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self.target = b""
        self._headers = []
        self._overhead = 0
        self._in_body = False
        if self._sink is not None:
            self._sink.request_begins()

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self._headers) == self._limits.head_count:
            raise _head_too_large(self._limits)
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._parser.should_upgrade() and any(name == b"upgrade" for name, _ in self._headers):
            self._upgrading = True
            return
        self._check_head()
        self._body = []
        self._body_size = self._overhead = 0
        self._in_body = True
        if self._sink is not None:
            self._sink.head_complete(self)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)
        self._body_size += len(body)
        if self._body_size > self._limits.body_bytes:
            raise body_too_large(self._limits.body_bytes)

    def on_chunk_header(self) -> None:
        self._chunk_lines += 1

    def on_message_complete(self) -> None:
        if self._upgrading:
            return
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        self._headers = []
        self._in_body = False
        self._completed += 1
        if self._sink is not None:
            self._sink.request_complete(body)

    def _check_head(self) -> None:
        limits = self._limits
        headers = self._headers
        size = len(self.target) + sum(len(name) + len(value) + 4 for name, value in headers)
        if size > limits.head_bytes:
            raise _head_too_large(limits)
        if not self.target.startswith(b"/") or not self.target.isascii():
            raise InvalidRequest("The request target must be a path such as /v1/models.")
        self.version = self._parser.get_http_version()
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) > 1 or (not hosts and self.version == "1.1"):
            raise InvalidRequest("A request needs exactly one Host header.")
        self.host = hosts[0] if hosts else b"localhost"
        self.body_bytes = int(next((value for name, value in headers if name == b"content-length"), b"0"))
        self.method = self._parser.get_method().decode("ascii")
        self.keep_alive = self._parser.should_keep_alive()


def body_too_large(limit: int) -> RequestTooLarge:
    return RequestTooLarge(f"The request body is larger than {limit} bytes.")


def _head_too_large(limits: Limits) -> HeadersTooLarge:
    return HeadersTooLarge(f"The request head is beyond {limits.head_bytes} bytes or {limits.head_count} headers.")


def _refusal_of(error: httptools.HttpParserError) -> KuwaError:
    """Why a request cannot be read: the refusal that one of the parser's callbacks raised, or the parser's own."""
    raised = error.__context__
    if isinstance(raised, KuwaError):
        return raised
    if raised is not None:
        log.error("reading a request failed", exc_info=raised)
        return InternalError("Internal server error; see the server log.")
    return InvalidRequest(f"This is no HTTP/1.1 request: {str(error).partition(chr(10))[0]}")
