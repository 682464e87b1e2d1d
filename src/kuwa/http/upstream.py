"""The pooled HTTP/1.1 client: one `UpstreamConnection` per request at a time, its response handed on as it comes.

`UpstreamPool` keeps idle connections by origin. A response is told to its `ResponseHandler` by plain calls, in
order: `on_head`, then `on_frames` or `on_data` any number of times, the last with `ended`; or `on_lost` at any
point before the end. Chunked bodies whose reads hold whole chunks are handed on with their framing, so that a
relay can pass them through unread.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

from kuwa.http.framing import (
    MAX_HEAD_BYTES,
    BadFraming,
    ChunkDecoder,
    ResponseHead,
    parse_head,
    unframe,
    whole_chunks,
)
from kuwa.wire.errors import BadUpstream, KuwaError, NoReplica, UpstreamLost

CONNECT_TIMEOUT_S = 2.0
IDLE_TIMEOUT_S = 30.0
MAX_IDLE_PER_ORIGIN = 1024
MAX_MEMO = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """Where to connect: scheme, host and port, and the Host header that goes with them.

    `of` gives one object for one origin, so that they are compared and hashed by identity: the pool is keyed by them.
    """

    scheme: str
    host: str
    port: int
    host_header: bytes

    @classmethod
    def of(cls, url: str) -> Origin:
        """The origin of an absolute http(s) URL. Raises ValueError."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no http or https URL")
        return _origin(parts.scheme, parts.hostname, parts.port)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host_header.decode()}"


@lru_cache(maxsize=16_384)
def _origin(scheme: str, hostname: str, port: int | None) -> Origin:
    default = 443 if scheme == "https" else 80
    host = f"[{hostname}]" if ":" in hostname else hostname
    header = host if port in (None, default) else f"{host}:{port}"
    return Origin(scheme, hostname, port or default, header.encode("ascii" if header.isascii() else "idna"))


class ResponseHandler(Protocol):
    """What hears a response. No call may raise."""

    def on_head(self, head: ResponseHead) -> None: ...
    def on_frames(self, frames: bytes, ended: bool) -> None:
        """Whole chunks with their framing; with `ended`, the end of the body is among them."""
        ...

    def on_data(self, data: bytes, ended: bool) -> None:
        """Payload without framing; may be empty at the end."""
        ...

    def on_lost(self, error: KuwaError) -> None:
        """The response will not be completed. The connection is closed."""
        ...


class UnframedHandler:
    """Base of handlers that want payload only."""

    def on_frames(self, frames: bytes, ended: bool) -> None:
        self.on_data(unframe(frames), ended)

    def on_data(self, data: bytes, ended: bool) -> None:
        raise NotImplementedError


class UpstreamConnection(asyncio.Protocol):
    """A connection to one origin; carries one request at a time."""

    __slots__ = (
        "_buffer",
        "_chunks",
        "_handler",
        "_head",
        "_left",
        "_no_body",
        "_paused",
        "_pool",
        "_transport",
        "origin",
        "received",
        "reused",
        "since",
    )

    def __init__(self, pool: UpstreamPool, origin: Origin) -> None:
        self._pool = pool
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._handler: ResponseHandler | None = None
        self._head: ResponseHead | None = None
        self._buffer = b""
        self._left = 0
        self._chunks: ChunkDecoder | None = None
        self._no_body = False
        self._paused = False
        self.origin = origin
        self.reused = False
        self.received = False
        self.since = pool.now

    def send(self, request: bytes, handler: ResponseHandler, *, no_body: bool = False) -> None:
        """Send a whole request; `handler` hears the response. `no_body`: it is a HEAD request."""
        self._handler = handler
        self._head = None
        self._buffer = b""
        self._no_body = no_body
        self.received = False
        self.since = self._pool.now
        self._transport.write(request)

    def cancel(self, handler: ResponseHandler) -> None:
        """`handler` wants no more of its response: cut the connection if it still carries it."""
        if self._handler is handler:
            self.abandon()

    def abandon(self) -> None:
        """Cut the connection, telling nobody."""
        self._handler = None
        self._transport.abort()

    @property
    def paused(self) -> bool:
        """Whether reading waits for somebody slower than the upstream."""
        return self._paused

    def pause(self) -> None:
        if not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused and not self._transport.is_closing():
            self._paused = False
            self.since = self._pool.now
            self._transport.resume_reading()

    # ---- asyncio.Protocol ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._pool.connections.add(self)
        _notice_silence(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        handler = self._handler
        if handler is None:
            self._transport.abort()
            return
        self.since = self._pool.now
        self.received = True
        try:
            if self._head is None:
                data = self._read_head(handler, data)
                if self._handler is None or not data:
                    return
            self._read_body(handler, data)
        except BadFraming as error:
            self._lose(BadUpstream(f"{self.origin} sent an answer that cannot be read: {error}."))

    def eof_received(self) -> bool | None:
        handler = self._handler
        head = self._head
        if handler is not None and head is not None and head.length is None and not head.chunked:
            self._end()
            handler.on_data(b"", ended=True)
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.forget(self)
        handler, self._handler = self._handler, None
        if handler is not None:
            handler.on_lost(UpstreamLost(f"{self.origin} closed the connection before its answer was complete."))

    # ---- reading -------------------------------------------------------------------------------------------

    def _read_head(self, handler: ResponseHandler, data: bytes) -> bytes:
        """Consume the response head; returns what follows it."""
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        while True:
            end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES) + 4
            if end < 4:
                if len(data) >= MAX_HEAD_BYTES:
                    raise BadFraming("its head has no end")
                self._buffer = data
                return b""
            head = self._pool.parse_head(data[:end], no_body=self._no_body)
            data = data[end:]
            if head.status >= 200:
                break
        self._head = head
        self._left = head.length or 0
        self._chunks = None
        handler.on_head(head)
        if head.length == 0 and self._handler is handler:
            if data:
                raise BadFraming("bytes follow an answer without a body")
            self._end()
            handler.on_data(b"", ended=True)
        return data

    def _read_body(self, handler: ResponseHandler, data: bytes) -> None:
        head = cast("ResponseHead", self._head)
        if head.chunked:
            chunks = self._chunks
            if chunks is None or chunks.between_chunks:
                kind = whole_chunks(data)
                if kind:
                    if kind == 2:
                        self._end()
                    handler.on_frames(data, kind == 2)
                    return
                if chunks is None:
                    chunks = self._chunks = ChunkDecoder()
            payload = chunks.feed(data)
            if chunks.ended:
                self._end()
            if payload or chunks.ended:
                handler.on_data(payload, chunks.ended)
        elif head.length is None:
            handler.on_data(data, ended=False)
        else:
            self._left -= len(data)
            if self._left < 0:
                raise BadFraming("its body is longer than announced")
            if self._left == 0:
                self._end()
            handler.on_data(data, self._left == 0)

    def _end(self) -> None:
        """The response is complete: back to the pool, or closed."""
        self._handler = None
        self.resume()
        if cast("ResponseHead", self._head).keep_alive and not self._transport.is_closing():
            self._pool.give_back(self)
        else:
            self._transport.close()

    def _lose(self, error: KuwaError) -> None:
        handler, self._handler = self._handler, None
        self._transport.abort()
        if handler is not None:
            handler.on_lost(error)


