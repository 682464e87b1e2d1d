"""The `chatgpt` executor: its options, its keys, and the request body that each request becomes.

What the client sent goes to the provider as it is, but for the model, the stream and Kuwa's own fields; what the
operator set fills in what the client left open. The answer's events come back as they are.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kuwa.builtin.chatgpt.context import trim
from kuwa.builtin.chatgpt.failures import Origin
from kuwa.builtin.chatgpt.parameters import CHAT_ONLY, PARAMETERS, TOKEN_LIMITS
from kuwa.executor import LLMExecutor, RawEvent, SetupFailed
from kuwa.executor.arguments import UsageError
from kuwa.executor.config_file import read_config
from kuwa.executor.options import add_options, collect
from kuwa.executor.prompt import apply_modelfile, with_system_prompt
from kuwa.wire.errors import InvalidApiKey, MissingApiKey

if TYPE_CHECKING:
    from kuwa.builtin.chatgpt.upstream import Upstream
    from kuwa.executor import Request

DEFAULT_BASE_URL = "https://api.openai.com/v1"
KEY_VARIABLE = "OPENAI_API_KEY"
OWN_FIELDS_PREFIX = "kuwa"


class ChatGPTExecutor(LLMExecutor):
    LLM_name = "chatgpt"
    description = "[Cloud model] OpenAI ChatGPT. Need API key."
    # The provider computes; here a request is one open connection, of which the SDK's pool allows 1000.
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

    def extend_arguments(self, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("Model Options")
        group.add_argument("--api_key", default=None, help=f"The API key; {KEY_VARIABLE} in the environment otherwise")
        group.add_argument(
            "--no_override_api_key", action="store_true", help="Do not let a request bring a key of its own"
        )
        group.add_argument("--base_url", default=DEFAULT_BASE_URL, help="Base URL of the OpenAI-compatible API")
        group.add_argument("--model", default="gpt-3.5-turbo", help="Name of the model, as the API calls it")
        group.add_argument(
            "--context_window",
            type=int,
            default=None,
            help="The model's context in tokens; old turns are cut to it",
        )
        group.add_argument("--system_prompt", default=None, help="The system prompt of conversations without one")
        group.add_argument("--no_system_prompt", action="store_true", help="Put no system prompt before a conversation")
        add_options(parser, PARAMETERS)

    def setup(self) -> None:
        check_base_url(self.args.base_url)
        if self.args.context_window is not None and self.args.context_window < 1:
            raise UsageError(f"--context_window is {self.args.context_window}; it must be at least 1")
        self.context_length = self.args.context_window or 0
        self.defaults = collect(self.args, PARAMETERS, read_config(self.args.generation_config))
        self.keys = Keys(
            option=(self.args.api_key or "").strip(),
            environment=self.environment.get(KEY_VARIABLE, "").strip(),
            requests_may_bring=not self.args.no_override_api_key,
        )
        if not self.keys:
            logging.getLogger(__name__).warning("chatgpt has no API key of its own. %s", self.keys.ways())
        if not self.in_debug():
            # A line for every request, where the executor's own log has one only for what fails.
            logging.getLogger("httpx2").setLevel(logging.WARNING)
        try:
            import_module("openai")  # a second's work: here in the thread, not on the event loop
        except ImportError as error:
            raise SetupFailed(
                f"chatgpt needs the openai package, which is not installed ({error}): pip install 'kuwa[chatgpt]'"
            ) from error

    async def serve_startup(self) -> None:
        from kuwa.builtin.chatgpt.upstream import Upstream

        self.upstream: Upstream = Upstream(self.args.base_url)

    async def shutdown(self) -> None:
        await self.upstream.close()

    async def llm_compute(self, request: Request) -> AsyncIterator[RawEvent]:
        key, source = self.keys.choose(request.provider_key)
        origin = Origin(base_url=self.args.base_url, model=self.args.model, key=key, key_source=source)
        body = self.provider_body(request)
        async with aclosing(self.upstream.events(request.kind, body, origin)) as events:
            async for data in events:
                yield RawEvent(data)

    def provider_body(self, request: Request) -> dict[str, Any]:
        chat = request.kind == "chat"
        body = fill_in(asked_for(request), self.defaults if chat else for_completions(self.defaults))
        if chat:
            body["messages"] = self._messages(request, body)
        body["model"] = self.args.model
        # Always streamed: a client that goes away then closes the provider's stream, whatever it asked for.
        body["stream"] = True
        body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        return body

    def _messages(self, request: Request, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        prompt = "" if self.args.no_system_prompt else self.args.system_prompt or ""
        messages = with_system_prompt(conversation(request), prompt)
        if request.trim_history and self.args.context_window:
            messages, request.trimmed_messages = trim(messages, self.args.context_window, body)
        return messages


class Keys:
    """Which API key a request is sent with: the user's own, else the operator's."""

    def __init__(self, *, option: str, environment: str, requests_may_bring: bool) -> None:
        self._requests_may_bring = requests_may_bring
        self._own = (option, "--api_key") if option else (environment, KEY_VARIABLE)

    def __bool__(self) -> bool:
        """Whether the operator gave one."""
        return bool(self._own[0])

    def choose(self, brought: str) -> tuple[str, str]:
        """The key and where it came from, for error texts.

        `brought` is the key that came with the request. Raises MissingApiKey naming the ways to give one.
        """
        if brought and self._requests_may_bring:
            if not (brought.isascii() and brought.isprintable() and " " not in brought):
                raise InvalidApiKey("The API key that came with the request holds characters that no key has.")
            return brought, "the request"
        if self:
            return self._own
        raise MissingApiKey(f"This model needs an API key. {self.ways()}")

    def ways(self) -> str:
        """How a key can be given."""
        brought = "Send one with the request (header X-Kuwa-Provider-Key, or openai_token in the v1.0 form), or have"
        return (
            f"{brought if self._requests_may_bring else 'Have'} the executor started with --api_key or with "
            f"{KEY_VARIABLE} in its environment; a server that asks for no key takes any, such as --api_key dummy."
        )


def asked_for(request: Request) -> dict[str, Any]:
    """The request's own fields, unknown ones included, over the Modelfile's parameters; without Kuwa's fields."""
    body = {name: value for name, value in request.body.items() if not name.startswith(OWN_FIELDS_PREFIX)}
    return {**request.modelfile.parameters["llm_"], **body}


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


def check_base_url(url: str) -> None:
    """Raises UsageError for what is no base URL of an API."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        parts, sound = None, False
    if parts is None or not sound:
        raise UsageError(f"--base_url is {url!r}; it looks like {DEFAULT_BASE_URL}")
    if parts.username is not None:
        raise UsageError("--base_url holds a user name, which would take the place of the API key; leave it out")
