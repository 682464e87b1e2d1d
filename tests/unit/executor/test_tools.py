"""Tools and the calls in a conversation: one form for executors, or a refusal that names the field."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuwa.executor.tools import checked_calls, checked_tools
from kuwa.wire.errors import InvalidRequest

SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
NAMES = st.sampled_from(["type", "function", "name", "arguments", "parameters", "description", "id", "custom"])
VALUES = st.recursive(
    SCALARS | st.sampled_from(["function", "{}", '{"a": 1}', '{"a', "[1]"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


def call(arguments: Any, **fields: Any) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": "look_up", "arguments": arguments}, **fields}


def arguments_of(given_arguments: Any) -> str:
    return checked_calls([call(given_arguments)], "here")[0]["function"]["arguments"]


@pytest.mark.parametrize(
    ("given_arguments", "told"),
    [("", "{}"), (" \n", "{}"), (None, "{}"), ('{"a":  1}', '{"a":  1}'), ({"a": [1]}, '{"a":[1]}')],
)
def test_arguments_are_the_text_of_an_object(given_arguments: Any, told: str) -> None:
    assert arguments_of(given_arguments) == told


@pytest.mark.parametrize("given_arguments", ['{"street": "Ro', "Rome", "[]", "null", "7", 7, ["a"], "[" * 5000])
def test_arguments_that_are_no_object_are_refused(given_arguments: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        arguments_of(given_arguments)
    assert caught.value.param == "here[0].function.arguments"


def test_a_call_needs_no_type_and_no_id() -> None:
    (told,) = checked_calls([{"type": None, "id": None, "function": {"name": "f"}}], "here")
    assert told == {"type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("calls", "param"),
    [
        ("look_up", "here"),
        ({"0": call("{}")}, "here"),
        (["look_up"], "here[0]"),
        ([call("{}"), None], "here[1]"),
        ([call("{}", id=3)], "here[0].id"),
        ([call("{}", type="custom")], "here[0].type"),
        ([{"id": "c", "type": "function"}], "here[0].function"),
        ([{"function": {"arguments": "{}"}}], "here[0].function.name"),
    ],
)
def test_a_malformed_call_is_refused_with_its_field(calls: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        checked_calls(calls, "here")
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        ({}, "tools[0].function"),
        ({"type": "web_search_preview"}, "tools[0].type"),
        ({"type": "function", "name": "flat", "parameters": {}}, "tools[0].function"),
        ({"type": "function", "function": "f"}, "tools[0].function"),
        ({"type": "function", "function": {"description": "x"}}, "tools[0].function.name"),
        ({"type": "function", "function": {"name": ""}}, "tools[0].function.name"),
        ({"type": "function", "function": {"name": ["f"]}}, "tools[0].function.name"),
        ({"type": "function", "function": {"name": "f", "description": 1}}, "tools[0].function.description"),
        ({"type": "function", "function": {"name": "f", "parameters": "{}"}}, "tools[0].function.parameters"),
    ],
)
def test_a_malformed_tool_is_refused_with_its_field(tool: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        checked_tools([tool])
    assert caught.value.param == param


def test_parameters_that_are_too_deep_or_too_long_are_refused() -> None:
    deep: Any = {"type": "string"}
    for _ in range(70):
        deep = {"items": deep}
    for parameters in (deep, {"description": "x" * 300_000}):
        with pytest.raises(InvalidRequest, match=r"tools\[0\].function.parameters: the schema"):
            checked_tools([{"function": {"name": "f", "parameters": parameters}}])


def told_or_refused(check: Callable[[], list[dict[str, Any]]]) -> tuple[list[dict[str, Any]], str]:
    """What came of it, and which field it was refused for; one of them is empty."""
    try:
        return check(), ""
    except InvalidRequest as error:
        return [], error.param or "no field"


@given(st.lists(st.dictionaries(NAMES, VALUES, max_size=4), max_size=3))
def test_whatever_is_given_as_tools_is_refused_by_its_field_or_becomes_functions(tools: list[dict[str, Any]]) -> None:
    told, refused = told_or_refused(lambda: checked_tools(tools))
    assert refused.startswith("tools[") or len(told) == len(tools)
    assert checked_tools(told) == told
    for tool in told:
        assert tool["type"] == "function"
        assert isinstance(tool["function"]["name"], str)
        assert isinstance(tool["function"].get("parameters", {}), dict)


@given(VALUES)
def test_whatever_is_given_as_calls_is_refused_by_its_field_or_becomes_calls(calls: Any) -> None:
    told, refused = told_or_refused(lambda: checked_calls(calls, "here"))
    assert refused.startswith("here") or len(told) == len(calls)
    assert checked_calls(told, "here") == told
    for each in told:
        assert isinstance(json.loads(each["function"]["arguments"]), dict)
