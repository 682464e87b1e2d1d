"""What is sent to llama.cpp's server for a request. Pure; the executor calls it and the engine sends it.

Only known fields are passed on: llama.cpp's server would also take file paths, slots and adapters from a request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from kuwa.builtin.llamacpp.calls import Enforced
from kuwa.builtin.llamacpp.sampling import PARAMETERS
from kuwa.executor.options import merge
from kuwa.executor.prompt import Message, text_of
from kuwa.executor.request import Request
from kuwa.wire.errors import InvalidRequest

PASSED_ON = (
    *("n", "logprobs", "top_logprobs", "parallel_tool_calls", "chat_template_kwargs"),
    *("reasoning_format", "add_generation_prompt", "continue_final_message", "lora"),
)
"""Fields that are no generation options and mean the same to llama.cpp."""


def check_adapters(asked: Any, count: int) -> None:
    """The adapters' scales of one request: `[{"id": 0, "scale": 0.5}]`. Raises InvalidRequest."""
    if asked is None:
        return
    try:
        scales = msgspec.convert(asked, list[AdapterScale])
    except msgspec.ValidationError as error:
        raise InvalidRequest(f'lora is a list such as [{{"id": 0, "scale": 0.5}}]: {error}.', param="lora") from error
    strange = [scale.id for scale in scales if not 0 <= scale.id < count]
    if strange:
        raise InvalidRequest(f"There is no adapter {strange[0]}: this model has {count}.", param="lora")


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
        payload.update(tool_choice="none", response_format=_json_schema(calls.schema))
    elif request.response_format is not None:
        payload["response_format"] = request.response_format
    return payload


def completion_payload(request: Request, defaults: Mapping[str, Any], prompt: str) -> dict[str, Any]:
    """The body for `/v1/completions`: the prompt as it stands, without a chat template."""
    return {**_common(request, defaults), "prompt": prompt}


def infill_payload(request: Request, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The body for `/infill`: what stands before and behind the gap that the model is to fill."""
    payload = _common(request, defaults)
    payload.update(input_prefix=text_of(request.messages[0]), input_suffix=request.body["suffix"])
    if "max_tokens" in payload:
        payload["n_predict"] = payload.pop("max_tokens")
    return payload


def _json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "call", "schema": schema}}


def _common(request: Request, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Always a stream: only then does llama.cpp free the slot at once when the connection is closed."""
    payload = merge(defaults, request.parameters, PARAMETERS)
    payload.update((name, request.body[name]) for name in PASSED_ON if request.body.get(name) is not None)
    payload.update(stream=True, stream_options={"include_usage": True})
    return payload
