"""How the routes that are no hot path answer with an error: the OpenAI shape, or text on the v1.0 worker routes."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from kuwa.wire.errors import InternalError, InvalidRequest, KuwaError, MethodNotAllowed, NotFound

WORKER_PREFIX = "/v1.0/worker/"


def wants_json(request: Request) -> bool:
    return "application/json" in request.headers.get("accept", "")


def kuwa_error(request: Request, error: Exception) -> Response:
    """A KuwaError as its response. Old executors read text, so their routes say `Failed: …` unless asked for JSON."""
    if not isinstance(error, KuwaError):
        error = InternalError("This request failed inside the kernel; its log says why.")
    headers = {"retry-after": str(error.retry_after_s)} if error.retry_after_s is not None else {}
    if request.url.path.startswith(WORKER_PREFIX) and not wants_json(request):
        return PlainTextResponse(f"Failed: {error.message}", error.status, headers)
    return Response(error.body(), error.status, headers, media_type="application/json")


def http_error(request: Request, error: Exception) -> Response:
    """Starlette's own refusals (no such route, not by this method) in the OpenAI shape."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = dict((error.headers if isinstance(error, HTTPException) else None) or {})
    where = f"{request.method} {request.url.path[:200]}"
    if status == 404:
        answer = NotFound(f"There is no route {where}. GET / shows what this kernel serves.")
    elif status == 405:
        answer = MethodNotAllowed(f"{where} is refused: this route takes {headers.get('Allow', 'another method')}.")
    else:
        answer = InvalidRequest(f"{where} was refused.")
    return Response(answer.body(), answer.status, headers, media_type="application/json")
