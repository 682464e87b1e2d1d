"""Enforced tool calls: which schema is asked for, and how the answer is read however it is cut."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuwa.builtin.llamacpp.calls import CallReader, Enforced, enforced
from kuwa.wire.errors import InvalidRequest

CITY = {"type": "object", "properties": {"city": {"type": "string"}}}


def tool(name: str, parameters: Any = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters or CITY}}


def read(name: str, *pieces: str) -> list[tuple[str, str]]:
    """Name and arguments of each call."""
    calls: list[list[str]] = []
    reader = CallReader(name)
    for text in pieces:
        for piece in reader.feed(text):
            if piece.index == len(calls):
                calls.append([piece.name, ""])
                assert piece.name
            else:
                assert piece.name == ""
            calls[piece.index][1] += piece.arguments
    return [(name, arguments) for name, arguments in calls]


@pytest.mark.parametrize("choice", [None, "auto", "none"])
def test_a_model_that_may_choose_is_left_alone(choice: str | None) -> None:
    assert enforced([tool("a")], choice, parallel=False) is None


def test_the_only_tool_or_the_named_one_is_asked_for_its_arguments_alone() -> None:
    assert enforced([tool("a")], "required", parallel=False) == Enforced(CITY, "a")
    named = {"type": "function", "function": {"name": "b"}}
    assert enforced([tool("a"), tool("b")], named, parallel=True) == Enforced(CITY, "b")


def test_of_several_tools_the_model_says_which() -> None:
    found = enforced([tool("a"), tool("b")], "required", parallel=False)
    assert found is not None
    assert [each["properties"]["name"]["const"] for each in found.schema["anyOf"]] == ["a", "b"]
    assert found.name == ""


def test_parallel_calls_are_a_list_of_at_least_one() -> None:
    found = enforced([tool("a")], "required", parallel=True)
    assert found is not None
    assert (found.schema["type"], found.schema["minItems"]) == ("array", 1)


@pytest.mark.parametrize(
    ("tools", "choice", "words"),
    [
        ([tool("a")], {"function": {"name": "c"}}, "'c'"),
        ([tool("a")], "always", "'always'"),
        ([], "required", "no tools"),
    ],
)
def test_what_cannot_be_enforced_is_refused(tools: list[Any], choice: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        enforced(tools, choice, parallel=False)


def test_each_of_several_tools_finds_its_own_definitions_again() -> None:
    whole = {
        "$defs": {"City": {"enum": ["Tainan"], "default": {"$ref": "#/$defs/City"}}},
        "properties": {"default": {"$ref": "#/$defs/City"}, "all": {"$ref": "#"}, "far": {"$ref": "https://x/y#z"}},
    }
    made = enforced([tool("a", whole), tool("b", whole)], "required", parallel=False)
    assert made is not None
    roots = made.schema["$defs"]
    for number in ("0", "1"):
        root = f"#/$defs/{number}"
        assert roots[number]["properties"] == {
            "default": {"$ref": f"{root}/$defs/City"},
            "all": {"$ref": root},
            "far": {"$ref": "https://x/y#z"},
        }
        assert roots[number]["$defs"]["City"]["default"] == {"$ref": "#/$defs/City"}
    assert [call["properties"]["arguments"]["$ref"] for call in made.schema["anyOf"]] == ["#/$defs/0", "#/$defs/1"]


def test_the_arguments_of_the_only_tool_are_passed_on_as_they_come() -> None:
    assert read("a", '{"ci', 'ty": 1}') == [("a", '{"city": 1}')]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
CALLS = st.lists(st.tuples(st.text(min_size=1, max_size=6), st.dictionaries(st.text(max_size=4), VALUES)), min_size=1)


@given(CALLS, st.lists(st.integers(0, 400)), st.sampled_from([None, 2]), st.booleans())
def test_calls_are_read_whole_wherever_the_text_is_cut(
    calls: list[tuple[str, dict[str, Any]]], cuts: list[int], indent: int | None, plain: bool
) -> None:
    text = json.dumps([{"name": n, "arguments": a} for n, a in calls], indent=indent, ensure_ascii=plain)
    at = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in pairwise(at)]
    found = read("", *pieces)
    assert [(name, json.loads(arguments)) for name, arguments in found] == calls


def test_a_single_call_is_read_too() -> None:
    assert read("", ' { "name" : "a",', ' "arguments": {"x": "}{"} }') == [("a", '{"x": "}{"}')]
