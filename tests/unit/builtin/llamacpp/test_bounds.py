"""What could end or stop llama.cpp is refused; what people write is not."""

from __future__ import annotations

from typing import Any

import pytest

from kuwa.builtin.llamacpp.bounds import check_grammar, check_prompt, check_schemas
from kuwa.wire.errors import ContextLengthExceeded, InvalidRequest

JSON = r"""
root ::= object
value ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"not": schema}
    return schema


@pytest.mark.parametrize("grammar", [JSON, 'root ::= "(" # ((\n', 'root ::= [a-z]{3} "x"{2,2} "y"{0,}', ""])
def test_a_grammar_that_people_write_is_taken(grammar: str) -> None:
    check_grammar(grammar)


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        ("root ::= " + "(" * 3_000 + '"b"' + ")" * 3_000, "3000 parentheses.*at most 1000"),
        ("root ::= " + '(")" ' * 1_200, "1200 parentheses"),
        ("\n".join(f"r{n} ::= r{n + 1}" for n in range(2_500)), "2500 rules.*at most 1000"),
        ("root ::= " + " | ".join(f'"{n}"' for n in range(4_000)), "3999 alternatives"),
        ("root ::= " + "[0-9]? " * 700, "700 repetitions"),
        ("root ::= " + '"c"' * 100_000, "more than 262144 characters"),
        ('root ::= "d"{9,3}', "at least 9 and at most 3"),
        ('root ::= "d"{ 12 , # so\n 7 }', "at least 12 and at most 7"),
        ('root ::= "d"{' + "9" * 5_000 + ",10}", "and at most 10"),
        ('root ::= "d"{5,0}', "at least 5"),
    ],
)
def test_a_grammar_that_would_stop_the_engine_is_refused(grammar: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        check_grammar(grammar)
    assert caught.value.param == "grammar"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {f"p{n}": {"type": "string", "description": "…"} for n in range(300)}},
        {"enum": [f"country {n}" for n in range(250)]},
        {"type": "integer", "minimum": -(2**53) + 1, "maximum": 2**63 - 1},
        {"properties": {"minimum": {"type": "string"}, "pattern": {"type": "object"}, "maxItems": True}},
        {"type": "array", "minItems": 2, "maxItems": 2, "items": {"pattern": r"^\d{3}-[a-z]{2,5}$"}},
        nested(60),
    ],
)
def test_a_schema_that_people_write_is_taken(schema: dict[str, Any]) -> None:
    check_schemas([schema, schema], "tools")


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ([], "must be a JSON object"),
        (nested(90), "deeper than 64 levels"),
        (nested(200_000), "deeper than 64 levels"),
        ({"const": "e" * 400_000}, "more than 262144 characters"),
        ({"enum": [str(n) for n in range(3_000)]}, "3000 entries.*at most 1000"),
        ({"allOf": [{"enum": list(range(900))} for _ in range(15)]}, "values in its schemas"),
        ({"properties": {"a": {"type": "array", "minItems": 8, "maxItems": 5}}}, "minItems 8 is above its maxItems 5"),
        ({"minLength": 1, "maxLength": 0}, "minLength 1 is above"),
        ({"type": "integer", "exclusiveMinimum": 10**17}, "exclusiveMinimum is 100000000000000000"),
        ({"type": "integer", "maximum": -2e18}, "maximum is -2e.18"),
        ({"type": "string", "pattern": "^" + "(" * 2_000 + "f" + ")" * 2_000 + "$"}, "2000 parentheses"),
        ({"type": "string", "pattern": "^g{40,4}$"}, "at least 40 and at most 4"),
        ({"type": "string", "pattern": "^" + "h?" * 400 + "$"}, "400 repetitions"),
    ],
)
def test_a_schema_that_would_stop_the_engine_is_refused(schema: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        check_schemas([{}, schema], "response_format")
    assert caught.value.param == "response_format"


def test_all_tools_of_a_request_count_together() -> None:
    schemas = [{"enum": list(range(800))} for _ in range(20)]
    check_schemas(schemas[:10], "tools")
    with pytest.raises(InvalidRequest, match="values"):
        check_schemas(schemas, "tools")


def test_a_prompt_that_no_context_could_hold_is_refused_by_its_size() -> None:
    check_prompt(100, 100, 10, "messages")
    check_prompt(10**9, 0, 10, "messages")  # a tokenizer of which nothing is known
    with pytest.raises(ContextLengthExceeded, match=r"101 bytes.*10 tokens holds at most 100"):
        check_prompt(101, 100, 10, "messages")
