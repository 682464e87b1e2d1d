"""The `geminipro` executor: its options, its keys, and the way of a request to Gemini and back."""

from __future__ import annotations

import argparse
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kuwa.builtin.geminipro.answer import Reading
from kuwa.builtin.geminipro.contents import configuration, contents
from kuwa.builtin.geminipro.parameters import TABLE
from kuwa.executor import Embeddings, LLMExecutor, SetupFailed
from kuwa.executor.arguments import UsageError
from kuwa.executor.config_file import read_config
from kuwa.executor.options import add_options, collect
from kuwa.executor.prompt import Message, with_system_prompt
from kuwa.executor.provider.address import check_base_url
from kuwa.executor.provider.context import message_tokens, text_tokens, trim
from kuwa.executor.provider.failures import Origin
from kuwa.executor.provider.keys import Provider, add_key_options, find_keys
from kuwa.executor.provider.proxy import add_proxy_option, find_proxy
from kuwa.wire.errors import ContextLengthExceeded, Unsupported

if TYPE_CHECKING:
    from kuwa.builtin.geminipro.upstream import Upstream
    from kuwa.executor import EmbedRequest, Request
    from kuwa.executor.chunks import Chunk

GOOGLE = Provider("gemini", ("GEMINI_API_KEY", "GOOGLE_API_KEY"), "google_token", "generativelanguage.googleapis.com")
DEFAULT_BASE_URL = f"https://{GOOGLE.host}"
# Google retires dated models within a year or two; the alias goes on naming the current one.
DEFAULT_MODEL = "gemini-flash-latest"
DEFAULT_EMBEDDING_MODEL = "gemini-embedding-001"
DEFAULT_LIMIT = 30720
DEFAULT_TIMEOUT_S = 600.0


class GeminiProExecutor(LLMExecutor):
    LLM_name = "gemini-pro"
    description = "[Cloud model] Google Gemini-Pro. Need API key."
    concurrency = 100
    capabilities = ("tools", "images", "audio", "files", "videos", "response_format", "logprobs", "n")
    handles_stop = True
    secret_options = ("--api_key",)

    def extend_arguments(self, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("Model Options")
        add_key_options(group.add_argument, GOOGLE)
        group.add_argument("--base_url", default=DEFAULT_BASE_URL, help="Base URL of Gemini's API, or of a proxy to it")
        group.add_argument("--model", default=DEFAULT_MODEL, help="Name of the model")
        group.add_argument(
            "--embedding_model", default=DEFAULT_EMBEDDING_MODEL, help="Name of the model for embeddings"
        )
        group.add_argument("--limit", type=int, default=DEFAULT_LIMIT, help="Maximum number of tokens in a prompt")
        group.add_argument("--system_prompt", default=None, help="System prompt for conversations without one")
        group.add_argument("--no_system_prompt", action="store_true", help="Do not add a system prompt")
        group.add_argument("--timeout", type=float, default=DEFAULT_TIMEOUT_S, help="Read timeout in seconds")
        add_proxy_option(group.add_argument)
        add_options(parser, TABLE)

    def setup(self) -> None:
        check_base_url(self.args.base_url, DEFAULT_BASE_URL)
        for option in ("limit", "timeout"):
            if getattr(self.args, option) <= 0:
                raise UsageError(f"--{option} is {getattr(self.args, option)}; it must be above 0")
        self.defaults = collect(self.args, TABLE, read_config(self.args.generation_config))
        self.proxy = find_proxy(self.args, self.environment)
        self.keys = find_keys(self.args, self.environment, GOOGLE, Path.home())
        self.provider_key_field = self.keys.form_field
        if not self.keys:
            logging.getLogger(__name__).warning("geminipro has no API key of its own. %s", self.keys.ways())
        # Their lines name whole requests; the executor's own log has one for what fails.
        for name in ("google_genai", "httpx2", "httpcore2"):
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            import_module("google.genai")  # a second's work: here in the thread, not on the event loop
        except ImportError as error:
            raise SetupFailed(
                f"geminipro needs the google-genai package, which is not installed ({error}): "
                "pip install 'kuwa[gemini]'"
            ) from error

    async def serve_startup(self) -> None:
        from kuwa.builtin.geminipro.upstream import Upstream

        self.upstream: Upstream = Upstream(self.args.base_url, self.args.timeout, self.proxy)

    async def shutdown(self) -> None:
        await self.upstream.close()

    async def llm_compute(self, request: Request) -> AsyncIterator[Chunk]:
        origin = self._origin(request.provider_key, self.args.model)
        config = configuration(request, self.defaults, self.args.model)
        prompt = "" if self.args.no_system_prompt else self.args.system_prompt or ""
        messages = await self._within_limit(with_system_prompt(request.messages, prompt), request, origin)
        instruction, turns = contents(messages)
        if instruction is not None:
            config["system_instruction"] = instruction
        reading = Reading(origin)
        async with aclosing(self.upstream.answer(turns, config, origin)) as responses:
            async for response in responses:
                for chunk in reading.chunks(response):
                    yield chunk
        for chunk in reading.end():
            yield chunk

    async def embed(self, request: EmbedRequest) -> Embeddings:
        texts = [text for text in request.inputs if isinstance(text, str)]
        if len(texts) != len(request.inputs):
            raise Unsupported("Gemini embeds texts, not token ids.", param="input")
        origin = self._origin(request.provider_key, self.args.embedding_model)
        vectors = await self.upstream.embed(texts, request.dimensions, origin)
        return Embeddings(vectors, sum(map(text_tokens, texts)))

    def _origin(self, brought: str, model: str) -> Origin:
        key, source = self.keys.choose(brought)
        return Origin(base_url=self.args.base_url, model=model, key=key, key_source=source, wants_path=False)

    async def _within_limit(self, messages: list[Message], request: Request, origin: Origin) -> list[Message]:
        """The messages that fit into `--limit`: by an estimate from above where that is enough, else as Gemini
        counts. Old turns go only where the request allows it; raises ContextLengthExceeded otherwise.
        """
        limit: int = self.args.limit
        estimated = sum(map(message_tokens, messages))
        if estimated <= limit:
            return messages
        counted = await self.upstream.count_tokens(_all_turns(messages), origin)
        if counted <= limit:
            return messages
        if not request.trim_history:
            raise ContextLengthExceeded(
                f"The prompt has {counted} tokens; this executor takes {limit} (see --limit).", param="messages"
            )
        # The estimate, corrected by what Gemini counted; the answer has a limit of its own.
        window = int(limit * estimated / max(counted, 1))
        kept, request.trimmed_messages = trim(messages, window, {"max_tokens": 1})
        return kept


def _all_turns(messages: list[Message]) -> list[dict[str, Any]]:
    """The turns to count, the system instruction as one of them: the API counts no instruction by itself."""
    instruction, turns = contents(messages)
    return turns if instruction is None else [{"role": "user", **instruction}, *turns]
