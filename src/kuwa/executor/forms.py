"""How large a form may be that a request wants its answer in: a JSON schema, a grammar, the parameters of a tool.

Engines read forms recursively and compile them while others wait, so a form without a bound ends or stops an engine.
Pure; `tools` and the executors that compile forms call it before their engine sees one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from kuwa.wire.errors import InvalidRequest
from kuwa.wire.json import is_object, items_in

MOST_NESTED = 64
"""Levels of a schema."""
MOST_CHARACTERS = 256 * 1024
"""Of a grammar, or of a schema as JSON."""


def check_schema(schema: Any, param: str) -> None:
    """Raises InvalidRequest for a schema that is not an object or is beyond the bounds."""
    if not is_object(schema):
        raise InvalidRequest(f"{param}: the schema must be a JSON object.", param=param)
    if sum(1 for _ in levels(schema)) > MOST_NESTED:
        raise InvalidRequest(f"{param}: the schema is nested deeper than {MOST_NESTED} levels.", param=param)
    check_length(msgspec.json.encode(schema), param, "the schema")


def check_length(text: str | bytes, param: str, what: str) -> None:
    if len(text) > MOST_CHARACTERS:
        raise InvalidRequest(f"{param}: {what} has more than {MOST_CHARACTERS} characters.", param=param)


def levels(value: object) -> Iterator[list[Any]]:
    """The values of a JSON value, one level after the other: no recursion that a deep one could overflow."""
    level: list[Any] = [value]
    while level:
        yield level
        level = [item for one in level for item in _items(one)]


def _items(value: object) -> list[Any]:
    return list(value.values()) if is_object(value) else items_in(value)
