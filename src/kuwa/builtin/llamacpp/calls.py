"""Tool calls that are really enforced: the JSON schema that the answer has to keep to, and the reader of that answer.

llama.cpp lets a model answer with free text first where a call is required, and does not look at the name of the
tool that a request insists on. So the model is shown the tools as always, but may write nothing except JSON that is
the call; here that JSON becomes pieces of calls while it streams. Pure; `payload` asks for the schema, `answer` feeds
the reader.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from kuwa.wire.errors import InvalidRequest
from kuwa.wire.json import fields_in, is_list, is_object

MOST_CALLS = 16
"""How many parallel calls an enforced answer may hold: a model that cannot stop is stopped."""

PARAMETERS = "$defs"
DATA = ("const", "enum", "default", "examples")
"""Keywords of a schema whose values are no schemas."""
OF_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords whose values are schemas by name."""

Tool = dict[str, Any]
Schema = dict[str, Any]

# What stands between two calls (the end of the one before included), and the beginning of a call.
_HEAD = re.compile(r'[\s,\[}]*\{\s*"name"\s*:\s*"((?:[^"\\]|\\.)*)"\s*,\s*"arguments"\s*:\s*')


@dataclass(frozen=True, slots=True)
class Enforced:
    """Calls that have to come: of the one tool `name`, whose arguments are the whole answer, or (`name` empty) of
    any of the tools, each as `{"name": …, "arguments": …}`."""

    schema: Schema
    name: str = ""


def enforced(tools: list[Tool], choice: str | dict[str, Any] | None, *, parallel: bool) -> Enforced | None:
    """What `tool_choice` enforces; None where the model is free. Raises InvalidRequest."""
    if isinstance(choice, dict):
        chosen = str(_function(choice).get("name") or "")
        named = [tool for tool in tools if _name(tool) == chosen]
        if not named:
            raise InvalidRequest(f"tool_choice names {chosen!r}, which is none of the tools.", param="tool_choice")
        return Enforced(_arguments(named[0]), chosen)
    if choice in (None, "auto", "none"):
        return None
    if choice != "required":
        raise InvalidRequest(
            f"tool_choice is {choice!r}; it is auto, none, required, or names a function.", param="tool_choice"
        )
    if not tools:
        raise InvalidRequest("tool_choice is required, but there are no tools.", param="tool_choice")
    if len(tools) == 1 and not parallel:
        return Enforced(_arguments(tools[0]), _name(tools[0]))
    one: Schema = {"anyOf": [_call(tool, f"#/{PARAMETERS}/{number}") for number, tool in enumerate(tools)]}
    many: Schema = {"type": "array", "minItems": 1, "maxItems": MOST_CALLS, "items": one}
    # The tools' own schemas stand where no other schema is, so that each finds its definitions again.
    roots = {str(number): _moved(_arguments(tool), f"#/{PARAMETERS}/{number}") for number, tool in enumerate(tools)}
    return Enforced({PARAMETERS: roots, **(many if parallel else one)})


def _moved(schema: object, root: str, *, names: bool = False) -> Any:
    """`schema` for a place inside another one: what it refers to in itself, it finds below `root`.

    `names`: its keys are names of schemas, not keywords.
    """
    if is_list(schema):
        return [_moved(item, root) for item in schema]
    if not is_object(schema):
        return schema
    if names:
        return {name: _moved(value, root) for name, value in schema.items()}
    moved = {
        key: value if key in DATA else _moved(value, root, names=key in OF_SCHEMAS) for key, value in schema.items()
    }
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = root + reference[1:]
    return moved


def _call(tool: Tool, arguments: str) -> Schema:
    return {
        "type": "object",
        "properties": {"name": {"const": _name(tool)}, "arguments": {"$ref": arguments}},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _function(tool: Tool) -> dict[str, Any]:
    return fields_in(tool.get("function"))


def _name(tool: Tool) -> str:
    return str(_function(tool).get("name") or "")


def _arguments(tool: Tool) -> Schema:
    return _function(tool).get("parameters") or {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of the call `index`; the first one of each call bears its name."""

    index: int
    name: str
    arguments: str


class CallReader:
    """Reads the JSON of enforced calls piece by piece, however it is cut."""

    def __init__(self, name: str) -> None:
        """`name`: of the only tool, whose arguments are the whole text; empty: each call says its own."""
        self._name = name
        self._held = ""
        self._index = -1
        self._place: Literal["between", "inside"] = "between"
        self._depth = 0
        self._in_text = False
        self._escaped = False

    def feed(self, text: str) -> Iterator[Piece]:
        """The pieces that `text` completes or goes on with."""
        if self._name:
            first = self._index < 0
            self._index = 0
            yield Piece(0, self._name if first else "", text)
            return
        self._held += text
        while self._held:
            if self._place == "between":
                head = _HEAD.match(self._held)
                if head is None:
                    return
                self._held = self._held[head.end() :]
                self._index += 1
                self._place = "inside"
                yield Piece(self._index, _plain(head[1]), "")
            else:
                end = self._end_of_arguments(self._held)
                arguments, self._held = self._held[:end], self._held[end:]
                if arguments:
                    yield Piece(self._index, "", arguments)

    def _end_of_arguments(self, text: str) -> int:
        """How much of `text` still belongs to the arguments. They are an object: they end with its last brace."""
        for at, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_text:
                self._escaped = character == "\\"
                self._in_text = character != '"'
            elif character == '"':
                self._in_text = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self._place = "between"
                    return at + 1
        return len(text)


def _plain(spelt: str) -> str:
    """A JSON text without its quotes."""
    return str(json.loads(f'"{spelt}"'))
