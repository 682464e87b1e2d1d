"""The `chatgpt` executor: its options, its keys, and the request body that each request becomes.

What the client sent goes to the provider as it is, but for the model, the stream and Kuwa's own fields; what the
operator set fills in what the client left open. The answer's events come back as they are.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kuwa.builtin.chatgpt.parameters import CHAT_ONLY, PARAMETERS, TOKEN_LIMITS
from kuwa.builtin.chatgpt.window import Window
from kuwa.executor import LLMExecutor, RawAnswer, RawStream
from kuwa.executor.arguments import UsageError
from kuwa.executor.config_file import read_config
from kuwa.executor.options import add_options, collect
from kuwa.executor.prompt import apply_modelfile, with_system_prompt
from kuwa.executor.provider.address import check_base_url
from kuwa.executor.provider.failures import Origin
from kuwa.executor.provider.keys import Provider, add_key_options, find_keys
from kuwa.executor.provider.proxy import add_proxy_option, find_proxy
from kuwa.wire.errors import ContextLengthExceeded

if TYPE_CHECKING:
    from kuwa.builtin.chatgpt.upstream import Upstream
    from kuwa.executor import Embeddings, EmbedRequest, Request

OPENAI = Provider("openai", ("OPENAI_API_KEY",), "openai_token", "api.openai.com")
DEFAULT_BASE_URL = f"https://{OPENAI.host}/v1"
DEFAULT_MODEL = "gpt-3.5-turbo"
DEFAULT_TIMEOUT_S = 600.0
OWN_FIELDS_PREFIX = "kuwa"
# How often a conversation that the provider finds too long is cut and sent again.
CUTS = 2


class ChatGPTExecutor(LLMExecutor):
    LLM_name = "chatgpt"
    description = "[Cloud model] OpenAI ChatGPT. Need API key."
    # The provider computes; here a request is one open connection.
    concurrency = 500
    # Everything passes through; what the model behind it cannot do, its server says best.
    capabilities = (
        "tools",
        "images",
        "audio",
        "files",
        "videos",
        "response_format",
        "logprobs",
        "n",
        "suffix",
        "echo",
    )
    handles_stop = True
    passes_on = True
    secret_options = ("--api_key",)

    def extend_arguments(self, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("Model Options")
        add_key_options(group.add_argument, OPENAI)
        group.add_argument("--base_url", default=DEFAULT_BASE_URL, help="Base URL of the OpenAI-compatible API")
        group.add_argument(
            "--model",
            action="append",
            default=argparse.SUPPRESS,
            help="Name of the model in the API; repeat it together with --access_code to serve several "
            f"(default: {DEFAULT_MODEL})",
        )
        group.add_argument(
            "--context_window",
            type=int,
            default=None,
            help="Context length of the model in tokens; older turns are dropped to fit",
        )
        group.add_argument("--system_prompt", default=None, help="System prompt for conversations without one")
        group.add_argument("--no_system_prompt", action="store_true", help="Do not add a system prompt")
        group.add_argument(
            "--tokenizer",
            default=None,
            metavar="PATH",
            help="The model's tokenizer.json, or its folder, to count tokens exactly",
        )
        group.add_argument("--timeout", type=float, default=DEFAULT_TIMEOUT_S, help="Read timeout in seconds")
        add_proxy_option(group.add_argument)
        add_options(parser, PARAMETERS)

    def setup(self) -> None:
        check_base_url(self.args.base_url, DEFAULT_BASE_URL)
        for option in ("context_window", "timeout"):
            value = getattr(self.args, option)
            if value is not None and value <= 0:
                raise UsageError(f"--{option} is {value}; it must be above 0")
        self.models = pair(self.access_codes, getattr(self.args, "model", None) or [DEFAULT_MODEL])
        self.context_length = self.args.context_window or 0
        self.windows = dict.fromkeys(self.models.values(), self._window())
        self.defaults = collect(self.args, PARAMETERS, read_config(self.args.generation_config))
        self.proxy = find_proxy(self.args, self.environment)
        self.keys = find_keys(self.args, self.environment, OPENAI, Path.home())
        self.provider_key_field = self.keys.form_field
        if not self.keys:
            logging.getLogger(__name__).warning("chatgpt has no API key of its own. %s", self.keys.ways())

    def _window(self) -> Window:
        if self.args.tokenizer is None:
            return Window(self.context_length)
        from kuwa.builtin.chatgpt.tokenizer import LocalTokenizer

        return Window(self.context_length, LocalTokenizer(Path(self.args.tokenizer)).count)

    async def serve_startup(self) -> None:
        from kuwa.builtin.chatgpt.upstream import Upstream

        self.upstream: Upstream = Upstream(self.args.base_url, self.args.timeout, self.proxy)

    async def shutdown(self) -> None:
        self.upstream.close()

    async def llm_compute(self, request: Request) -> AsyncIterator[RawAnswer | RawStream]:
        body = self.provider_body(request)
        origin = self._origin(request.provider_key, body["model"])
        window = self.windows[origin.model]
        for cut in range(CUTS + 1):
            if request.kind == "chat" and request.trim_history:
                body["messages"], left_out = window.fit(body["messages"], body)
                request.trimmed_messages += left_out
            try:
                async with self.upstream.call(request.kind, body, origin) as response:
                    yield await self.upstream.answer(response, origin, streams=bool(body.get("stream")))
                return
            except ContextLengthExceeded as refusal:
                # Always before the first event: an answer that has begun fitted.
                if cut == CUTS or not (request.kind == "chat" and request.trim_history):
                    raise
                window = window.corrected(refusal, body["messages"])
                if window.certain:
                    self.windows[origin.model] = window

    async def embed(self, request: EmbedRequest) -> Embeddings:
        origin = self._origin(request.provider_key, self._model(request.access_code))
        fields = {name: value for name, value in own_fields_out(request.body).items() if name != "encoding_format"}
        return await self.upstream.embeddings({**fields, "model": origin.model}, origin)

    def _model(self, access_code: str) -> str:
        """The provider's name for the model; a v1.0 form at the executor's own port may name anything."""
        return self.models.get(access_code) or next(iter(self.models.values()))

    def _origin(self, brought: str, model: str) -> Origin:
        key, source = self.keys.choose(brought)
        return Origin(base_url=self.args.base_url, model=model, key=key, key_source=source)

    def provider_body(self, request: Request) -> dict[str, Any]:
        chat = request.kind == "chat"
        body = fill_in(asked_for(request), self.defaults if chat else for_completions(self.defaults))
        if chat:
            prompt = "" if self.args.no_system_prompt else self.args.system_prompt or ""
            body["messages"] = with_system_prompt(conversation(request), prompt)
        body["model"] = self._model(request.access_code)
        if request.stream:
            body["stream"] = True
            body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        return body


def pair(access_codes: Sequence[str], models: Sequence[str]) -> dict[str, str]:
    """The model behind each access code: one for all of them, or one for each in their order. Raises UsageError."""
    if len(models) == 1:
        return dict.fromkeys(access_codes, models[0])
    if len(models) != len(access_codes):
        raise UsageError(
            f"--model was given {len(models)} times, --access_code {len(access_codes)} times; give one --access_code "
            "for each --model, in the same order"
        )
    return dict(zip(access_codes, models, strict=True))


def asked_for(request: Request) -> dict[str, Any]:
    """The request's own fields, unknown ones included, over the Modelfile's parameters; without Kuwa's fields."""
    return {**request.modelfile.parameters["llm_"], **own_fields_out(request.body)}


def own_fields_out(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if not name.startswith(OWN_FIELDS_PREFIX)}


def conversation(request: Request) -> list[dict[str, Any]]:
    """The messages exactly as the client sent them, with the Modelfile applied where it says anything.

    `request.messages` is made for local models: it has joined text parts and moved system messages to the front.
    """
    sent: list[dict[str, Any]] = request.body.get("messages") or request.conversation
    modelfile = request.modelfile
    if modelfile.override_system_prompt or modelfile.messages or modelfile.before_prompt or modelfile.after_prompt:
        return apply_modelfile(sent, modelfile)
    return sent


def fill_in(asked: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`asked` with the operator's `defaults` where it says nothing."""
    if any(asked.get(name) is not None for name in TOKEN_LIMITS):
        defaults = {name: value for name, value in defaults.items() if name not in TOKEN_LIMITS}
    return {**asked, **{name: value for name, value in defaults.items() if asked.get(name) is None}}


def for_completions(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the operator's `defaults` that the older completions API knows too, and by the same meaning."""
    return {name: value for name, value in defaults.items() if name not in CHAT_ONLY}
