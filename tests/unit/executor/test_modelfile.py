"""The Modelfile of the form's field: commands, quotes, values, and what is made of text that is none."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuwa.executor.modelfile import Modelfile, ParameterDict, read_value, unquote
from kuwa.wire.errors import InvalidRequest


def modelfile(*commands: tuple[str, Any]) -> Modelfile:
    return Modelfile.from_json(json.dumps([{"name": name, "args": args} for name, args in commands]))


@pytest.mark.parametrize("text", ["", "  ", "null", "[]"])
def test_no_commands_are_an_empty_modelfile(text: str) -> None:
    assert Modelfile.from_json(text) == Modelfile()


@pytest.mark.parametrize("text", ["{", "3", '"x"', '[{"args": "x"}]', "[3]", "[" * 100_000, '[{"name": []}]'])
def test_what_is_no_list_of_commands_is_refused_naming_the_field(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Modelfile.from_json(text)
    assert caught.value.param == "modelfile"


def test_system_and_prompts_concatenate_and_template_replaces() -> None:
    read = modelfile(
        ("system", "You are "),
        ("system", "brief."),
        ("before-prompt", "a"),
        ("before-prompt", "b"),
        ("after-prompt", "c"),
        ("template", "{{ one }}"),
        ("template", "{{ two }}"),
    )
    assert read.override_system_prompt == "You are brief."
    assert (read.before_prompt, read.after_prompt, read.template) == ("ab", "c", "{{ two }}")


def test_messages_keep_their_order_and_a_system_message_joins_the_system_prompt() -> None:
    read = modelfile(("message", "user 你好 #1"), ("message", "system Be kind."), ("message", 'assistant "Hello"'))
    assert read.messages == [
        {"role": "user", "content": "你好 #1"},
        {"role": "assistant", "content": "Hello"},
    ]
    assert read.override_system_prompt == "Be kind."


def test_a_number_sign_in_an_argument_is_text() -> None:
    assert modelfile(("system", "Use # for headings")).override_system_prompt == "Use # for headings"


def test_what_is_not_understood_is_named_and_skipped() -> None:
    read = modelfile(("frobnicate", "x"), ("message", "robot hi"), ("parameter", ""), ("SYSTEM", "upper"))
    assert read.override_system_prompt == "upper"
    assert len(read.ignored) == 3


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-3", -3),
        ("0.25", 0.25),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("true", True),
        ("False", False),
        ("word", "word"),
        ("two words", "two words"),
        ('"7"', "7"),
        ("'true'", "true"),
        ("nan", "nan"),
        ("1_000", "1_000"),
        ("1e999", "1e999"),
        ("9" * 5000, "9" * 5000),
        ("", ""),
    ],
)
def test_a_value_is_a_number_a_truth_or_text(text: str, value: object) -> None:
    read = read_value(text)
    assert (type(read), read) == (type(value), value)


@pytest.mark.parametrize(
    ("text", "bare"),
    [('"a"', "a"), ("'a'", "a"), ('"""a "b" c"""', 'a "b" c'), ('"a', '"a'), ('"', '"'), (' "a" ', "a"), (" a", " a")],
)
def test_quotes_around_the_whole_are_taken_off(text: str, bare: str) -> None:
    assert unquote(text) == bare


def test_parameters_are_asked_for_by_prefix() -> None:
    read = modelfile(("parameter", "llm_temperature 0.2"), ("kuwaparam", "llm_stop END"), ("parameter", "debug.x 1"))
    assert read.parameters["llm_"] == {"temperature": 0.2, "stop": "END"}
    assert read.parameters["debug."] == {"x": 1}
    assert read.parameters["_"] == {}
    assert read.parameters["llm_temperature"] == 0.2
    with pytest.raises(KeyError):
        read.parameters["unknown"]


def test_the_other_fields_of_the_form_are_parameters_under_an_underscore() -> None:
    read = Modelfile.from_form({"input": "[]", "modelfile": "[]", "user_id": "7", "openai_token": "k"})
    assert read.parameters["_"] == {"user_id": "7", "openai_token": "k"}


@given(st.lists(st.tuples(st.text(max_size=12), st.one_of(st.text(max_size=40), st.integers(), st.none()))))
def test_any_list_of_commands_is_read(commands: list[tuple[str, Any]]) -> None:
    read = modelfile(*commands)
    assert isinstance(read.parameters, ParameterDict)
    assert all(message["role"] in ("user", "assistant") for message in read.messages)


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(InvalidRequest):
        assert isinstance(Modelfile.from_json(text), Modelfile)
