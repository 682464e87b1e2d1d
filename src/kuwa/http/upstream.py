"""The pool of our connections to servers: idle ones by origin, new ones where none is idle."""

from __future__ import annotations

import asyncio
import logging
import ssl

from kuwa.http.framing import ResponseHead, parse_head
from kuwa.http.heads import HeadMemo, KnownHead, cut_head
from kuwa.http.origin import Origin, UpstreamRequest
from kuwa.http.upstream_connection import ResponseHandler, UpstreamConnection, lose
from kuwa.wire.errors import InternalError, KuwaError, NoReplica

log = logging.getLogger("kuwa.http")

CONNECT_TIMEOUT_S = 2.0
IDLE_TIMEOUT_S = 30.0
CLOSING_MARGIN_S = 1.0
MAX_IDLE_PER_ORIGIN = 1024
MAX_MEMO = 1024


class UpstreamPool:
    """Idle connections by origin, and the making of new ones. `now` is refreshed by whoever sweeps."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        self.now = 0.0
        self.connections: set[UpstreamConnection] = set()
        self._tls = tls
        self._connect_timeout_s = connect_timeout_s
        self._idle: dict[Origin, list[UpstreamConnection]] = {}
        self._sized: HeadMemo[ResponseHead] = HeadMemo()
        self._unsized: dict[bytes, ResponseHead] = {}
        self._kept_s: dict[Origin, float] = {}
        self._dialling: set[asyncio.Task[None]] = set()

    def send(self, request: UpstreamRequest, handler: ResponseHandler) -> None:
        """Send a request over the idle connection that was used last, else over a new one.

        `handler` hears the response, or NoReplica where no connection can be made.
        """
        idle = self._idle.get(request.origin)
        if idle and self._kept_s:
            self._drop_stale(request.origin, idle)
        if idle:
            idle.pop().send(request, handler)
        else:
            self.dial(request, handler)

    def dial(self, request: UpstreamRequest, handler: ResponseHandler) -> None:
        """As `send`, over a new connection."""
        task = asyncio.get_running_loop().create_task(self._dial(request, handler))
        self._dialling.add(task)
        task.add_done_callback(self._dialling.discard)

    async def _dial(self, request: UpstreamRequest, handler: ResponseHandler) -> None:
        try:
            connection = await self.connect(request.origin)
        except KuwaError as error:
            lose(handler, error)
            return
        except Exception:
            log.exception("connecting to %s failed", request.origin)
            lose(handler, InternalError(f"Internal error while connecting to {request.origin}; see the server's log."))
            return
        if handler.over:
            connection.abandon()
        else:
            connection.send(request, handler)

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
            origin.address or origin.host,
            origin.port,
            ssl=tls,
            server_hostname=origin.host if tls is not None else None,
        )
        return connection

    def _drop_stale(self, origin: Origin, idle: list[UpstreamConnection]) -> None:
        """Cut the connections that their server may be closing at this moment. The one used last is at the end."""
        kept_s = self._kept_s.get(origin, IDLE_TIMEOUT_S)
        while idle and self.now - idle[-1].since > kept_s:
            idle.pop().abandon()

    def keeps(self, origin: Origin, idle_s: float) -> None:
        """Note that the server of `origin` closes a connection that has been idle for `idle_s`."""
        kept_s = idle_s - CLOSING_MARGIN_S
        if 0 < kept_s < self._kept_s.get(origin, IDLE_TIMEOUT_S):
            if len(self._kept_s) >= MAX_MEMO:
                self._kept_s.clear()
            self._kept_s[origin] = kept_s

    def give_back(self, connection: UpstreamConnection) -> None:
        idle = self._idle.get(connection.origin)
        if idle is None:
            idle = self._idle[connection.origin] = []
        if len(idle) < MAX_IDLE_PER_ORIGIN:
            connection.since = self.now
            idle.append(connection)
        else:
            connection.abandon()

    def forget(self, connection: UpstreamConnection) -> None:
        self.connections.discard(connection)
        idle = self._idle.get(connection.origin)
        if idle is not None and connection in idle:
            self.keeps(connection.origin, self.now - connection.since)
            idle.remove(connection)
            if not idle:
                del self._idle[connection.origin]

    def parse_head(self, raw: bytes, *, no_body: bool) -> tuple[ResponseHead, int, KnownHead[ResponseHead] | None]:
        """`framing.parse_head` with a memo: an upstream's heads repeat, but for the length. Gives the head, the
        announced length, and by what the head is known again where it has one."""
        if no_body:
            return *parse_head(raw, no_body=True), None
        head = self._unsized.get(raw)
        if head is not None:
            return head, 0, None
        cut = cut_head(raw)
        known = self._sized.get(cut) if cut is not None else None
        if known is not None:
            known.begins(raw)
            return known.head, known.body_bytes, known
        head, length = parse_head(raw)
        if cut is not None and head.sized and head.status not in (204, 304):
            return head, length, self._sized.add(cut, head)
        if not head.sized:
            if len(self._unsized) >= MAX_MEMO:
                self._unsized.clear()
            self._unsized[raw] = head
        return head, length, None

    def sweep(self, now: float) -> None:
        """Close connections that have been idle for long."""
        self.now = now
        for idle in list(self._idle.values()):
            for connection in [one for one in idle if now - one.since > IDLE_TIMEOUT_S]:
                connection.abandon()

    def close(self) -> None:
        """Cut every connection, and give up those that are being made."""
        for task in list(self._dialling):
            task.cancel()
        for connection in list(self.connections):
            connection.abandon()

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls


def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """A verifying context that trusts the system's authorities and those of `ca_file`. Raises OSError."""
    context = ssl.create_default_context()
    if ca_file is not None:
        context.load_verify_locations(cafile=ca_file)
    return context