class UpstreamPool:
    """Idle connections by origin, and the making of new ones. `now` is refreshed by whoever sweeps."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        self.now = 0.0
        self.connections: set[UpstreamConnection] = set()
        self._tls = tls
        self._connect_timeout_s = connect_timeout_s
        self._idle: dict[Origin, list[UpstreamConnection]] = {}
        self._memo: dict[bytes, ResponseHead] = {}

    def take(self, origin: Origin) -> UpstreamConnection | None:
        """An idle connection to `origin`, the one used last, or None."""
        idle = self._idle.get(origin)
        if not idle:
            return None
        connection = idle.pop()
        connection.reused = True
        return connection

    async def connect(self, origin: Origin) -> UpstreamConnection:
        """A new connection. Raises NoReplica with the reason."""
        tls = self._tls_context() if origin.scheme == "https" else None
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                return await self._opened(origin, tls)
        except TimeoutError as error:
            raise NoReplica(f"{origin} did not accept a connection in {self._connect_timeout_s:g} s.") from error
        except ssl.SSLError as error:
            raise NoReplica(
                f"The certificate or TLS of {origin} was refused ({error.reason or error}). "
                "Give its authority by --ca_file."
            ) from error
        except OSError as error:
            raise NoReplica(f"{origin} cannot be reached ({error.strerror or error}).") from error

    async def _opened(self, origin: Origin, tls: ssl.SSLContext | None) -> UpstreamConnection:
        """A connection by the direct way; another pool may know another. Raises OSError."""
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: UpstreamConnection(self, origin),
            origin.host,
            origin.port,
            ssl=tls,
            server_hostname=origin.host if tls is not None else None,
        )
        return connection

    def give_back(self, connection: UpstreamConnection) -> None:
        idle = self._idle.setdefault(connection.origin, [])
        if len(idle) < MAX_IDLE_PER_ORIGIN:
            connection.since = self.now
            idle.append(connection)
        else:
            connection.abandon()

    def forget(self, connection: UpstreamConnection) -> None:
        self.connections.discard(connection)
        idle = self._idle.get(connection.origin)
        if idle is not None and connection in idle:
            idle.remove(connection)
            if not idle:
                del self._idle[connection.origin]

    def parse_head(self, head: bytes, *, no_body: bool) -> ResponseHead:
        """`framing.parse_head` with a memo: an upstream's heads repeat byte for byte."""
        if no_body:
            return parse_head(head, no_body=True)
        known = self._memo.get(head)
        if known is None:
            known = parse_head(head)
            if len(self._memo) >= MAX_MEMO:
                self._memo.clear()
            self._memo[head] = known
        return known

    def sweep(self, now: float) -> None:
        """Close connections that have been idle for long."""
        self.now = now
        for idle in list(self._idle.values()):
            for connection in [one for one in idle if now - one.since > IDLE_TIMEOUT_S]:
                connection.abandon()

    def close(self) -> None:
        """Cut every connection."""
        for connection in list(self.connections):
            connection.abandon()

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls


def _notice_silence(connected: Any) -> None:
    """A host that vanished without a word is noticed within 6 s, in the middle of an answer too."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 3), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 2), ("TCP_USER_TIMEOUT", 5000)):
        option = getattr(socket, name, None)  # not every system has all of them
        if option is not None:
            connected.setsockopt(socket.IPPROTO_TCP, option, value)


def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """A verifying context that trusts the system's authorities and those of `ca_file`. Raises OSError."""
    context = ssl.create_default_context()
    if ca_file is not None:
        context.load_verify_locations(cafile=ca_file)
    return context
