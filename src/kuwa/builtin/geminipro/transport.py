"""Our own pooled connections under Google's SDK, in the place of its HTTP client's.

So that leaving an answer cuts its connection in one place, an error is one of ours from the start, and nothing is
tried again behind our back. Imported when the executor starts, since it stands on httpx2.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx2

from kuwa.executor.provider.connections import Connections, Route
from kuwa.http.client import StreamedResponse

# What our own client writes itself, and codings it does not read.
_NOT_PASSED = frozenset({b"host", b"content-length", b"connection", b"accept-encoding", b"transfer-encoding"})


class Transport(httpx2.AsyncBaseTransport):
    """Sends the SDK's requests over `connections`."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        headers = [(name.lower(), value) for name, value in request.headers.raw if name.lower() not in _NOT_PASSED]
        body = await request.aread()
        stack = AsyncExitStack()
        route = Route.of(request.method, str(request.url), headers)
        response = await stack.enter_async_context(self._connections.request(route, body))
        return httpx2.Response(
            response.status, headers=list(response.headers.items()), stream=_Body(response, stack), request=request
        )


class _Body(httpx2.AsyncByteStream):
    """A response's body. No generator: those are closed by the garbage collector, in no order and more than once."""

    def __init__(self, response: StreamedResponse, stack: AsyncExitStack) -> None:
        self._pieces = aiter(response)
        self._stack = stack

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        return await anext(self._pieces)

    async def aclose(self) -> None:
        await self._stack.aclose()
