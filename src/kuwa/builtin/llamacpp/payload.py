"""What is sent to llama.cpp's server for a request. Pure; the executor calls it and the engine sends it.

Only known fields are passed on: llama.cpp's server would also take file paths, slots and adapters from a request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from kuwa.builtin.llamacpp.bounds import check_biases, check_grammar, check_schemas
from kuwa.builtin.llamacpp.calls import Enforced
from kuwa.builtin.llamacpp.sampling import PARAMETERS
from kuwa.executor.options import Option, merge
from kuwa.executor.prompt import Message, text_of
from kuwa.executor.request import Request
from kuwa.wire.errors import InvalidRequest, Unsupported

PASSED_ON = (
    Option("n", int, "Answers to one prompt", low=1),
    Option("parallel_tool_calls", bool, "Whether several calls may come at once"),
    Option("chat_template_kwargs", dict, "What the chat template is told beside the messages"),
    Option("reasoning_format", str, "Where reasoning goes", choices=("none", "auto", "deepseek", "deepseek-legacy")),
    Option("add_generation_prompt", bool, "Whether the prompt ends where the answer begins"),
    Option("continue_final_message", bool, "Whether the answer goes on with the last message"),
)
"""Fields that are no generation options and mean the same to llama.cpp."""
LOGPROBS = {
    "chat": (Option("logprobs", bool, ""), Option("top_logprobs", int, "", low=0, high=20)),
    "completion": (Option("logprobs", int, "", low=0, high=20),),
}
LARGEST = 2**31 - 1
"""llama.cpp's numbers have 32 bits; larger ones would wrap around to something else."""
CONTEXT_BOUNDS = ("max_tokens", "repeat_last_n", "dry_penalty_last_n")
"""Numbers of tokens: more of them than the context has there cannot be."""


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


def check(request: Request) -> None:
    """Raises InvalidRequest for what could end or stop llama.cpp. To be called before anything is sent there."""
    asked = merge({}, request.parameters, PARAMETERS)
    if "logit_bias" in asked:
        check_biases(asked["logit_bias"])
    if "grammar" in asked:
        check_grammar(asked["grammar"])
    if "json_schema" in asked:
        check_schemas([asked["json_schema"]], "json_schema")
        if asked.get("grammar"):
            raise InvalidRequest("grammar and json_schema each say how to answer; give one.", param="json_schema")
    check_schemas([tool["function"].get("parameters", {}) for tool in request.tools], "tools")
    wanted = _format(request.response_format or {})
    if "json_schema" in wanted:
        check_schemas([wanted["json_schema"]["schema"]], "response_format")


def chat_payload(
    request: Request, defaults: Mapping[str, Any], messages: list[Message], calls: Enforced | None, context: int
) -> dict[str, Any]:
    """The body for `/v1/chat/completions`. `defaults` are the options set when the executor was started, `context` is
    the model's, in tokens."""
    payload = {**_common(request, defaults, context), "messages": messages}
    if request.tools:
        payload["tools"] = request.tools
    if calls is not None:
        # "none" as llama.cpp means it: the model sees the tools, and nothing is read as a call.
        wanted = {"type": "json_schema", "json_schema": {"name": "call", "schema": calls.schema}}
        payload.update(tool_choice="none", response_format=wanted)
    elif request.response_format is not None:
        payload["response_format"] = _format(request.response_format)
    if "tools" in payload or "response_format" in payload:
        payload["timings_per_token"] = True  # see `answer`: such an answer may end without a count
    return payload


def _format(asked: dict[str, Any]) -> dict[str, Any]:
    """A request's `response_format`; llama.cpp takes one that lacks its schema for any JSON. Raises InvalidRequest."""
    kind = asked.get("type", "text")
    if kind in ("text", "json_object") and not asked.get("schema"):
        return {"type": kind}
    if kind == "json_object":  # llama.cpp's own way to give a schema
        asked = {"type": "json_schema", "json_schema": asked}
        kind = "json_schema"
    if kind != "json_schema":
        raise InvalidRequest(
            f"response_format has the type {str(kind)[:40]!r}; it is text, json_object or json_schema.",
            param="response_format",
        )
    holder = asked.get("json_schema")
    schema = cast("dict[str, Any]", holder).get("schema") if isinstance(holder, dict) else None
    if not isinstance(schema, dict):
        raise InvalidRequest(
            'response_format.json_schema must hold the schema: {"name": …, "schema": {…}}.', param="response_format"
        )
    return {"type": kind, "json_schema": {"name": "answer", "schema": schema}}


def completion_payload(request: Request, defaults: Mapping[str, Any], prompt: str, context: int) -> dict[str, Any]:
    """The body for `/v1/completions`: the prompt as it stands, without a chat template."""
    payload = {**_without_schema(_common(request, defaults, context)), "prompt": prompt}
    if payload.get("logprobs") is True:  # a chat that goes this way
        payload["logprobs"] = payload.pop("top_logprobs", None) or 1
    return payload


def infill_payload(request: Request, defaults: Mapping[str, Any], context: int) -> dict[str, Any]:
    """The body for `/infill`: what stands before and behind the gap that the model is to fill."""
    payload = _without_schema(_common(request, defaults, context))
    payload.update(input_prefix=text_of(request.messages[0]), input_suffix=request.body["suffix"])
    if "max_tokens" in payload:
        payload["n_predict"] = payload.pop("max_tokens")
    return payload


def _without_schema(payload: dict[str, Any]) -> dict[str, Any]:
    """Off the chat route llama.cpp leaves a schema that it cannot compile unenforced, and says nothing."""
    if payload.get("json_schema") is not None:
        raise Unsupported("json_schema is kept for chats only; a completion takes grammar.", param="json_schema")
    return payload


def _common(request: Request, defaults: Mapping[str, Any], context: int) -> dict[str, Any]:
    """Always a stream: only then does llama.cpp free the slot at once when the connection is closed."""
    payload = merge(defaults, request.parameters, PARAMETERS)
    if "stop" in payload:
        payload["stop"] = [text for text in payload["stop"] if text]
    for option in PARAMETERS:
        if option.type is int and option.name != "seed" and option.name in payload:
            bound = context if option.name in CONTEXT_BOUNDS else LARGEST
            payload[option.name] = min(payload[option.name], bound)
    payload |= merge({}, request.body, (*PASSED_ON, *LOGPROBS[request.kind]))
    payload.update(stream=True, stream_options={"include_usage": True}, return_progress=True)
    if request.resume is not None:
        # Numbers round otherwise after a prompt that was read in another number of pieces.
        payload["cache_prompt"] = False
    return payload
