"""The request ids of the routes behind the framework: the same two headers that every chat is answered with."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kuwa.wire.names import RequestIds, echoable_request_id


class WithRequestIds:
    """Wraps the application: `x-kuwa-request-id` is ours, `x-request-id` the client's own or else ours again."""

    def __init__(self, app: ASGIApp, ids: RequestIds) -> None:
        self._app = app
        self._ids = ids

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        own = self._ids.draw()
        echoed = echoable_request_id(Headers(scope=scope).get("x-request-id", "")) or own

        async def send_with_ids(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-kuwa-request-id"] = own
                headers["x-request-id"] = echoed
            await send(message)

        await self._app(scope, receive, send_with_ids)
