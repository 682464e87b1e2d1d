"""What of a request could end llama.cpp or stop it for everybody, refused before llama.cpp sees it. Pure; `payload`
calls it.

llama.cpp compiles a grammar between two steps of all its requests, without a limit of its own: alternatives cost
quadratic time, parts that may be left out cubic time, nested parentheses the stack, and some contradictory bounds an
endless loop. The numbers are well above what people write, and each keeps a step below about a tenth of a second.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from kuwa.executor.forms import check_length, check_schema, levels
from kuwa.wire.errors import ContextLengthExceeded, InvalidRequest

MOST_RULES = 1_000
MOST_CHOICES = 1_000
"""Alternatives of a grammar; entries of one list or object of a schema."""
MOST_GROUPS = 1_000
"""Parentheses, nested or not. They are counted in texts, too: what counts them otherwise could be misled."""
MOST_REPEATS = 150
"""Parts with `?`, `*`, `+` or `{…}`, of a grammar or of a pattern."""
MOST_VALUES = 10_000
"""JSON values of all schemas of a request."""
MOST_BIASES = 1_024
LARGEST_LIMIT = 10**15
"""From about 16 digits on, llama.cpp does not come to the end of a lower bound (or a negative upper one)."""

_PAIRS = (("minItems", "maxItems"), ("minLength", "maxLength"), ("minProperties", "maxProperties"))
_LOWER, _UPPER = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
_SPACE = r"(?:\s|#[^\n]*\n)*"
_REPEAT = re.compile(rf"\{{{_SPACE}([0-9]+){_SPACE},{_SPACE}([0-9]+)")


def check_grammar(grammar: str) -> None:
    """Raises InvalidRequest for a GBNF grammar beyond the bounds."""
    check_length(grammar, "grammar", "the grammar")
    _within(grammar.count("::="), MOST_RULES, "rules", "grammar")
    _within(grammar.count("|"), MOST_CHOICES, "alternatives", "grammar")
    _check_expression(grammar, "grammar")


def check_schemas(schemas: Sequence[Any], param: str) -> None:
    """Raises InvalidRequest where `schemas`, all of one field, are together beyond the bounds."""
    values = 0
    for schema in schemas:
        check_schema(schema, param)
        for level in levels(schema):
            values += len(level)
            for value in level:
                if isinstance(value, dict | list):
                    _within(len(cast("list[Any]", value)), MOST_CHOICES, "entries in one list or object", param)
                if isinstance(value, dict):
                    fields = cast("dict[str, Any]", value)
                    _check_limits(fields, param)
                    if isinstance(pattern := fields.get("pattern"), str):
                        _check_expression(pattern, param)
    _within(values, MOST_VALUES, "values in its schemas", param)


def check_biases(biases: Mapping[str, Any]) -> None:
    _within(len(biases), MOST_BIASES, "tokens", "logit_bias")
    if any(len(token) > MOST_BIASES for token in biases):
        raise InvalidRequest(f"logit_bias names a token of more than {MOST_BIASES} characters.", param="logit_bias")


def check_prompt(size: int, most: int, context: int, param: str) -> None:
    """Raises ContextLengthExceeded for a prompt of `size` bytes where the context cannot hold more than `most`.

    llama.cpp takes seconds and gigabytes to find out by tokenizing.
    """
    if 0 < most < size:
        raise ContextLengthExceeded(
            f"The prompt has {size} bytes, and the model's context of {context} tokens holds at most {most}. "
            "Shorten the conversation, or start the executor with a larger --context_window.",
            param=param,
        )


def _check_limits(schema: Mapping[str, Any], param: str) -> None:
    for low, high in _PAIRS:
        least, most = schema.get(low), schema.get(high)
        if isinstance(least, int) and isinstance(most, int) and least > most:
            raise InvalidRequest(f"{param}: the schema's {low} {least} is above its {high} {most}.", param=param)
    for names, sign in ((_LOWER, 1), (_UPPER, -1)):
        for name in names:
            limit = schema.get(name)
            if isinstance(limit, int | float) and sign * limit > LARGEST_LIMIT:
                raise InvalidRequest(
                    f"{param}: the schema's {name} is {limit}; it must be {'at most' if sign > 0 else 'at least'} "
                    f"{sign * LARGEST_LIMIT}.",
                    param=param,
                )


def _check_expression(text: str, param: str) -> None:
    _within(text.count("("), MOST_GROUPS, "parentheses", param)
    _within(sum(map(text.count, "?*+{")), MOST_REPEATS, "repetitions", param)
    for least, most in _REPEAT.findall(text):
        # By their digits: Python refuses to read numbers of thousands of them.
        if (len(least := least.lstrip("0")), least) > (len(most := most.lstrip("0")), most):
            raise InvalidRequest(f"{param} has a repetition of at least {least} and at most {most}.", param=param)


def _within(count: int, most: int, what: str, param: str) -> None:
    if count > most:
        raise InvalidRequest(f"{param} has {count} {what}; this model takes at most {most}.", param=param)
