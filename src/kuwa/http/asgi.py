"""An ASGI 3 application as the handler of an `Exchange`: for every route that is not hot.

The request's body is whole before the application starts (the connection bounds it), so `receive` gives it in one
message and after that waits for the client to go away. Lifespan is handled by `Lifespan`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from kuwa.http.exchange import Exchange, HeaderPair, header_lines
from kuwa.wire.errors import InternalError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

log = logging.getLogger("kuwa.http")


class AsgiHandler:
    """Runs `app` in a task per exchange."""

    def __init__(self, app: AsgiApp) -> None:
        self._app = app
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, exchange: Exchange) -> None:
        task = asyncio.get_running_loop().create_task(_Cycle(exchange).run(self._app))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Cycle:
    """One request through the application."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._body_given = False
        self._over = asyncio.Event()
        exchange.on_gone = self._over.set

    async def run(self, app: AsgiApp) -> None:
        exchange = self._exchange
        try:
            await app(self._scope(), self._receive, self._send)
        except OSError as error:
            if not exchange.gone:
                self._broken(error)
        except Exception as error:  # noqa: BLE001 - the request edge: whatever an application raises is answered
            self._broken(error)
        else:
            if not (exchange.ended or exchange.gone):
                self._broken(RuntimeError("the application returned before its response was complete"))

    def _broken(self, error: Exception) -> None:
        exchange = self._exchange
        log.error("%s %s failed", exchange.method, exchange.path, exc_info=error)
        if exchange.gone or exchange.ended:
            return
        if exchange.started:
            exchange.abort()
        else:
            exchange.fail(InternalError("This request failed inside the server; its log says why."))

    def _scope(self) -> MutableMapping[str, Any]:
        exchange = self._exchange
        head = exchange.head
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": head.version,
            "method": head.method,
            "scheme": exchange.scheme,
            "path": head.path,
            "raw_path": head.path.encode(),
            "query_string": head.query,
            "root_path": "",
            "headers": [*head.headers, (b"content-length", b"%d" % len(exchange.body))],
            "client": exchange.peer,
            "server": exchange.local,
            "state": {},
        }

    async def _receive(self) -> Message:
        if not self._body_given:
            self._body_given = True
            return {"type": "http.request", "body": self._exchange.body, "more_body": False}
        await self._over.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        exchange = self._exchange
        if exchange.gone:
            raise OSError("the client is gone")
        if message["type"] == "http.response.start":
            headers = _response_headers(message.get("headers", ()))
            sized = any(name == b"content-length" for name, _ in headers)
            exchange.start(message["status"], header_lines(headers), sized=sized)
            return
        if message["type"] != "http.response.body":
            raise RuntimeError(f"unexpected ASGI message {message['type']!r}")
        if exchange.head.method != "HEAD":
            exchange.write(message.get("body", b""))
        if message.get("more_body", False):
            exchange.flush()
            await exchange.drain()
        else:
            exchange.end()
            self._over.set()


def _response_headers(headers: Any) -> list[HeaderPair]:
    kept: list[HeaderPair] = []
    for name, value in headers:
        if b"\r" in name + value or b"\n" in name + value:
            raise RuntimeError("a response header holds a line break")
        if name.lower() not in (b"connection", b"transfer-encoding"):
            kept.append((name.lower(), value))
    return kept
