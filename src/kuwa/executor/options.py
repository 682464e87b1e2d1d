"""Generation options: one static table per executor, from which come its help, its command line, the keys its
configuration file may hold, and the check of what a request asks for.

Precedence, lowest first: the table's defaults, the file given with `-c`, the command line, the request (the OpenAI
body over the Modelfile's `llm_*`). Executors call `add_options` in `extend_arguments`, `collect` in `setup` and
`merge` in `llm_compute`. Nothing here does I/O; `config_file.read_config` reads the file.
"""

from __future__ import annotations

import argparse
import difflib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kuwa.executor.arguments import UsageError
from kuwa.wire.errors import InvalidRequest
from kuwa.wire.json import is_list, is_object

_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")
_KIND_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a text or a list of texts",
    dict: "a JSON object",
}


@dataclass(frozen=True, slots=True)
class Option:
    """One generation option. `low` and `high` are inclusive.

    `type` is int, float, bool, str, `list` (texts; repeated on the command line) or `dict` (a JSON object).
    `otherwise` describes, for the help, the value that applies where `default` is None: that of the model or server.
    """

    name: str
    type: type[Any]
    help: str
    default: Any = None
    choices: tuple[Any, ...] | None = None
    low: float | None = None
    high: float | None = None
    otherwise: str = ""

    @property
    def described(self) -> str:
        """The help text, with the default that applies where one is known."""
        default = self.otherwise if self.default is None else self.default
        return self.help if default == "" else f"{self.help} (default: {default})"

    def check(self, value: Any) -> Any:
        """`value` as this option's type. Raises ValueError with the end of a sentence: "must be …, not …"."""
        fitting = _fit(self.type, value)
        if fitting is None:
            raise ValueError(f"must be {_KIND_NAMES[self.type]}, not {_shown(value)}")
        if self.choices is not None and fitting not in self.choices:
            raise ValueError(f"must be one of {', '.join(map(str, self.choices))}, not {_shown(value)}")
        if self.low is not None and fitting < self.low:
            raise ValueError(f"must be at least {self.low:g}, not {_shown(value)}")
        if self.high is not None and fitting > self.high:
            raise ValueError(f"must be at most {self.high:g}, not {_shown(value)}")
        return fitting

    def parse(self, text: str) -> Any:
        """A value as it stands on the command line. Raises ValueError like `check`."""
        return self.check(_from_text(self.type, text))


def _fit(kind: type[Any], value: Any) -> Any:
    """`value` as a `kind`, or None where it is none. A bool is no number; 2.0 is a whole number."""
    if kind is bool:
        return value if isinstance(value, bool) else None
    if kind is list:
        return _texts(value)
    if kind is dict:
        return value if is_object(value) else None
    if kind is str:
        return value if isinstance(value, str) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    if kind is float:
        return float(value)
    return int(value) if value == int(value) else None


def _texts(value: Any) -> list[str] | None:
    if isinstance(value, str):
        return [value]
    return value if is_list(value) and all(isinstance(item, str) for item in value) else None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _from_text(kind: type[Any], text: str) -> Any:
    """The value that `text` spells, or `text` itself where it spells none (which `check` then refuses)."""
    try:
        if kind is int:
            return int(text)
        if kind is float:
            return float(text)
        if kind is dict:
            return json.loads(text)
    except (ValueError, RecursionError):
        return text
    if kind is bool:
        lowered = text.lower()
        return True if lowered in _TRUE else False if lowered in _FALSE else text
    return text


def add_options(
    parser: argparse.ArgumentParser,
    table: Iterable[Option],
    title: str = "Generation Options",
    description: str | None = None,
) -> None:
    """Add the table to `parser` as a group, led by `-c/--generation_config`."""
    group = parser.add_argument_group(title, description)
    group.add_argument(
        "-c",
        "--generation_config",
        default=None,
        help="YAML or JSON file with generation options; the command line takes precedence",
    )
    for option in table:
        # SUPPRESS: only what was given is in `args`, so that a default never hides the file's value.
        group.add_argument(
            f"--{option.name}",
            type=_argument_type(option),
            action="append" if option.type is list else "store",
            default=argparse.SUPPRESS,
            metavar=option.name.upper(),
            help=option.described.replace("%", "%%"),
        )


def _argument_type(option: Option) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = option.parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return text if option.type is list else value

    return parse


def collect(args: argparse.Namespace, table: Iterable[Option], config: Mapping[str, Any]) -> dict[str, Any]:
    """What was set, by name: defaults, then `config` (the file's contents), then the command line.

    Options that nobody set are left out. Raises UsageError for a key or value of the file that does not belong.
    """
    options = {option.name: option for option in table}
    values = {name: option.default for name, option in options.items() if option.default is not None}
    for name, value in config.items():
        option = options.get(name)
        if option is None:
            raise UsageError(f"the generation config holds {name!r}, which is no option{_nearest(name, options)}")
        if value is None:
            continue
        try:
            values[name] = option.check(value)
        except ValueError as error:
            raise UsageError(f"the generation config's {name} {error}") from error
    values.update((name, getattr(args, name)) for name in options if hasattr(args, name))
    return values


def merge(base: Mapping[str, Any], asked: Mapping[str, Any], table: Iterable[Option]) -> dict[str, Any]:
    """`base` (from `collect`) with what the request asks for on top. Fields outside the table are left out.

    Raises InvalidRequest naming the parameter whose value does not belong.
    """
    values = dict(base)
    for option in table:
        value = asked.get(option.name)
        if value is None:
            continue
        try:
            values[option.name] = option.check(value)
        except ValueError as error:
            raise InvalidRequest(f"{option.name} {error}.", param=option.name) from error
    return values


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
