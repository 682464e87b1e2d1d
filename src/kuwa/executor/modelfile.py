"""The Modelfile: what the author of a bot puts before, around and above a user's conversation.

It reaches an executor as the form field `modelfile`, a JSON list of commands `[{"name": …, "args": …}]`.
The server reads it once per request; executors see it as `modelfile` or `request.modelfile`. Nothing here does
I/O: commands that were not understood are returned in `ignored`, for the caller to log.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from kuwa.wire.errors import InvalidRequest
from kuwa.wire.json import BadJson, decoder

_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_QUOTES = ('"""', '"', "'")
_MAX_INTEGER_DIGITS = 18

Value = str | int | float | bool


class ParameterDict(dict[str, Any]):
    """The parameters by name; a key ending in `_` or `.` gives those that begin with it, the prefix taken off.

    `parameters["llm_"]` of `{"llm_temperature": 0.2}` is `{"temperature": 0.2}`. `parameters["_"]` are the fields
    of the v1.0 form, which are kept under a leading underscore.
    """

    def __missing__(self, key: str) -> dict[str, Any]:
        if not key.endswith(("_", ".")):
            raise KeyError(key)
        return {name.removeprefix(key): value for name, value in self.items() if name.startswith(key)}


class Command(msgspec.Struct, frozen=True):
    """One line of a Modelfile: its name in lower case and the rest of the line."""

    name: str
    args: Value | None = None


_decode_commands = decoder(list[Command] | None)


@dataclass(slots=True)
class Modelfile:
    """A Modelfile that was understood. `messages` are OpenAI messages that stand before the history."""

    override_system_prompt: str = ""
    messages: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    template: str = ""
    before_prompt: str = ""
    after_prompt: str = ""
    parameters: ParameterDict = field(default_factory=ParameterDict)
    ignored: list[str] = field(default_factory=list[str])

    @classmethod
    def from_json(cls, text: str) -> Modelfile:
        """Read the form's value; empty text and `null` are an empty one. Broken JSON raises InvalidRequest."""
        return cls.from_commands(_commands(text))

    @classmethod
    def from_form(cls, form: Mapping[str, str]) -> Modelfile:
        """The Modelfile of a v1.0 form, with the form's other fields as parameters under a leading underscore."""
        modelfile = cls.from_json(form.get("modelfile", ""))
        for name, value in form.items():
            if name not in ("modelfile", "input"):
                modelfile.parameters["_" + name] = value
        return modelfile

    @classmethod
    def from_commands(cls, commands: Iterable[Command]) -> Modelfile:
        modelfile = cls()
        for command in commands:
            modelfile._apply(command.name.lower(), "" if command.args is None else str(command.args))
        return modelfile

    def _apply(self, name: str, args: str) -> None:
        match name:
            case "system":
                self.override_system_prompt += unquote(args)
            case "template":
                self.template = unquote(args)
            case "before-prompt":
                self.before_prompt += unquote(args)
            case "after-prompt":
                self.after_prompt += unquote(args)
            case "message":
                self._add_message(args)
            case "parameter" | "kuwaparam":
                self._add_parameter(args)
            case _:
                self.ignored.append(f"unknown command {name!r}")

    def _add_message(self, args: str) -> None:
        role, text = _first_word(unquote(args))
        if role == "system":
            self.override_system_prompt += unquote(text)
        elif role in ("user", "assistant"):
            self.messages.append({"role": role, "content": unquote(text)})
        else:
            self.ignored.append(f"message of the unknown role {role!r}")

    def _add_parameter(self, args: str) -> None:
        key, text = _first_word(unquote(args))
        if key:
            self.parameters[key] = read_value(text)
        else:
            self.ignored.append("parameter without a name")


def _commands(text: str) -> list[Command]:
    if not text.strip():
        return []
    try:
        return _decode_commands(text) or []
    except BadJson as error:
        raise InvalidRequest(
            f"The Modelfile is no JSON list of commands {{name, args}}: {error}", param="modelfile"
        ) from error


def _first_word(text: str) -> tuple[str, str]:
    """`"<word> <rest>"` as its two parts; only the blanks between them are taken off the rest."""
    parts = text.split(maxsplit=1)
    return (parts[0] if parts else "", parts[1] if len(parts) == 2 else "")


def unquote(text: str) -> str:
    """`text` without the quotes around the whole of it, if there are any. Inside them nothing is changed."""
    stripped = text.strip()
    for quote in _QUOTES:
        if len(stripped) >= 2 * len(quote) and stripped.startswith(quote) and stripped.endswith(quote):
            return stripped[len(quote) : -len(quote)]
    return text


def read_value(text: str) -> Value:
    """A parameter's value: an integer, a number, `true` or `false`, else text. What stood in quotes is text."""
    bare = text.strip()
    unquoted = unquote(bare)
    if unquoted != bare:
        return unquoted
    if _INTEGER.fullmatch(bare) and len(bare) <= _MAX_INTEGER_DIGITS:
        return int(bare)
    if _NUMBER.fullmatch(bare):
        number = float(bare)
        return number if abs(number) != float("inf") else bare
    lowered = bare.lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    return bare
