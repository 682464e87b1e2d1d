"""What is sent to llama.cpp's server for a request. Pure; the executor calls it and the engine sends it.

Only known fields are passed on: llama.cpp's server would also take file paths, slots and adapters from a request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from kuwa.builtin.llamacpp.calls import Enforced
from kuwa.builtin.llamacpp.sampling import PARAMETERS
from kuwa.executor.options import merge
from kuwa.executor.prompt import Message, text_of
from kuwa.executor.request import Request
from kuwa.wire.errors import InvalidRequest, Unsupported

PASSED_ON = (
    *("n", "logprobs", "top_logprobs", "parallel_tool_calls", "chat_template_kwargs"),
    *("reasoning_format", "add_generation_prompt", "continue_final_message"),
)
"""Fields that are no generation options and mean the same to llama.cpp."""


def adapter_scales(asked: Any, scales: Sequence[float]) -> dict[str, Any]:
    """How strongly each adapter counts for one request: `scales`, changed by `[{"id": 0, "scale": 0.5}]`.

    All of them are always said: a request that says nothing would be given what llama.cpp read for one that did.
    Raises InvalidRequest.
    """
    chosen = dict(enumerate(scales))
    if asked is not None:
        try:
            wanted = msgspec.convert(asked, list[AdapterScale])
        except msgspec.ValidationError as error:
            reason = f'lora is a list such as [{{"id": 0, "scale": 0.5}}]: {error}.'
            raise InvalidRequest(reason, param="lora") from error
        for adapter in wanted:
            if adapter.id not in chosen:
                raise InvalidRequest(f"There is no adapter {adapter.id}: this model has {len(scales)}.", param="lora")
            chosen[adapter.id] = adapter.scale
    return {"lora": [{"id": number, "scale": scale} for number, scale in chosen.items()]} if chosen else {}


class AdapterScale(msgspec.Struct, frozen=True):
    id: int
    scale: float


def chat_payload(
    request: Request, defaults: Mapping[str, Any], messages: list[Message], calls: Enforced | None
) -> dict[str, Any]:
    """The body for `/v1/chat/completions`. `defaults` are the options set when the executor was started."""
    payload = {**_common(request, defaults), "messages": messages}
    if request.tools:
        payload["tools"] = request.tools
    if calls is not None:
        # "none" as llama.cpp means it: the model sees the tools, and nothing is read as a call.
        wanted = {"type": "json_schema", "json_schema": {"name": "call", "schema": calls.schema}}
        payload.update(tool_choice="none", response_format=wanted)
    elif request.response_format is not None:
        payload["response_format"] = request.response_format
    if "tools" in payload or "response_format" in payload:
        payload["timings_per_token"] = True  # see `answer`: such an answer may end without a count
    return payload


def completion_payload(request: Request, defaults: Mapping[str, Any], prompt: str) -> dict[str, Any]:
    """The body for `/v1/completions`: the prompt as it stands, without a chat template."""
    payload = {**_without_schema(_common(request, defaults)), "prompt": prompt}
    if payload.get("logprobs") is True:  # a chat that goes this way
        payload["logprobs"] = payload.pop("top_logprobs", None) or 1
    return payload


def infill_payload(request: Request, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The body for `/infill`: what stands before and behind the gap that the model is to fill."""
    payload = _without_schema(_common(request, defaults))
    payload.update(input_prefix=text_of(request.messages[0]), input_suffix=request.body["suffix"])
    if "max_tokens" in payload:
        payload["n_predict"] = payload.pop("max_tokens")
    return payload


def _without_schema(payload: dict[str, Any]) -> dict[str, Any]:
    """Off the chat route llama.cpp leaves a schema that it cannot compile unenforced, and says nothing."""
    if payload.get("json_schema") is not None:
        raise Unsupported("json_schema is kept for chats only; a completion takes grammar.", param="json_schema")
    return payload


def _common(request: Request, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Always a stream: only then does llama.cpp free the slot at once when the connection is closed."""
    payload = merge(defaults, request.parameters, PARAMETERS)
    payload.update((name, request.body[name]) for name in PASSED_ON if request.body.get(name) is not None)
    payload.update(stream=True, stream_options={"include_usage": True}, return_progress=True)
    if request.resume is not None:
        # Numbers round otherwise after a prompt that was read in another number of pieces.
        payload["cache_prompt"] = False
    return payload
