"""Tools and the calls in a conversation, checked and brought into one form. Pure; `intake` calls it once per request.

An engine of our own answers a malformed tool with an error of its own making, or with a wrong prompt. So it gets only
what it can read: every tool a function with a name, every call with a name and arguments that are a JSON object.
Fields that are null count as absent, and empty arguments are `{}`, as many clients send them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from kuwa.executor.forms import check_schema
from kuwa.wire import json
from kuwa.wire.errors import InvalidRequest

Body = dict[str, Any]


def checked_tools(tools: list[Body]) -> list[Body]:
    """`tools` without nulls. Raises InvalidRequest that names the field."""
    return [_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]


def checked_calls(calls: Any, where: str) -> list[Body]:
    """The `tool_calls` of a message at `where`. Raises InvalidRequest that names the field."""
    if not json.is_list(calls):
        raise _refused(where, "a list of tool calls", calls)
    return [_call(call, f"{where}[{index}]") for index, call in enumerate(calls)]


def without_nulls(fields: Body) -> Body:
    return {name: value for name, value in fields.items() if value is not None}


def _tool(tool: Body, where: str) -> Body:
    function = _function(tool, where)
    description = function.get("description")
    if not isinstance(description, str | None):
        raise _refused(f"{where}.function.description", "text", description)
    if "parameters" in function:
        check_schema(function["parameters"], f"{where}.function.parameters")
    return {**without_nulls(tool), "type": "function", "function": function}


def _call(call: Any, where: str) -> Body:
    if not json.is_object(call):
        raise _refused(where, "a tool call", call)
    fields = without_nulls(call)
    if not isinstance(fields.get("id", ""), str):
        raise _refused(f"{where}.id", "text", fields["id"])
    function = _function(fields, where)
    arguments = function.get("arguments", "")
    place = f"{where}.function.arguments"
    if isinstance(arguments, dict):
        arguments = msgspec.json.encode(arguments).decode()
    if not isinstance(arguments, str):
        raise _refused(place, "text that holds a JSON object", arguments)
    return {**fields, "type": "function", "function": {**function, "arguments": _arguments(arguments, place)}}


def _arguments(text: str, where: str) -> str:
    if not text.strip():
        return "{}"
    try:
        value: object = json.decode(text)
    except json.BadJson as error:
        raise InvalidRequest(
            f"{where} must hold a JSON object, and cannot be parsed: {error}. Leave out a call that was cut off.",
            param=where,
        ) from error
    if not json.is_object(value):
        raise _refused(where, "text that holds a JSON object", value)
    return text


def _function(holder: Body, where: str) -> Body:
    """The function that a tool or a call names, without nulls."""
    kind = holder.get("type")
    if kind not in (None, "function"):
        raise InvalidRequest(
            f"{where}.type is {str(kind)[:40]!r}; this model takes tools of the type function alone.",
            param=f"{where}.type",
        )
    function: object = holder.get("function")
    if not json.is_object(function):
        raise _refused(f"{where}.function", 'an object such as {"name": …}', function)
    fields = without_nulls(function)
    name = fields.get("name")
    if not isinstance(name, str) or not name:
        raise _refused(f"{where}.function.name", "the name of a function", name)
    return fields


def _refused(where: str, what: str, found: Any) -> InvalidRequest:
    return InvalidRequest(f"{where} must be {what}, and it is {_kind(found)}.", param=where)


def _kind(value: Any) -> str:
    """What JSON calls a value such as `value`."""
    if value is None:
        return "missing"
    if isinstance(value, str):
        return "text" if value else "an empty text"
    if isinstance(value, bool):
        return "true or false"
    return "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else "a number"
