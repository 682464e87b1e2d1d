"""The executor as a server: its routes, its slots, and one task per request. `run` makes it and gives it sockets.

A request's way: `intake` reads it, `job` holds a slot for it and drives `compute`, `answer` makes bytes of each
chunk, the exchange sends them. Everything here runs on the server's event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from kuwa.executor.compute import Compute
from kuwa.executor.figures import Figures
from kuwa.executor.intake import Intake
from kuwa.executor.interface import Executor
from kuwa.executor.job import Job, brought_key
from kuwa.executor.slots import Slots
from kuwa.executor.vectors import embeddings_body, ranking_body
from kuwa.executor.wires import OPENAI_WIRE, V1_WIRE, Wire
from kuwa.http.exchange import Exchange, Handler
from kuwa.wire import form as form_wire
from kuwa.wire.errors import (
    Draining,
    ErrorShape,
    InternalError,
    InvalidRequest,
    KuwaError,
    MethodNotAllowed,
    NoReplica,
    NotFound,
    RequestCancelled,
)
from kuwa.wire.lease import EndedRequest
from kuwa.wire.names import RequestIds, echoable_request_id

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request as HttpRequest
    from starlette.responses import Response

State = Literal["starting", "ready", "draining"]
Begin = Callable[[Intake, Job], Awaitable[None]]

log = logging.getLogger("kuwa.executor")

MAX_UNTOLD = 1024


class ExecutorServer:
    """One executor behind its routes. `state` is what the kernel is told; requests are served while `ready`.

    `capabilities` are none before `setup()` has found out what the executor can do.
    `untold` holds what cut requests cost until the kernel has been told.
    """

    def __init__(self, executor: Executor) -> None:
        """Raises SetupFailed where `llm_compute` cannot be called."""
        self.executor = executor
        self.settings = executor.settings
        self.state: State = "starting"
        self.slots = Slots(executor.settings.concurrency)
        self.chunks = 0
        self.untold: deque[EndedRequest] = deque(maxlen=MAX_UNTOLD)
        self.compute = Compute(executor)
        self._started = int(time.time())
        self._ids = RequestIds()
        self._jobs: set[Job] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._intake: Intake | None = None
        self.fingerprint = ""
        self.capabilities: list[str] = []
        self.figures: Figures | None = None

    def ready(self) -> None:
        """`setup()` has returned: it is known what the executor can do, requests are served from now on."""
        executor = self.executor
        self.capabilities = [*(executor.serves or self._overridden()), "abort", *executor.capabilities]
        self._intake = Intake(
            executor.access_codes,
            self.capabilities,
            trim_history=executor.settings.trim_history,
            passes_on=executor.passes_on,
        )
        if "resume" in executor.capabilities:
            self.fingerprint = executor.fingerprint()
        self.figures = Figures(executor.access_codes[0], lambda: self.slots.running, lambda: self.slots.waiting)
        self.state = "ready"

    def _overridden(self) -> tuple[str, ...]:
        """What an executor serves that does not say: everybody chats, and who wrote `embed` or `rerank` does that."""
        kind = type(self.executor)
        hooks = {"embeddings": kind.embed is not Executor.embed, "rerank": kind.rerank is not Executor.rerank}
        return ("chat", "completions", *(name for name, own in hooks.items() if own))

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and wait for those under way; whether all of them ended."""
        self.state = "draining"
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def cancel_all(self, why: KuwaError) -> list[Job]:
        """End what runs; `why` is what its clients are told."""
        jobs = list(self._jobs)
        for job in jobs:
            job.cancel(why)
        return jobs

    # ---- routes --------------------------------------------------------------------------------------------

    def hot(self) -> Mapping[str, Handler]:
        """The routes that compute something: POST on exactly these paths."""
        return {
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._completion,
            "/v1/embeddings": self._embeddings,
            "/v1/rerank": self._rerank,
            self.settings.executor_path: self._form,
        }

    def errors_of(self) -> Mapping[str, ErrorShape]:
        """How errors are worded on the routes of the v1.0 wire; on all others as OpenAI words them."""
        return {self.settings.executor_path: V1_WIRE.refusals}

    @property
    def abort_path(self) -> str:
        """The v1.0 wire's abort, a GET that ends what runs."""
        return self.settings.executor_path + "/abort"

    def app(self) -> Starlette:
        """All other routes."""
        from starlette.applications import Starlette
        from starlette.responses import Response
        from starlette.routing import Route

        def answer(error: KuwaError) -> Response:
            wait = {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}
            return Response(error.body(), error.status, wait, media_type="application/json")

        def not_found(request: HttpRequest, _: Exception) -> Response:
            path = request.url.path
            if path in self.hot():
                return answer(MethodNotAllowed(f"{path} takes POST."))
            return answer(NotFound(f"This executor has no route {path}."))

        def not_allowed(request: HttpRequest, _: Exception) -> Response:
            return answer(MethodNotAllowed(f"{request.url.path} does not take {request.method}."))

        def kuwa_error(_: HttpRequest, error: Exception) -> Response:
            return answer(error if isinstance(error, KuwaError) else InternalError("See this executor's log."))

        return Starlette(
            routes=[
                Route("/v1/models", self._models),
                Route("/v1/models/{model:path}", self._model),
                Route("/health", self._health),
                Route("/metrics", self._metrics),
                Route(self.abort_path, self._abort),
            ],
            exception_handlers={404: not_found, 405: not_allowed, KuwaError: kuwa_error},
        )

    def _chat(self, exchange: Exchange) -> None:
        self._serve(exchange, lambda intake, job: job.answer(intake.chat(job.id, exchange.body)))

    def _completion(self, exchange: Exchange) -> None:
        self._serve(exchange, lambda intake, job: job.answer(intake.completion(job.id, exchange.body)))

    def _embeddings(self, exchange: Exchange) -> None:
        def begin(intake: Intake, job: Job) -> Awaitable[None]:
            request, as_base64 = intake.embedding(job.id, exchange.body, brought_key(exchange))

            async def work() -> None:
                found = await self.executor.embed(request)
                job.respond(embeddings_body(request.access_code, found, as_base64))

            return work()

        self._serve(exchange, begin)

    def _rerank(self, exchange: Exchange) -> None:
        def begin(intake: Intake, job: Job) -> Awaitable[None]:
            request, with_documents = intake.ranking(job.id, exchange.body, brought_key(exchange))

            async def work() -> None:
                found = await self.executor.rerank(request)
                job.respond(ranking_body(request, found, with_documents))

            return work()

        self._serve(exchange, begin)

    def _form(self, exchange: Exchange) -> None:
        """The v1.0 chat: a form in, raw text out."""
        try:
            form = form_wire.parse_form(exchange.body, max_bytes=len(exchange.body))
            if not form:
                raise InvalidRequest("Received empty request!")
        except KuwaError as error:
            exchange.fail(error)
            return
        language = (exchange.headers.get(b"accept-language") or b"").decode("latin-1")
        self._serve(exchange, lambda intake, job: job.answer(intake.form(job.id, form, language)), V1_WIRE)

    def _serve(self, exchange: Exchange, begin: Begin, wire: Wire = OPENAI_WIRE) -> None:
        """Read the request and start its job; `begin` reads, and gives what computes."""
        given = exchange.headers.get(b"x-kuwa-request-id") or b""
        request_id = echoable_request_id(given.decode("latin-1")) or self._ids.draw()
        job = Job(self, exchange, request_id, wire)
        try:
            job.start(begin(self._serving(), job))
        except KuwaError as error:
            job.fail(error)
            return
        self._jobs.add(job)
        self._idle.clear()

    def _serving(self) -> Intake:
        if self.state == "draining":
            raise Draining("This executor is shutting down; another one may serve the request.")
        if self._intake is None:
            raise NoReplica("This executor is still starting; try again when /health answers 204.")
        return self._intake

    def job_ended(self, job: Job) -> None:
        self._jobs.discard(job)
        if (counts := job.untold_counts()) is not None:
            self.untold.append(
                EndedRequest(
                    request_id=job.id, prompt_tokens=counts.prompt_tokens, completion_tokens=counts.completion_tokens
                )
            )
        if not self._jobs:
            self._idle.set()

    async def _models(self, request: HttpRequest) -> Response:
        del request
        return _json({"object": "list", "data": [self._described(c) for c in self._codes()]})

    async def _model(self, request: HttpRequest) -> Response:
        code = str(request.path_params["model"])
        if code not in self._codes():
            raise NotFound(f"This executor does not serve the model {code!r}.", param="model")
        return _json(self._described(code))

    def _codes(self) -> tuple[str, ...]:
        return self.executor.access_codes if self._intake is not None else ()

    def _described(self, code: str) -> dict[str, Any]:
        described: dict[str, Any] = {"id": code, "object": "model", "created": self._started, "owned_by": "kuwa"}
        if self.executor.context_length:
            described["max_model_len"] = self.executor.context_length
        return described

    async def _health(self, request: HttpRequest) -> Response:
        from starlette.responses import Response

        del request
        if self.state == "starting":
            raise NoReplica("This executor is still starting.")
        if trouble := self.executor.healthy():
            raise NoReplica(trouble)
        return Response(status_code=204)

    async def _metrics(self, request: HttpRequest) -> Response:
        from starlette.responses import Response

        if self.figures is None:
            raise NoReplica("This executor is still starting.")
        body, content_type = self.figures.exposition(request.headers.get("accept", ""))
        return Response(body, media_type=content_type)

    async def _abort(self, request: HttpRequest) -> Response:
        """The v1.0 abort names no request: whatever runs is ended."""
        del request
        jobs = self.cancel_all(RequestCancelled("The request was aborted at the executor."))
        if not jobs:
            return _json({"msg": "No process to abort"})
        said = [await job.ended() for job in jobs]
        return _json({"msg": next((text for text in said if text), "Aborted")})


def _json(content: Any) -> Response:
    from starlette.responses import Response

    return Response(msgspec.json.encode(content), media_type="application/json")
