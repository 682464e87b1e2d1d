"""A connection of ours to a server: it sends one request at a time and hands the response on as it comes.

A response is given to its `ResponseHandler` by plain calls, in order: `on_head`, then `on_frames` or `on_data` any
number of times, the last with `ended`; or all of it at once by `on_whole`; or `on_lost` at any point before the end.
Chunked bodies whose reads hold whole chunks are handed on with their framing, so that a relay can pass them unread.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any, Protocol, cast

from kuwa.http.exchange import LARGE_BYTES
from kuwa.http.framing import MAX_HEAD_BYTES, BadFraming, ChunkDecoder, ResponseHead, unframe, whole_chunks
from kuwa.http.heads import KnownHead
from kuwa.http.origin import Origin, UpstreamRequest
from kuwa.wire.errors import BadUpstream, InternalError, KuwaError, UpstreamLost

log = logging.getLogger("kuwa.http")


class Home(Protocol):
    """The pool that a connection belongs to. `now` is a monotonic time refreshed by whoever sweeps it."""

    now: float
    connections: set[UpstreamConnection]

    def parse_head(self, raw: bytes, *, no_body: bool) -> tuple[ResponseHead, int, KnownHead[ResponseHead] | None]: ...
    def give_back(self, connection: UpstreamConnection) -> None: ...
    def forget(self, connection: UpstreamConnection) -> None: ...


class ResponseHandler(Protocol):
    """What hears a response. A call that raises ends the response: `on_lost` is called with an InternalError.

    `connection` is set to the one that carries the response. `over`, set by the handler: it hears no more.
    """

    connection: UpstreamConnection | None
    over: bool

    def on_head(self, head: ResponseHead) -> None: ...
    def on_frames(self, frames: bytes, ended: bool) -> None:
        """Whole chunks with their framing; with `ended`, the end of the body is among them."""
        ...

    def on_data(self, data: bytes, ended: bool) -> None:
        """Payload without framing; may be empty at the end."""
        ...

    def on_whole(self, head: ResponseHead, body: bytes) -> None:
        """The head and all of the body at once, in place of the other calls."""
        ...

    def on_lost(self, error: KuwaError) -> None:
        """The response will not be completed. The connection is closed."""
        ...


class Unanswered(UpstreamLost):
    """A connection that had carried a request before was closed without a byte of the answer to this one.

    Its server may have died of the request, or closed the idle connection just as the request went out. Only the one
    who asked can tell whether the request may be sent again.
    """


class UnframedHandler:
    """Base of handlers that want payload only."""

    def on_whole(self, head: ResponseHead, body: bytes) -> None:
        self.on_head(head)
        self.on_data(body, ended=True)

    def on_head(self, head: ResponseHead) -> None:
        raise NotImplementedError

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
        "_known",
        "_left",
        "_pool",
        "_received",
        "_request",
        "_reused",
        "_transport",
        "origin",
        "paused",
        "since",
    )

    def __init__(self, pool: Home, origin: Origin) -> None:
        self._pool = pool
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._request: UpstreamRequest | None = None
        self._handler: ResponseHandler | None = None
        self._head: ResponseHead | None = None
        self._known: KnownHead[ResponseHead] | None = None
        self._buffer = b""
        self._left = 0
        self._chunks: ChunkDecoder | None = None
        self._reused = False
        self._received = False
        self.origin = origin
        self.paused = False  # reading waits for somebody slower than the upstream
        self.since = pool.now

    def send(self, request: UpstreamRequest, handler: ResponseHandler) -> None:
        """Send a request; `handler` hears the response."""
        self._request = request
        self._handler = handler
        handler.connection = self
        self._head = None
        self._received = False
        self.since = self._pool.now
        body = request.body
        if len(body) < LARGE_BYTES:
            self._transport.write(request.head + body)
        else:
            self._transport.write(request.head)
            self._transport.write(body)

    def cancel(self, handler: ResponseHandler) -> None:
        """`handler` wants no more of its response: cut the connection if it still carries it."""
        if self._handler is handler:
            self.abandon()

    def abandon(self) -> None:
        """Cut the connection, telling nobody."""
        self._handler = None
        self._transport.abort()

    def pause(self, handler: ResponseHandler) -> None:
        """Read no more for now, for `handler` cannot take it; unless its response has been read to the end."""
        if self._handler is handler and not self.paused and not self._transport.is_closing():
            self.paused = True
            self._transport.pause_reading()

    def resume(self, handler: ResponseHandler) -> None:
        if self._handler is handler:
            self._resume()

    def _resume(self) -> None:
        if self.paused and not self._transport.is_closing():
            self.paused = False
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
        self._received = True
        known = self._known
        try:
            if self._head is not None:
                self._read_body(handler, self._head, data)
                return
            start = known.begins(data) if known is not None and not self._buffer else 0
            if known is not None and start and start + known.body_bytes == len(data):
                self._end(known.head)
                handler.on_whole(known.head, data[start:])
            else:
                self._read_head(handler, data)
        except BadFraming as error:
            self._lose(handler, BadUpstream(f"{self.origin} sent an answer that cannot be read: {error}."))
        except Exception:  # noqa: BLE001 - whatever a handler raises is logged, and its client told
            self._broke(handler)

    def eof_received(self) -> bool | None:
        handler = self._handler
        head = self._head
        if handler is not None and head is not None and not head.sized and not head.chunked:
            self._end(head)
            try:
                handler.on_data(b"", ended=True)
            except Exception:  # noqa: BLE001 - as above
                self._broke(handler)
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.forget(self)
        handler, self._handler = self._handler, None
        request, self._request = self._request, None
        if handler is None or request is None:
            return
        if self._reused and not self._received:
            lose(handler, Unanswered(f"{self.origin} closed the connection without an answer."))
        else:
            lose(handler, UpstreamLost(f"{self.origin} closed the connection before its answer was complete."))

    # ---- reading -------------------------------------------------------------------------------------------

    def _read_head(self, handler: ResponseHandler, data: bytes) -> None:
        """Read the response head, and what follows it."""
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        no_body = cast("UpstreamRequest", self._request).no_body
        while True:
            end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES) + 4
            if end < 4:
                if len(data) >= MAX_HEAD_BYTES:
                    raise BadFraming("its head has no end")
                self._buffer = data
                return
            head, self._left, known = self._pool.parse_head(data[:end], no_body=no_body)
            self._known = known or self._known
            data = data[end:]
            if head.status >= 200:
                break
        self._head = head
        self._chunks = None
        handler.on_head(head)
        if self._handler is not handler:
            return
        if head.sized and not self._left:
            if data:
                raise BadFraming("bytes follow an answer without a body")
            self._end(head)
            handler.on_data(b"", ended=True)
        elif data:
            self._read_body(handler, head, data)

    def _read_body(self, handler: ResponseHandler, head: ResponseHead, data: bytes) -> None:
        if head.chunked:
            chunks = self._chunks
            if chunks is None or chunks.between_chunks:
                kind = whole_chunks(data)
                if kind:
                    if kind == 2:
                        self._end(head)
                    handler.on_frames(data, kind == 2)
                    return
                if chunks is None:
                    chunks = self._chunks = ChunkDecoder()
            payload = chunks.feed(data)
            if chunks.ended:
                self._end(head)
            if payload or chunks.ended:
                handler.on_data(payload, chunks.ended)
        elif not head.sized:
            handler.on_data(data, ended=False)
        else:
            self._left -= len(data)
            if self._left < 0:
                raise BadFraming("its body is longer than announced")
            if self._left == 0:
                self._end(head)
            handler.on_data(data, self._left == 0)

    def _end(self, head: ResponseHead) -> None:
        """The response is complete: back to the pool, or closed."""
        self._handler = self._request = None
        if self.paused:
            self._resume()
        if head.keep_alive:
            self._reused = True
            self._pool.give_back(self)
        else:
            self._transport.close()

    def _lose(self, handler: ResponseHandler, error: KuwaError) -> None:
        """`handler` hears that its response will not be completed, even one that has been read to its end."""
        if self._handler is None or self._handler is handler:
            self._handler = self._request = None
            self._pool.forget(self)
            self._transport.abort()
        lose(handler, error)

    def _broke(self, handler: ResponseHandler) -> None:
        """The handler raised. The event loop would log it and forget it, and the client would wait forever."""
        log.exception("what reads an answer of %s failed", self.origin)
        self._lose(handler, InternalError("Internal error while reading an answer; see the server's log."))


def lose(handler: ResponseHandler, error: KuwaError) -> None:
    """Tell `handler` that its response will not be completed, unless it hears no more."""
    if handler.over:
        return
    try:
        handler.on_lost(error)
    except Exception:
        log.exception("what waits for an answer failed when it was told: %s", error)


def _notice_silence(connected: Any) -> None:
    """A host that vanished without a word is noticed within 6 s, in the middle of an answer too."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 3), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 2), ("TCP_USER_TIMEOUT", 5000)):
        option = getattr(socket, name, None)  # not every system has all of them
        if option is not None:
            connected.setsockopt(socket.IPPROTO_TCP, option, value)
