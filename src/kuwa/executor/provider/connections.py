"""Connections to one provider: kept open between requests, given up when the provider is silent for too long.

An executor's `upstream` makes one `Connections` on the server's event loop and opens each request through it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kuwa.executor.provider.proxy import Proxy, tunnel_refused
from kuwa.http.client import StreamedResponse, request_start
from kuwa.http.framing import HeaderPair
from kuwa.http.origin import Origin, UpstreamRequest
from kuwa.http.upstream import UpstreamPool
from kuwa.http.upstream_connection import Unanswered, UpstreamConnection
from kuwa.wire.errors import UpstreamTimeout

CONNECT_TIMEOUT_S = 10.0
SWEEP_S = 0.5
MAX_PROXY_HEAD = 16 * 1024


@dataclass(frozen=True, slots=True)
class Route:
    """Where requests go: the server, and the bytes that all of them begin with."""

    origin: Origin
    start: bytes

    @classmethod
    def of(cls, method: str, url: str, headers: Iterable[HeaderPair] = ()) -> Route:
        """Raises ValueError for what is no http(s) URL."""
        origin = Origin.of(url)
        return cls(origin, request_start(method, url, origin, headers))


class Connections:
    """A pool whose responses are given up after `timeout_s` without a byte; `proxy` is on the way to the provider."""

    def __init__(self, timeout_s: float, proxy: Proxy | None = None) -> None:
        self._timeout_s = timeout_s
        self.pool = _ProxiedPool(proxy) if proxy else UpstreamPool(connect_timeout_s=CONNECT_TIMEOUT_S)
        self.open: set[StreamedResponse] = set()
        self._loop = asyncio.get_running_loop()
        self.pool.sweep(self._loop.time())
        self._sweeper = self._loop.create_task(self._sweep(), name="kuwa-provider-sweep")

    def close(self) -> None:
        self._sweeper.cancel()
        self.pool.close()

    def request(self, route: Route, body: bytes, headers: bytes = b"") -> Call:
        """A request, to be sent by entering it; `headers` are lines of its own."""
        head = b"%b%bcontent-length: %d\r\n\r\n" % (route.start, headers, len(body))
        return Call(self, UpstreamRequest(route.origin, head, body))

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            now = self._loop.time()
            self.pool.sweep(now)
            for response in list(self.open):
                since = response.silent_since
                if since is not None and now - since > self._timeout_s:
                    response.give_up(UpstreamTimeout(f"The provider was silent for {self._timeout_s:g} s."))


class Call:
    """One request: entering sends it and gives its response, once the head has come; leaving before the end of the
    body cuts the connection. Entering raises as `kuwa.http.client.open_stream` does.

    A provider closes idle connections when it likes, so a request that met such a moment is sent once more, over a new
    connection. It cannot have ended a provider's process, as it might an executor's.
    """

    def __init__(self, connections: Connections, request: UpstreamRequest) -> None:
        self._connections = connections
        self._request = request
        self._response = StreamedResponse(request.origin)

    async def __aenter__(self) -> StreamedResponse:
        try:
            return await self._sent(self._connections.pool.send)
        except Unanswered:
            self._response = StreamedResponse(self._request.origin)
            return await self._sent(self._connections.pool.dial)

    async def _sent(self, send: Callable[[UpstreamRequest, StreamedResponse], None]) -> StreamedResponse:
        response = self._response
        self._connections.open.add(response)
        try:
            send(self._request, response)
            await response.wait_for_head()
        except BaseException:
            self._leave()
            raise
        return response

    async def __aexit__(self, *_: object) -> None:
        self._leave()

    def _leave(self) -> None:
        self._connections.open.discard(self._response)
        self._response.cancel()


class _ProxiedPool(UpstreamPool):
    """A pool whose connections go through tunnels of a proxy."""

    def __init__(self, proxy: Proxy) -> None:
        super().__init__(connect_timeout_s=CONNECT_TIMEOUT_S)
        self._proxy = proxy

    async def _opened(self, origin: Origin, tls: ssl.SSLContext | None) -> UpstreamConnection:
        proxy = self._proxy
        loop = asyncio.get_running_loop()
        try:
            transport, tunnel = await loop.create_connection(_Tunnel, proxy.host, proxy.port)
        except OSError as error:
            raise OSError(f"the proxy {proxy}: {error.strerror or error}") from error
        try:
            transport.write(proxy.ask(origin.host, origin.port))
            if refused := tunnel_refused(await tunnel.answer):
                raise OSError(f"the proxy {proxy} opens no way: {refused}")
            connection = UpstreamConnection(self, origin)
            if tls is None:
                transport.set_protocol(connection)
                connection.connection_made(transport)
                return connection
            secured = await loop.start_tls(transport, connection, tls, server_hostname=origin.host)
            if secured is None:
                raise OSError("the connection was closed while TLS began")
            connection.connection_made(secured)
        except BaseException:
            transport.abort()
            raise
        return connection


class _Tunnel(asyncio.Protocol):
    """A connection to a proxy until it has answered."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._head = b""

    def data_received(self, data: bytes) -> None:
        self._head += data
        if not self.answer.done() and (b"\r\n\r\n" in self._head or len(self._head) > MAX_PROXY_HEAD):
            self.answer.set_result(self._head)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_result(self._head)
