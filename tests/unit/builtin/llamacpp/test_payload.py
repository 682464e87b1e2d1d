"""What llama.cpp is asked for, by what was set where."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from kuwa.builtin.llamacpp.calls import Enforced
from kuwa.builtin.llamacpp.payload import (
    adapter_scales,
    chat_payload,
    completion_payload,
    infill_payload,
)
from kuwa.builtin.llamacpp.sampling import PARAMETERS
from kuwa.executor.options import add_options, collect
from kuwa.executor.request import Request
from kuwa.wire.errors import InvalidRequest, Unsupported

MESSAGES = [{"role": "user", "content": "hi"}]
STREAMED = {"stream": True, "stream_options": {"include_usage": True}, "return_progress": True}


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {}}}


def asked(**fields: Any) -> Request:
    return Request(id="r", access_code="m", messages=MESSAGES, **fields)


def defaults(*arguments: str, **file: Any) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_options(parser, PARAMETERS)
    return collect(parser.parse_args(arguments), PARAMETERS, file)


def test_nothing_is_sent_that_nobody_set() -> None:
    assert chat_payload(asked(), defaults(), MESSAGES, None) == {"messages": MESSAGES, **STREAMED}


def test_the_request_goes_before_the_command_line_and_that_before_the_file() -> None:
    set_before = defaults("--top_k=7", "--seed", "3", top_k=5, seed=4, min_p=0.1)
    payload = chat_payload(asked(parameters={"seed": 9}), set_before, MESSAGES, None)
    assert (payload["min_p"], payload["top_k"], payload["seed"]) == (0.1, 7, 9)


def test_fields_that_reach_into_the_engine_are_not_passed_on() -> None:
    body = {"id_slot": 2, "cache_prompt": False, "lora": [], "n": 2}
    payload = chat_payload(asked(body=body, parameters=body), {}, MESSAGES, None)
    assert payload == {"messages": MESSAGES, "n": 2, **STREAMED}


def test_enforced_calls_are_a_schema_and_the_model_still_sees_the_tools() -> None:
    asked_for = {"type": "json_schema", "json_schema": {"schema": {"type": "string"}}}
    request = asked(tools=[tool("a"), tool("b")], response_format=asked_for)
    payload = chat_payload(request, {}, MESSAGES, Enforced({"type": "object"}, "b"))
    assert payload["tools"] == [tool("a"), tool("b")]
    assert payload["tool_choice"] == "none"
    assert payload["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_the_scales_of_all_adapters_are_always_said() -> None:
    assert adapter_scales(None, []) == {}
    assert adapter_scales(None, [1.0, 0.5]) == {"lora": [{"id": 0, "scale": 1.0}, {"id": 1, "scale": 0.5}]}
    changed = adapter_scales([{"id": 1, "scale": 2}], [1.0, 0.5])
    assert changed == {"lora": [{"id": 0, "scale": 1.0}, {"id": 1, "scale": 2.0}]}
    for wrong in ("x", [{"id": 2, "scale": 1}], [{"scale": 1}]):
        with pytest.raises(InvalidRequest):
            adapter_scales(wrong, [1.0, 0.5])


def test_a_gap_to_be_filled_is_sent_with_what_stands_around_it() -> None:
    body = {"suffix": "bye"}
    payload = infill_payload(asked(kind="completion", body=body, parameters={"max_tokens": 3}), {})
    assert payload == {"input_prefix": "hi", "input_suffix": "bye", "n_predict": 3, **STREAMED}


def test_a_value_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="top_k"):
        chat_payload(asked(parameters={"top_k": "many"}), {}, MESSAGES, None)


def test_a_plain_completion_is_its_prompt() -> None:
    payload = completion_payload(asked(kind="completion", parameters={"max_tokens": 3}), {"max_tokens": 9}, "hi")
    assert payload == {"prompt": "hi", "max_tokens": 3, **STREAMED}


@pytest.mark.parametrize("payload", [infill_payload, lambda request, set_: completion_payload(request, set_, "hi")])
def test_a_schema_that_might_not_be_enforced_is_refused(payload: Any) -> None:
    request = asked(kind="completion", parameters={"json_schema": {"type": "object"}}, body={"suffix": "x"})
    with pytest.raises(Unsupported, match="chats only"):
        payload(request, {})
