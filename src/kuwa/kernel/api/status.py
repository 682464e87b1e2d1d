"""The routes that say how the kernel is and what it serves: health, metrics, the OpenAI model list."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from kuwa import __version__
from kuwa.kernel.dispatcher import Dispatcher
from kuwa.kernel.identity import principal
from kuwa.kernel.registry import Registry
from kuwa.wire.errors import Draining, InvalidRequest, NotFound
from kuwa.wire.json import BadJson, decode
from kuwa.wire.metrics import Exposition

RequestStatus = Callable[[str], dict[str, Any] | None]
Cancel = Callable[[str, str], bool]


class StatusApi:
    """`clock_offset` turns monotonic seconds into seconds since the epoch; `request_status` is the chat's own."""

    def __init__(
        self,
        registry: Registry,
        dispatcher: Dispatcher,
        exposition: Exposition,
        *,
        request_status: RequestStatus,
        cancel: Cancel,
        draining: Callable[[], bool],
        clock_offset: float,
    ) -> None:
        self._registry = registry
        self._dispatcher = dispatcher
        self._exposition = exposition
        self._request_status = request_status
        self._cancel = cancel
        self._draining = draining
        self._clock_offset = clock_offset

    async def health(self, request: Request) -> Response:
        del request
        return _json({"status": "draining" if self._draining() else "ok", "version": __version__})

    async def live(self, request: Request) -> Response:
        del request
        return _json({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        del request
        if self._draining():
            raise Draining("This kernel is stopping and takes no new requests.")
        return _json({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        body, content_type = self._exposition.render(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    async def models(self, request: Request) -> Response:
        del request
        return _json({"object": "list", "data": [self._model(code) for code in self._registry.codes()]})

    async def model(self, request: Request) -> Response:
        code = request.path_params["id"]
        if code not in self._registry.codes():
            raise self._dispatcher.not_found(code)
        return _json(self._model(code))

    async def request(self, request: Request) -> Response:
        request_id = request.path_params["id"]
        status = self._request_status(request_id)
        if status is None:
            raise NotFound(f"No request {request_id[:100]!r} is queued or running; it may have ended.")
        return _json(status)

    async def cancel(self, request: Request) -> Response:
        """End a request that is queued or running. By its own principal only: with the same bearer token, or else
        with the same `user` in a JSON body, or else from the same address."""
        request_id = request.path_params["id"]
        token = request.headers.get("authorization", "").encode()
        host = request.client.host if request.client is not None else ""
        user = _named_user(await request.body())
        if not self._cancel(request_id, principal(token, user, host).id):
            raise NotFound(f"No request {request_id[:100]!r} of yours is queued or running; it may have ended.")
        return _json({"id": request_id, "object": "request", "cancelled": True})

    def _model(self, code: str) -> dict[str, Any]:
        replicas = self._registry.replicas(code)
        first_served = self._registry.first_served(code) or 0.0
        model: dict[str, Any] = {
            "id": code,
            "object": "model",
            "created": int(first_served + self._clock_offset),
            "owned_by": "kuwa",
        }
        # A request may go to any of them, so what all of them take is what can be promised.
        lengths = [replica.facts.context_length for replica in replicas if replica.facts.context_length > 0]
        if lengths:
            model["max_model_len"] = min(lengths)
        return model


class _Named(msgspec.Struct):
    user: str | None = None


def _named_user(body: bytes) -> str | None:
    """The field `user` of a JSON body, if there is a body. Raises InvalidRequest."""
    if not body:
        return None
    try:
        return decode(body, _Named).user
    except BadJson as error:
        raise InvalidRequest(f"The request body does not fit: {error}.") from error


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
