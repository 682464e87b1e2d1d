"""Connections to one provider: kept open between requests, given up when the provider is silent for too long.

An executor's `upstream` makes one `Connections` on the server's event loop and opens each request through it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager

from kuwa.http.client import StreamedResponse, open_stream
from kuwa.http.framing import HeaderPair
from kuwa.http.upstream import UpstreamPool
from kuwa.wire.errors import UpstreamTimeout

CONNECT_TIMEOUT_S = 10.0
SWEEP_S = 0.5


class Connections:
    """A pool whose responses are given up after `timeout_s` without a byte."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._pool = UpstreamPool(connect_timeout_s=CONNECT_TIMEOUT_S)
        self._open: set[StreamedResponse] = set()
        self._loop = asyncio.get_running_loop()
        self._pool.sweep(self._loop.time())
        self._sweeper = self._loop.create_task(self._sweep(), name="kuwa-provider-sweep")

    def close(self) -> None:
        self._sweeper.cancel()
        self._pool.close()

    @asynccontextmanager
    async def request(
        self, method: str, url: str, headers: Iterable[HeaderPair], body: bytes
    ) -> AsyncGenerator[StreamedResponse]:
        """Send a request; its response, once the head has come. Leaving the block before the end of the body cuts
        the connection. Raises as `kuwa.http.client.open_stream` does.
        """
        async with open_stream(
            method, url, headers=headers, body=body, head_timeout_s=self._timeout_s, pool=self._pool
        ) as response:
            self._open.add(response)
            try:
                yield response
            finally:
                self._open.discard(response)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            now = self._loop.time()
            self._pool.sweep(now)
            for response in list(self._open):
                since = response.silent_since
                if since is not None and now - since > self._timeout_s:
                    response.give_up(UpstreamTimeout(f"The provider was silent for {self._timeout_s:g} s."))
