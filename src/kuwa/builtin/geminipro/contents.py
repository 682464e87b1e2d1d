"""What a request becomes on its way to Gemini: OpenAI's messages as contents, its fields as a configuration. Pure.

Both are plain dictionaries in the spelling of Google's SDK, which checks them once more. Attachments that came as
data URLs travel inside the request; other URLs are handed to Google, which fetches them: nothing is fetched here.
"""

from __future__ import annotations

import base64
import binascii
import mimetypes
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

from kuwa.builtin.geminipro.parameters import CATEGORIES, EFFORT_BUDGETS, OPENAI_NAMES, PARAMETERS, TABLE, THINKING
from kuwa.executor.options import merge
from kuwa.executor.prompt import SYSTEM_ROLES, Message, text_of
from kuwa.executor.request import Request
from kuwa.wire import openai
from kuwa.wire.errors import InvalidRequest
from kuwa.wire.json import BadJson, Fields, decode, fields_in, is_object, items_in
from kuwa.wire.openai import parts_of, url_of

_AUDIO_TYPES = {"mp3": "audio/mp3", "wav": "audio/wav", "flac": "audio/flac", "ogg": "audio/ogg", "aac": "audio/aac"}
_MODES = {"auto": "AUTO", "none": "NONE", "required": "ANY"}


def contents(messages: Sequence[Message]) -> tuple[Fields | None, list[Fields]]:
    """The system instruction, if there is one, and the turns. Turns of one role that follow each other are one.

    Raises InvalidRequest for a part that has no meaning for Gemini.
    """
    system = [text_of(message) for message in messages if message.get("role") in SYSTEM_ROLES]
    turns: list[Fields] = []
    called: dict[str, str] = {}
    for message in messages:
        if message.get("role") in SYSTEM_ROLES:
            continue
        role, parts = _turn(message, called)
        if not parts:
            continue
        if turns and turns[-1]["role"] == role:
            turns[-1]["parts"] += parts
        else:
            turns.append({"role": role, "parts": parts})
    instruction: Fields | None = {"parts": [{"text": text} for text in system if text]} if any(system) else None
    return instruction, turns


def _turn(message: Message, called: dict[str, str]) -> tuple[str, list[Fields]]:
    """One message as a role and its parts. `called` remembers which call had which name, for the results."""
    role = message.get("role")
    if role in ("tool", "function"):
        return "user", [_tool_result(message, called)]
    parts = list(_parts(message.get("content")))
    if role == "assistant":
        calls = items_in(message.get("tool_calls"))
        return "model", [*parts, *(_tool_call(fields_in(call), called) for call in calls)]
    return "user", parts


def _parts(content: Any) -> Iterator[Fields]:
    for part in parts_of(content or None):
        match part.get("type"):
            case "text" | "refusal":
                yield {"text": openai.text_of([part])}
            case "image_url":
                yield _medium(_url(part, "image_url"), "image/jpeg")
            case "video_url":
                yield _medium(_url(part, "video_url"), "video/mp4")
            case "input_audio":
                yield _audio(_object(part, "input_audio"))
            case "file":
                yield _file(_object(part, "file"))
            case kind:
                raise InvalidRequest(f"Gemini takes no content part of the type {kind!r}.", param="messages")


def _object(part: Fields, name: str) -> Fields:
    value = part.get(name)
    if not is_object(value):
        raise InvalidRequest(f"A content part of the type {name} needs an object {name}.", param="messages")
    return value


def _url(part: Fields, name: str) -> str:
    url = url_of(part, name)
    if not isinstance(url, str) or not url:
        raise InvalidRequest(f"A content part of the type {name} needs a URL.", param="messages")
    return url


def _medium(url: str, otherwise: str) -> Fields:
    if url.startswith("data:"):
        return _inline(url, otherwise)
    guessed = mimetypes.guess_type(url.partition("?")[0])[0]
    return {"file_data": {"file_uri": url, "mime_type": guessed or otherwise}}


def _inline(url: str, otherwise: str) -> Fields:
    head, comma, data = url.removeprefix("data:").partition(",")
    if not comma:
        raise InvalidRequest("A data URL of the request has no data.", param="messages")
    kind, *options = head.split(";")
    decoded = _base64(data) if "base64" in options else unquote_to_bytes(data)
    return {"inline_data": {"mime_type": kind or otherwise, "data": decoded}}


def _base64(data: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"An attachment of the request is no base64: {error}.", param="messages") from error


def _audio(audio: Fields) -> Fields:
    kind = str(audio.get("format") or "wav")
    data = _base64(str(audio.get("data") or ""))
    return {"inline_data": {"mime_type": _AUDIO_TYPES.get(kind, f"audio/{kind}"), "data": data}}


