"""What the framework asks of an executor: the attributes and hooks of `Executor`, each with what holds by default.

`run`, `server`, `job` and `compute` know an executor by this class; `base` adds its command line.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, ClassVar

from kuwa.executor.arguments import Settings
from kuwa.executor.chunks import Chunk
from kuwa.executor.invocation import Invocation
from kuwa.executor.request import Embeddings, EmbedRequest, Ranking, RerankRequest
from kuwa.wire.errors import Unsupported


class Executor:
    """One model under one or more access codes, as the framework sees it. Extend `LLMExecutor`, not this.

    Class attributes a subclass may set:
    - `LLM_name`: the access code where the command line gives none (setting it in `setup`, as of old, works too);
    - `description`: its line in `kuwa-executor --list`, e.g. `"[Tool] Says hello."`;
    - `concurrency`: how many requests are computed at once where `--concurrency` does not say;
    - `capabilities`: what else it can do: `"tools"`, `"images"`, `"response_format"`, `"logprobs"`, `"n"`,
      `"resume"`. A request that needs one that is missing is refused before `llm_compute` sees it;
    - `serves`: which of `"chat"`, `"completions"`, `"embeddings"` and `"rerank"` it answers, where only `setup` finds
      that out. Empty: chat and completions, and what the class's own `embed` and `rerank` stand for;
    - `handles_stop`: True if `llm_compute` ends by itself at the request's `stop` strings; else the framework
      cuts the answer there;
    - `passes_on`: True if `llm_compute` sends the request's own body to another server, which then judges its tools
      and tool calls; else malformed ones are refused before `llm_compute` sees them;
    - `context_length`: in tokens, 0 where unknown; may be set on the object in `setup`;
    - `provider_key_field`: the field of the v1.0 form that holds a user's own key for this model's provider;
    - `secret_options`: options whose value is blotted out of the process's argument list once it has started.
    """

    LLM_name: str | None = None
    description: ClassVar[str] = ""
    concurrency: int = 1
    capabilities: tuple[str, ...] = ()
    serves: tuple[str, ...] = ()
    handles_stop: bool = False
    passes_on: bool = False
    context_length: int = 0
    provider_key_field: str = "openai_token"
    secret_options: ClassVar[tuple[str, ...]] = ()

    args: argparse.Namespace
    settings: Settings
    invocation: Invocation
    environment: Mapping[str, str]
    prog: str
    default_name: str
    on_give_up: Callable[[str], None]

    @property
    def access_codes(self) -> tuple[str, ...]:
        """What clients call this model; final once `setup()` has returned."""
        return self.settings.access_codes or ((self.LLM_name or self.default_name),)

    def setup(self) -> Any:
        """Make ready whatever you need: load the model. May take long; raise `SetupFailed` with a clear text."""

    async def serve_startup(self) -> None:
        """Called on the server's event loop after `setup()`, before the first request."""

    async def shutdown(self) -> None:
        """Called on the server's event loop after the last request."""

    def healthy(self) -> str:
        """Why the executor cannot serve now; empty text while it can. Asked on every `/health`: must be quick."""
        return ""

    def give_up(self, reason: str) -> None:
        """To be called, on the server's event loop, when the executor can never serve again: the process leaves the
        kernel and ends with exit code 4 and `reason`."""
        self.on_give_up(reason)

    def fingerprint(self) -> str:
        """A word (no blanks) that names what the answers depend on: weights, tokenizer, template, dtype, engine and
        its version. Where two executors name the same one and both have the capability `"resume"`, a stream whose
        executor dies is computed again by the other, with the same `seed` among the request's parameters, and the
        client sees one unbroken answer. Empty: the answers of this executor cannot be repeated. Asked once, after
        `setup`."""
        return ""

    def own_seed(self) -> int | None:
        """The seed of requests that bring none; None: a new one is drawn for each."""
        return None

    def llm_compute(self, *args: Any, **kwargs: Any) -> AsyncIterator[Chunk]:
        """Compute one answer. Write it as `async def llm_compute(self, request)` with `yield`.

        Name the arguments you want: `request` (`kuwa.executor.Request`); or, as executors of June 2024 did,
        `history` and `modelfile`; or, as those of May 2024 did, `data` (the form as a dict). `request.messages`
        has the Modelfile applied already; `history` has not.

        Yield `str`, or the chunk types of `kuwa.executor`. A plain generator with `yield` but without `async` runs
        in a thread, so it may block. Raise a `kuwa.wire.errors.KuwaError` for an error the client shall read;
        of any other exception the client learns only that it happened.
        """
        raise NotImplementedError(f"{type(self).__name__} has no llm_compute method; write one")

    def abort(self, *args: Any, **kwargs: Any) -> Any:
        """Called once for each request that is cancelled, while its iterator is being closed. May be `async`, and
        may declare `request`. What it returns is the text that the old wire's abort answers with."""

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Turn texts into vectors."""
        raise Unsupported(f"The model {request.access_code!r} makes no embeddings.")

    async def rerank(self, request: RerankRequest) -> Ranking:
        """Score documents by how well they answer a query."""
        raise Unsupported(f"The model {request.access_code!r} cannot rerank documents.")
