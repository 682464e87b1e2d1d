"""From OpenAI's messages and fields to Gemini's contents and configuration."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from kuwa.builtin.geminipro.contents import configuration, contents
from kuwa.executor import Request
from kuwa.wire.errors import InvalidRequest

PNG = b"\x89PNG\r\n"
DATA = base64.b64encode(PNG).decode()


def request(**fields: Any) -> Request:
    return Request(id="r", access_code="gemini-pro", **fields)


def config(model: str = "gemini-flash-latest", defaults: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return configuration(request(**fields), defaults or {}, model)


def parts(content: Any) -> list[dict[str, Any]]:
    _, turns = contents([{"role": "user", "content": content}])
    return turns[0]["parts"]


def test_roles_are_mapped_and_the_system_prompt_stands_apart() -> None:
    instruction, turns = contents(
        [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "你好🌊"},
            {"role": "assistant", "content": "hello"},
            {"role": "user", "content": "more"},
        ]
    )
    assert instruction == {"parts": [{"text": "be brief"}]}
    assert turns == [
        {"role": "user", "parts": [{"text": "你好🌊"}]},
        {"role": "model", "parts": [{"text": "hello"}]},
        {"role": "user", "parts": [{"text": "more"}]},
    ]


def test_turns_of_one_role_that_follow_each_other_are_one() -> None:
    _, turns = contents([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    assert turns == [{"role": "user", "parts": [{"text": "a"}, {"text": "b"}]}]


def test_no_system_prompt_is_no_instruction() -> None:
    assert contents([{"role": "system", "content": ""}, {"role": "user", "content": "x"}])[0] is None


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{DATA}"}},
            {"inline_data": {"mime_type": "image/png", "data": PNG}},
        ),
        (
            {"type": "image_url", "image_url": {"url": "https://h/cat.webp?x=1"}},
            {"file_data": {"file_uri": "https://h/cat.webp?x=1", "mime_type": "image/webp"}},
        ),
        (
            {"type": "input_audio", "input_audio": {"data": DATA, "format": "mp3"}},
            {"inline_data": {"mime_type": "audio/mp3", "data": PNG}},
        ),
        (
            {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{DATA}"}},
            {"inline_data": {"mime_type": "application/pdf", "data": PNG}},
        ),
        (
            {"type": "file", "file": {"filename": "a.pdf", "file_data": DATA}},
            {"inline_data": {"mime_type": "application/pdf", "data": PNG}},
        ),
        (
            {"type": "file", "file": {"file_id": "https://h/files/1"}},
            {"file_data": {"file_uri": "https://h/files/1", "mime_type": "application/pdf"}},
        ),
        (
            {"type": "video_url", "video_url": {"url": "https://www.youtube.com/watch?v=1"}},
            {"file_data": {"file_uri": "https://www.youtube.com/watch?v=1", "mime_type": "video/mp4"}},
        ),
        (
            {"type": "image_url", "image_url": "data:image/svg+xml,%3Csvg/%3E"},
            {"inline_data": {"mime_type": "image/svg+xml", "data": b"<svg/>"}},
        ),
    ],
)
def test_each_kind_of_attachment_has_its_part(part: dict[str, Any], expected: dict[str, Any]) -> None:
    assert parts([{"type": "text", "text": "look"}, part]) == [{"text": "look"}, expected]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,!!!"}},
        {"type": "image_url", "image_url": {"url": "data:image/png"}},
        {"type": "image_url", "image_url": {}},
        {"type": "input_audio"},
        {"type": "file", "file": {}},
        {"type": "hologram"},
    ],
)
def test_an_attachment_that_is_none_is_refused(part: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        parts([part])


def test_a_tool_call_and_its_result_find_each_other_and_the_signature_goes_back() -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "臺北"}'},
        "extra_content": {"google": {"thought_signature": DATA}},
    }
    _, turns = contents(
        [
            {"role": "user", "content": "weather?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": '{"degrees": 30}'},
            {"role": "tool", "tool_call_id": "call_1", "content": "hot"},
        ]
    )
    assert turns[1]["parts"] == [
        {"function_call": {"name": "weather", "args": {"city": "臺北"}}, "thought_signature": PNG}
    ]
    assert turns[2] == {
        "role": "user",
        "parts": [
            {"function_response": {"name": "weather", "response": {"degrees": 30}}},
            {"function_response": {"name": "weather", "response": {"result": "hot"}}},
        ],
    }


def test_a_result_without_a_call_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="no call before it"):
        contents([{"role": "tool", "tool_call_id": "x", "content": "1"}])


def test_only_what_was_set_is_sent() -> None:
    assert config() == {}


def test_openais_names_become_geminis() -> None:
    asked = {
        "temperature": 0.5, "top_p": 0.9, "max_tokens": 7, "n": 2, "stop": "x", "seed": 3,
        "presence_penalty": 1, "frequency_penalty": -1, "logprobs": True, "top_logprobs": 2, "top_k": 4,
    }  # fmt: skip
    assert config(parameters=asked) == {
        "temperature": 0.5, "top_p": 0.9, "max_output_tokens": 7, "candidate_count": 2, "stop_sequences": ["x"],
        "seed": 3, "presence_penalty": 1, "frequency_penalty": -1, "response_logprobs": True, "logprobs": 2,
        "top_k": 4,
    }  # fmt: skip


def test_the_request_goes_over_the_operators_values() -> None:
    found = config(defaults={"temperature": 0.1, "top_p": 0.2}, parameters={"temperature": 0.9})
    assert found == {"temperature": 0.9, "top_p": 0.2}


def test_a_value_that_gemini_would_refuse_is_refused_with_its_name() -> None:
    with pytest.raises(InvalidRequest) as raised:
        config(parameters={"top_k": 0})
    assert raised.value.param == "top_k"


@pytest.mark.parametrize(
    ("model", "effort", "thinking"),
    [
        ("gemini-2.5-flash", "low", {"thinking_budget": 1024}),
        ("gemini-2.5-flash", "none", {"thinking_budget": 0}),
        ("gemini-3-pro", "high", {"thinking_level": "HIGH"}),
        ("gemini-flash-latest", "none", {"thinking_budget": 0}),
    ],
)
def test_reasoning_effort_becomes_what_the_model_understands(model: str, effort: str, thinking: dict[str, Any]) -> None:
    found = config(model, {"thinking_budget": 5, "include_thoughts": True}, parameters={"reasoning_effort": effort})
    assert found["thinking_config"] == {"include_thoughts": True, **thinking}


def test_safety_thresholds_are_settings_of_their_categories() -> None:
    assert config(defaults={"safety_harassment": "block_none"})["safety_settings"] == [
        {"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}
    ]


FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}


@pytest.mark.parametrize(
    ("choice", "calling"),
    [
        ("auto", {"mode": "AUTO"}),
        ("required", {"mode": "ANY"}),
        ({"type": "function", "function": {"name": "f"}}, {"mode": "ANY", "allowed_function_names": ["f"]}),
    ],
)
def test_tools_become_declarations_and_the_choice_a_mode(choice: Any, calling: dict[str, Any]) -> None:
    found = config(tools=[{"type": "function", "function": FUNCTION}], tool_choice=choice)
    schema = {"type": "object", "properties": {}}
    assert found["tools"] == [
        {"function_declarations": [{"name": "f", "description": "d", "parameters_json_schema": schema}]}
    ]
    assert found["tool_config"] == {"function_calling_config": calling}
    assert found["automatic_function_calling"] == {"disable": True}


def test_structured_output_asks_for_json_with_its_schema() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert config(response_format=wanted) == {
        "response_mime_type": "application/json",
        "response_json_schema": schema,
    }
    assert config(response_format={"type": "json_object"}) == {"response_mime_type": "application/json"}
    assert config(response_format={"type": "text"}) == {}
