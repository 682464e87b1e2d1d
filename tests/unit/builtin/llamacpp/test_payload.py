"""What llama.cpp is asked for, by what was set where."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from kuwa.builtin.llamacpp.calls import Enforced
from kuwa.builtin.llamacpp.payload import (
    adapter_scales,
    chat_payload,
    check,
    completion_payload,
    infill_payload,
)
from kuwa.builtin.llamacpp.sampling import PARAMETERS
from kuwa.executor.options import add_options, collect
from kuwa.executor.request import Request
from kuwa.wire.errors import InvalidRequest, Unsupported

MESSAGES = [{"role": "user", "content": "hi"}]
CONTEXT = 4096
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
    assert chat_payload(asked(), defaults(), MESSAGES, None, CONTEXT) == {"messages": MESSAGES, **STREAMED}


def test_the_request_goes_before_the_command_line_and_that_before_the_file() -> None:
    set_before = defaults("--top_k=7", "--seed", "3", top_k=5, seed=4, min_p=0.1)
    payload = chat_payload(asked(parameters={"seed": 9}), set_before, MESSAGES, None, CONTEXT)
    assert (payload["min_p"], payload["top_k"], payload["seed"]) == (0.1, 7, 9)


def test_fields_that_reach_into_the_engine_are_not_passed_on() -> None:
    body = {"id_slot": 2, "cache_prompt": False, "lora": [], "n": 2}
    payload = chat_payload(asked(body=body, parameters=body), {}, MESSAGES, None, CONTEXT)
    assert payload == {"messages": MESSAGES, "n": 2, **STREAMED}


def test_enforced_calls_are_a_schema_and_the_model_still_sees_the_tools() -> None:
    asked_for = {"type": "json_schema", "json_schema": {"schema": {"type": "string"}}}
    request = asked(tools=[tool("a"), tool("b")], response_format=asked_for)
    payload = chat_payload(request, {}, MESSAGES, Enforced({"type": "object"}, "b"), CONTEXT)
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
    payload = infill_payload(asked(kind="completion", body=body, parameters={"max_tokens": 3}), {}, CONTEXT)
    assert payload == {"input_prefix": "hi", "input_suffix": "bye", "n_predict": 3, **STREAMED}


def test_a_value_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="top_k"):
        chat_payload(asked(parameters={"top_k": "many"}), {}, MESSAGES, None, CONTEXT)


def test_a_plain_completion_is_its_prompt() -> None:
    payload = completion_payload(
        asked(kind="completion", parameters={"max_tokens": 3}), {"max_tokens": 9}, "hi", CONTEXT
    )
    assert payload == {"prompt": "hi", "max_tokens": 3, **STREAMED}


def completion_of_hi(request: Request, set_before: dict[str, Any], context: int) -> dict[str, Any]:
    return completion_payload(request, set_before, "hi", context)


@pytest.mark.parametrize("payload", [infill_payload, completion_of_hi])
def test_a_schema_that_might_not_be_enforced_is_refused(payload: Any) -> None:
    request = asked(kind="completion", parameters={"json_schema": {"type": "object"}}, body={"suffix": "x"})
    with pytest.raises(Unsupported, match="chats only"):
        payload(request, {}, CONTEXT)


@pytest.mark.parametrize("name", ["max_tokens", "repeat_last_n", "dry_penalty_last_n"])
@pytest.mark.parametrize(
    ("wanted", "sent"), [(17, 17), (-1, -1), (CONTEXT + 1, CONTEXT), (2**31, CONTEXT), (2**70, CONTEXT)]
)
def test_no_number_of_tokens_is_above_the_context(name: str, wanted: int, sent: int) -> None:
    payload = chat_payload(asked(parameters={name: wanted}), {}, MESSAGES, None, CONTEXT)
    assert payload[name] == sent


@pytest.mark.parametrize("name", ["top_k", "min_keep", "dry_allowed_length"])
def test_no_other_number_wraps_around_in_32_bits(name: str) -> None:
    payload = chat_payload(asked(parameters={name: 2**32 + 3}), {}, MESSAGES, None, CONTEXT)
    assert payload[name] == 2**31 - 1


def test_a_stop_text_that_is_empty_is_left_out() -> None:
    assert chat_payload(asked(parameters={"stop": ["", "\n"]}), {}, MESSAGES, None, CONTEXT)["stop"] == ["\n"]
    assert chat_payload(asked(parameters={"stop": ""}), {}, MESSAGES, None, CONTEXT)["stop"] == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"reasoning_format": "loud"}, "reasoning_format"),
        ({"reasoning_format": 3}, "reasoning_format"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"chat_template_kwargs": ["a"]}, "chat_template_kwargs"),
        ({"continue_final_message": 1}, "continue_final_message"),
    ],
)
def test_a_field_that_is_passed_on_has_the_type_that_llama_cpp_wants(body: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat_payload(asked(body=body), {}, MESSAGES, None, CONTEXT)
    assert caught.value.param == param


def test_a_completion_asks_for_at_most_20_log_probabilities() -> None:
    with pytest.raises(InvalidRequest, match="logprobs must be at most 20"):
        completion_payload(asked(kind="completion", body={"logprobs": 10**9}), {}, "hi", CONTEXT)


@pytest.mark.parametrize(
    ("wanted", "sent"),
    [
        ({"type": "json_object"}, {"type": "json_object"}),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": {"type": "null"}}},
            {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "null"}}},
        ),
        (
            {"type": "json_object", "schema": {"type": "null"}},
            {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "null"}}},
        ),
    ],
)
def test_a_response_format_is_sent_with_its_schema(wanted: dict[str, Any], sent: dict[str, Any]) -> None:
    request = asked(response_format=wanted)
    check(request)
    assert chat_payload(request, {}, MESSAGES, None, CONTEXT)["response_format"] == sent


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}, "response_format"),
        ({"response_format": {"type": "json_schema", "schema": {"type": "object"}}}, "response_format"),
        ({"parameters": {"grammar": "root ::= " + "(" * 1500}}, "grammar"),
        ({"parameters": {"json_schema": {"minItems": 3, "maxItems": 1}}}, "json_schema"),
        ({"parameters": {"json_schema": {}, "grammar": 'root ::= "a"'}}, "json_schema"),
        ({"parameters": {"logit_bias": {str(token): 1 for token in range(1500)}}}, "logit_bias"),
        ({"parameters": {"logit_bias": {"a" * 1500: 1}}}, "logit_bias"),
        ({"tools": [{"function": {"name": "f", "parameters": {"enum": list(range(1500))}}}]}, "tools"),
    ],
)
def test_what_could_stop_the_engine_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check(asked(**fields))
    assert caught.value.param == param


def test_an_operators_own_grammar_may_be_as_large_as_it_is() -> None:
    own = defaults(grammar='root ::= "a" | ' + " | ".join(f'"{number}"' for number in range(1500)))
    check(asked())
    assert chat_payload(asked(), own, MESSAGES, None, CONTEXT)["grammar"] == own["grammar"]
