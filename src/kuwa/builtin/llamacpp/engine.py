"""The llama.cpp child: how it is started, and HTTP spoken to it.

Owned by the executor, on its event loop. A request that was running when the child died gets EngineLost. Each start
draws a new API key, so that nobody else on the machine can use the child, and each request has a connection of its
own: llama.cpp's server drops pooled ones after a stream, and closing the connection is how a slot is freed at once.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

import msgspec

from kuwa.builtin.llamacpp.child import ChildConfig
from kuwa.executor.supervision import Child, Supervisor
from kuwa.http.client import StreamedResponse, open_stream
from kuwa.http.events import NoEnd, read_events
from kuwa.wire.errors import (
    BadUpstream,
    ContextLengthExceeded,
    EngineLost,
    InvalidRequest,
    KuwaError,
    NoReplica,
    UnreadableAnswer,
    Unsupported,
    UpstreamLost,
    UpstreamTimeout,
)
from kuwa.wire.json import BadJson, decode, fields_in
from kuwa.wire.openai import Error, count_of, decode_whole

T = TypeVar("T")

CALL_TIMEOUT_S = 60.0
"""For calls that need no model: rendering a template, tokenizing."""
ENDS_WITHOUT_DONE = ("/infill",)
"""Of llama.cpp's own routes the stream simply ends; a child that dies breaks its framing, which is an error."""
MAX_ANSWER_BYTES = 256 * 1024 * 1024


class EngineError(msgspec.Struct, frozen=True):
    """llama.cpp's error object."""

    message: str = ""
    type: str = ""
    n_prompt_tokens: int = 0
    n_ctx: int = 0

    @classmethod
    def of(cls, value: object) -> EngineError:
        """The value of `error`, with the figures that only llama.cpp gives."""
        error, fields = Error.of(value) or Error(), fields_in(value)
        tokens, context = count_of(fields.get("n_prompt_tokens")), count_of(fields.get("n_ctx"))
        return cls(error.message, error.type, tokens or 0, context or 0)


_ERROR = re.compile(r"[\d.]+ E +|(?=.*GGML_ASSERT)")
"""What an error in llama.cpp's log begins with (the time since its start and the level), or a failed assertion."""

_OF_THE_REQUEST = re.compile(
    r"Failed to parse (?:tools|messages|tool_choice|tool call arguments|grammar|json_schema)"
    r"|Failed to initialize samplers|JSON schema (?:error|conversion failed)|Unable to generate parser"
    r"|Unknown reasoning format|Cannot use |\[json\.exception\."
)
"""How llama.cpp's reports begin that are about the request, though its status says that it failed itself."""
_TOO_LARGE = re.compile(r"input \((\d+) tokens\) is too large to process")
UNREADABLE = "does not match the expected"
"""What llama.cpp says of an answer of the model's that it cannot read."""

_ERROR_DATA = b'{"error"'


async def _started(config: ChildConfig) -> Child:
    api_key = secrets.token_urlsafe(32)
    told = msgspec.structs.replace(config, parent=os.getpid(), api_key=api_key)
    return await Child.start("kuwa.builtin.llamacpp.child", told, name="llama.cpp", api_key=api_key, cause=_ERROR)


class Engine(Supervisor):
    """llama.cpp with one model, kept alive from `start` to `stop`."""

    def __init__(self, config: ChildConfig) -> None:
        super().__init__("llama.cpp", config.model_path, lambda: _started(config))

    async def call(self, path: str, payload: dict[str, Any]) -> Any:
        """POST `payload` to the child and decode its whole answer. Raises EngineLost and the child's errors."""
        return await self._whole("POST", path, payload, CALL_TIMEOUT_S, decode)

    async def ask(self, path: str, payload: dict[str, Any], read: Callable[[bytes], T], *, timeout_s: float) -> T:
        """POST `payload` and `read` the whole answer, BadJson meaning that it is none. Raises as `call` does."""
        return await self._whole("POST", path, payload, timeout_s, read)

    async def get(self, path: str) -> Any:
        """What the child says of itself at `/props`, `/slots` and the like. Raises as `call` does."""
        return await self._whole("GET", path, None, CALL_TIMEOUT_S, decode)

    async def events(self, path: str, payload: dict[str, Any]) -> AsyncGenerator[bytes]:
        """POST `payload`, which asks for a stream, and yield the data of its events up to `[DONE]`.

        Closing the generator closes the connection, which frees the child's slot. Raises EngineLost when the
        child dies, and the child's own errors as ours.
        """
        async with self._open("POST", path, payload) as (child, response):
            errs = False  # its own error is the last event that it sends
            try:
                async with aclosing(read_events(response, "The llama.cpp engine")) as events:
                    async for datas in events:
                        child.answered = True
                        errs = datas[-1].startswith(_ERROR_DATA)
                        for data in datas:
                            yield data
            except NoEnd as error:
                if path not in ENDS_WITHOUT_DONE and not errs:
                    raise EngineLost("The llama.cpp engine ended its answer without an end.") from error

    async def _whole(
        self, method: str, path: str, payload: dict[str, Any] | None, timeout_s: float, read: Callable[[bytes], T]
    ) -> T:
        try:
            async with asyncio.timeout(timeout_s), self._open(method, path, payload) as (_, response):
                return read(await response.read(MAX_ANSWER_BYTES))
        except (TimeoutError, BadJson) as error:
            raise BadUpstream(f"The llama.cpp engine gave no sound answer to {path}.") from error

    @asynccontextmanager
    async def _open(
        self, method: str, path: str, payload: dict[str, Any] | None
    ) -> AsyncGenerator[tuple[Child, StreamedResponse]]:
        child = self.child()
        body = b"" if payload is None else msgspec.json.encode(payload)
        headers = (child.authorization, (b"content-type", b"application/json"))
        try:
            async with open_stream(method, child.url + path, headers=headers, body=body) as response:
                if response.status != 200:
                    raise refusal(response.status, await response.read())
                yield child, response
        except (UpstreamLost, NoReplica, UpstreamTimeout) as error:
            raise EngineLost("The llama.cpp engine died while it was answering; it is being started again.") from error


def refusal(status: int, body: bytes) -> KuwaError:
    """What the child answered with an error status, as an error of ours."""
    try:
        error = EngineError.of(decode_whole(body).fault)
    except BadJson:
        error = EngineError()
    return engine_error(status, error)


def engine_error(status: int, error: EngineError) -> KuwaError:
    """llama.cpp's error object as an error of ours."""
    message = error.message or f"llama.cpp answered with status {status}."
    if error.type == "exceed_context_size_error":
        return ContextLengthExceeded(
            f"The prompt has {error.n_prompt_tokens} tokens, and the model's context holds {error.n_ctx}. "
            "Shorten the conversation, or start the executor with a larger --context_window.",
            param="messages",
        )
    if (found := _TOO_LARGE.match(message)) is not None:
        return ContextLengthExceeded(
            f"The input has {found[1]} tokens, more than the model's context holds. Shorten it, or start the executor "
            "with a larger --context_window.",
            param="input",
        )
    if error.type == "not_supported_error" or status == 501:
        return Unsupported(message)
    if UNREADABLE in message:
        return UnreadableAnswer(f"The model's answer cannot be read: {message}. Ask again, or with another seed.")
    if status in (400, 404, 413, 422) or _OF_THE_REQUEST.match(message):
        return InvalidRequest(message)
    if status in (401, 503):
        return EngineLost(f"The llama.cpp engine is not ready: {message}")
    return BadUpstream(f"The llama.cpp engine failed: {message}")
