"""Requests with an `await`: a whole response by `fetch`, a streamed one by `open_stream`.

For registrations, health polls, executors that stand in front of another server. Without a pool each request has
a connection of its own, closed afterwards: servers are known that break on reuse right after a stream.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from kuwa.http.framing import HeaderPair, ResponseHead
from kuwa.http.origin import Origin, UpstreamRequest
from kuwa.http.upstream import UpstreamPool
from kuwa.http.upstream_connection import UnframedHandler, UpstreamConnection
from kuwa.wire.errors import BadUpstream, KuwaError, UpstreamTimeout

MAX_BUFFERED_BYTES = 256 * 1024
MAX_FETCH_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Response:
    """A whole response. `headers` has lower-case names; the first of equal names counts."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


class StreamedResponse(UnframedHandler):
    """A response whose body is iterated as it arrives, reading pausing while the reader is behind; or pushed."""

    def __init__(self, origin: Origin) -> None:
        self.connection: UpstreamConnection | None = None
        self.over = False
        self._origin = origin
        self._head: ResponseHead | None = None
        self._pieces: list[bytes] = []
        self._buffered = 0
        self._paused = False
        self._error: KuwaError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._sink: Callable[[bytes], bool] | None = None

    @property
    def status(self) -> int:
        return self._require_head().status

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(reversed(self._require_head().headers))

    def header(self, name: bytes) -> bytes:
        """The first header called `name` (lower case); empty where there is none."""
        return self._require_head().get(name) or b""

    def on_head(self, head: ResponseHead) -> None:
        self._head = head
        self._wake()

    def on_data(self, data: bytes, ended: bool) -> None:
        if self._sink is not None:
            self.over = ended
            if (data and self._sink(data)) or ended:
                self._wake()
            return
        if data:
            self._pieces.append(data)
            self._buffered += len(data)
        self.over = ended
        if self._buffered > MAX_BUFFERED_BYTES and not ended and not self._paused:
            self._paused = True
            self.pause()
        self._wake()

    def on_lost(self, error: KuwaError) -> None:
        self._error = error
        self.over = True
        self._wake()

    @property
    def silent_since(self) -> float | None:
        """When the server was last heard, in the pool's time; None where nothing more is waited for."""
        connection = self.connection
        return None if connection is None or self.over or connection.paused else connection.since

    def give_up(self, error: KuwaError) -> None:
        """Cut the connection; who reads the response is told `error`."""
        if not self.over:
            self.cancel()
            self.on_lost(error)

    def cancel(self) -> None:
        """Nobody wants more of it: cut the connection, unless it was read to its end."""
        self.over = True
        if self.connection is not None:
            self.connection.cancel(self)

    async def wait_for_head(self) -> None:
        while self._head is None and self._error is None:
            await self._next()
        if self._head is None and self._error is not None:
            raise self._error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The body in pieces. Raises UpstreamLost or BadUpstream when it does not end as announced."""
        while True:
            if self._pieces:
                pieces, self._pieces = self._pieces, []
                self._buffered = 0
                if self._paused:
                    self._paused = False
                    self.resume()
                yield pieces[0] if len(pieces) == 1 else b"".join(pieces)
            elif self.over:
                if self._error is not None:
                    raise self._error
                return
            else:
                await self._next()

    async def push(self, sink: Callable[[bytes], bool]) -> None:
        """Call `sink` with each piece of the body as it arrives, no task between them, until it has ended or `sink`
        says that it has enough. `sink` may not raise; `pause` and `resume` are for whoever it writes to. Raises as
        iterating does.
        """
        if self._paused:
            self._paused = False
            self.resume()
        held, self._pieces = b"".join(self._pieces), []
        if held and sink(held):
            return
        self._sink = sink
        try:
            if not self.over:
                await self._next()
        finally:
            self._sink = None
        if self._error is not None:
            raise self._error

    def pause(self) -> None:
        self._carried().pause(self)

    def resume(self) -> None:
        self._carried().resume(self)

    async def read(self, max_bytes: int = MAX_FETCH_BYTES) -> bytes:
        """The whole body. Raises BadUpstream beyond `max_bytes`."""
        body = bytearray()
        async for data in self:
            body += data
            if len(body) > max_bytes:
                raise BadUpstream(f"{self._origin} sent more than {max_bytes} bytes.")
        return bytes(body)

    async def _next(self) -> None:
        # One task reads a response; a bare future wakes it more cheaply than an event would.
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _carried(self) -> UpstreamConnection:
        if self.connection is None:
            raise RuntimeError("the response has no connection yet")
        return self.connection

    def _require_head(self) -> ResponseHead:
        if self._head is None:
            raise RuntimeError("the response has no head yet")
        return self._head


@asynccontextmanager
async def open_stream(
    method: str,
    url: str,
    *,
    headers: Iterable[HeaderPair] = (),
    body: bytes = b"",
    head_timeout_s: float | None = None,
    tls: ssl.SSLContext | None = None,
    pool: UpstreamPool | None = None,
    address: str = "",
) -> AsyncGenerator[StreamedResponse]:
    """Send a request and give its response once the head has come. Leaving the block cuts the connection, unless
    `pool` is given and the response was read to its end: then the pool keeps it for the next request. With `address`
    the connection goes there, whatever the host of `url` resolves to.

    Raises NoReplica (cannot connect), UpstreamTimeout (no head in time), UpstreamLost, BadUpstream.
    """
    origin = Origin.of(url)
    if address:
        origin = replace(origin, address=address)
    head = encode_head(method, url, origin, headers, len(body))
    response = StreamedResponse(origin)
    connections = pool or UpstreamPool(tls=tls)
    try:
        connections.send(UpstreamRequest(origin, head, body, no_body=method == "HEAD"), response)
        try:
            async with asyncio.timeout(head_timeout_s):
                await response.wait_for_head()
        except TimeoutError as error:
            raise UpstreamTimeout(f"{origin} did not answer in {head_timeout_s:g} s.") from error
        yield response
    finally:
        response.cancel()
        if pool is None:
            connections.close()


async def fetch(
    method: str,
    url: str,
    *,
    headers: Iterable[HeaderPair] = (),
    body: bytes = b"",
    timeout_s: float,
    tls: ssl.SSLContext | None = None,
) -> Response:
    """Send a request and read its whole response. Raises as `open_stream` does."""
    try:
        async with (
            asyncio.timeout(timeout_s),
            open_stream(method, url, headers=headers, body=body, tls=tls) as response,
        ):
            return Response(response.status, response.headers, await response.read())
    except TimeoutError as error:
        raise UpstreamTimeout(f"{Origin.of(url)} did not answer in {timeout_s:g} s.") from error


def encode_head(method: str, url: str, origin: Origin, headers: Iterable[HeaderPair], body_bytes: int) -> bytes:
    """The head of an HTTP/1.1 request, with the blank line."""
    start = request_start(method, url, origin, headers)
    if body_bytes or method in ("POST", "PUT", "PATCH"):
        return b"%bcontent-length: %d\r\n\r\n" % (start, body_bytes)
    return start + b"\r\n"


def request_start(method: str, url: str, origin: Origin, headers: Iterable[HeaderPair]) -> bytes:
    """The request line and the headers of a request, but for what belongs to its body."""
    parts = urlsplit(url)
    target = parts.path or "/"
    if parts.query:
        target += "?" + parts.query
    line = b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (method.encode(), target.encode("ascii"), origin.host_header)
    return line + b"".join([b"%b: %b\r\n" % header for header in headers])