def _file(file: Fields) -> Fields:
    guessed = mimetypes.guess_type(str(file.get("filename") or ""))[0] or "application/pdf"
    data = file.get("file_data")
    if isinstance(data, str) and data:
        return _inline(data if data.startswith("data:") else f"data:{guessed};base64,{data}", guessed)
    if isinstance(file.get("file_id"), str):
        return {"file_data": {"file_uri": file["file_id"], "mime_type": guessed}}
    raise InvalidRequest("A file of the request has neither file_data nor file_id.", param="messages")


def _tool_call(call: Fields, called: dict[str, str]) -> Fields:
    function = _object(call, "function")
    name, arguments = str(function.get("name") or ""), str(function.get("arguments") or "{}")
    called[str(call.get("id"))] = name
    try:
        decoded = decode(arguments, Fields)
    except BadJson as error:
        raise InvalidRequest(
            f"The arguments of the tool call {name!r} are no JSON object.", param="messages"
        ) from error
    part: Fields = {"function_call": {"name": name, "args": decoded}}
    signature = fields_in(fields_in(call.get("extra_content")).get("google")).get("thought_signature")
    if isinstance(signature, str):
        part["thought_signature"] = _base64(signature)
    return part


def _tool_result(message: Message, called: Mapping[str, str]) -> Fields:
    name = called.get(str(message.get("tool_call_id")), str(message.get("name") or ""))
    if not name:
        raise InvalidRequest("The result of a tool belongs to no call before it.", param="messages")
    text = text_of(message)
    try:
        decoded: object = decode(text)
    except BadJson:
        decoded = text
    response: Fields = decoded if is_object(decoded) else {"result": decoded}
    return {"function_response": {"name": name, "response": response}}


# ---- the configuration ----------------------------------------------------------------------------------------


def configuration(request: Request, defaults: Mapping[str, Any], model: str) -> Fields:
    """The request's options over the operator's `defaults` (from `options.collect`), as Gemini's configuration.

    Raises InvalidRequest naming the parameter whose value does not belong.
    """
    values = merge(defaults, _asked(request), TABLE)
    found: Fields = {option.name: values[option.name] for option in PARAMETERS if option.name in values}
    if found.get("candidate_count") == 1:
        del found["candidate_count"]
    if thinking := _thinking(request, values, model):
        found["thinking_config"] = thinking
    if safety := _safety(values):
        found["safety_settings"] = safety
    if request.tools:
        found["tools"] = [{"function_declarations": [_declaration(tool) for tool in request.tools]}]
        found["automatic_function_calling"] = {"disable": True}
        if request.tool_choice:
            found["tool_config"] = {"function_calling_config": _calling(request.tool_choice)}
    return found | _response_format(request.response_format or {})


def _asked(request: Request) -> Fields:
    """What the request itself asks for, under Gemini's names."""
    asked: Fields = {}
    for name, value in request.parameters.items():
        asked[OPENAI_NAMES.get(name, name) if name != "logprobs" or isinstance(value, bool) else name] = value
    return asked


def _thinking(request: Request, values: Mapping[str, Any], model: str) -> Fields:
    thinking: Fields = {option.name: values[option.name] for option in THINKING if option.name in values}
    effort = request.parameters.get("reasoning_effort")
    if isinstance(effort, str):
        for name in ("thinking_budget", "thinking_level"):
            thinking.pop(name, None)
        if "gemini-2" in model or effort == "none":
            thinking["thinking_budget"] = EFFORT_BUDGETS.get(effort, -1)
        else:
            thinking["thinking_level"] = effort
    if "thinking_level" in thinking:
        thinking["thinking_level"] = str(thinking["thinking_level"]).upper()
    return thinking


def _safety(values: Mapping[str, Any]) -> list[Fields]:
    return [
        {"category": f"HARM_CATEGORY_{name.upper()}", "threshold": str(values[f"safety_{name}"]).upper()}
        for name in CATEGORIES
        if f"safety_{name}" in values
    ]


def _declaration(tool: Fields) -> Fields:
    if tool.get("type") != "function":
        raise InvalidRequest("Gemini takes only tools of the type function.", param="tools")
    function = _object(tool, "function")
    declared: Fields = {"name": function.get("name"), "description": function.get("description")}
    if function.get("parameters"):
        declared["parameters_json_schema"] = function["parameters"]
    return {name: value for name, value in declared.items() if value is not None}


def _calling(choice: str | Fields) -> Fields:
    if isinstance(choice, str):
        if choice not in _MODES:
            raise InvalidRequest(f"tool_choice is {choice!r}; it is one of {', '.join(_MODES)}.", param="tool_choice")
        return {"mode": _MODES[choice]}
    return {"mode": "ANY", "allowed_function_names": [str(_object(choice, "function").get("name"))]}


def _response_format(wanted: Mapping[str, Any]) -> Fields:
    match wanted.get("type"):
        case "json_object":
            return {"response_mime_type": "application/json"}
        case "json_schema":
            schema = fields_in(wanted.get("json_schema")).get("schema")
            return {"response_mime_type": "application/json", "response_json_schema": schema}
        case _:
            return {}
