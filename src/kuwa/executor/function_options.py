"""Command-line options made of a function's parameters, as executors of 2024 make them; used through `util`.

New executors use the static tables of `options`, whose help needs no import of the function's library.
"""

from __future__ import annotations

import argparse
import inspect
import typing
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any


class DescriptionParser:
    """Finds a parameter's description in a docstring. Extend it for your library's way of writing them."""

    def __call__(self, doc: str, name: str) -> str | None:
        """The description of the parameter `name`, None where there is none."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to read a docstring")


def expose_function_parameter(
    function: Callable[..., Any],
    parser: argparse.ArgumentParser | None = None,
    accepted_types: tuple[type, ...] = (int, float),
    defaults: Mapping[str, Any] | None = None,
    desc_parser: Callable[[str, str], str | None] | None = None,
) -> dict[str, Any]:
    """Add an option for each parameter of `function` that takes one of `accepted_types`; their defaults by name.

    `defaults` go before the function's own and are all part of the result.
    """
    found = dict(defaults or {})
    hints = typing.get_type_hints(function)
    doc = inspect.getdoc(function) or ""
    for name, parameter in inspect.signature(function).parameters.items():
        accepted = [kind for kind in _kinds(hints.get(name)) if kind in accepted_types]
        if not accepted:
            continue
        own = None if parameter.default is parameter.empty else parameter.default
        found.setdefault(name, own)
        if parser is not None:
            text = desc_parser(doc, name) if desc_parser is not None else None
            parser.add_argument(f"--{name}", type=accepted[0], default=found[name], help=text or "-")
    return found


def merge_config(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with what `top` sets; a None in `top` sets nothing."""
    return {**base, **{name: value for name, value in top.items() if value is not None}}


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types that an annotation allows, a union's members each."""
    if typing.get_origin(hint) in (typing.Union, UnionType):
        return tuple(kind for member in typing.get_args(hint) for kind in _kinds(member))
    return (typing.get_origin(hint) or hint,)
