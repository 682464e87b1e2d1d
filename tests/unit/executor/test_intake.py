"""Request bodies: what is read of them, and what is refused with which parameter named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuwa.executor.intake import Intake, include_usage, stop_strings
from kuwa.wire.errors import InvalidRequest, KuwaError, ModelNotFound, Unsupported

PLAIN = Intake(["m", "other"], [], trim_history=False)
ABLE = Intake(["m"], ["tools", "images", "response_format", "logprobs", "n", "suffix", "echo"], trim_history=True)
HI = [{"role": "user", "content": "hi"}]


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": HI, **fields}).encode()


def test_a_chat_is_read() -> None:
    request = PLAIN.chat("r1", body(stream=True, temperature=0.3, top_k=5, user="me", stop=["a"], seed=None))
    assert (request.id, request.access_code, request.kind, request.stream) == ("r1", "m", "chat", True)
    assert request.messages == HI
    assert request.parameters == {"temperature": 0.3, "top_k": 5, "stop": ["a"]}
    assert request.body["user"] == "me"
    assert stop_strings(request) == ["a"]
    assert not include_usage(request)


def test_developer_is_system_and_text_parts_are_text() -> None:
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "kind"}]},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "tool_call_id": "c", "content": "4"},
        *HI,
    ]
    request = PLAIN.chat("r1", body(messages=messages))
    assert request.messages[0] == {"role": "system", "content": "be kind"}
    assert request.messages[1]["content"] is None
    assert request.messages[2]["tool_call_id"] == "c"


def test_max_completion_tokens_is_max_tokens() -> None:
    assert PLAIN.chat("r1", body(max_completion_tokens=7)).parameters == {"max_tokens": 7}


def test_what_the_kernel_adds_for_the_old_wire_is_applied() -> None:
    commands = [
        {"name": "system", "args": "sys"},
        {"name": "parameter", "args": "llm_temperature 0.9"},
        {"name": "parameter", "args": "llm_top_p 0.5"},
        {"name": "before-prompt", "args": "<"},
    ]
    form = {"modelfile": json.dumps(commands), "user_id": "7"}
    extension = {"form": form, "trim_history": True, "language": "zh-TW"}
    request = PLAIN.chat("r1", body(temperature=0.1, kuwa=extension))
    assert request.messages == [{"role": "system", "content": "sys"}, {"role": "user", "content": "<hi"}]
    assert request.conversation == HI
    assert request.parameters == {"temperature": 0.1, "top_p": 0.5}
    assert (request.trim_history, request.language) == (True, "zh-TW")
    assert request.modelfile.parameters["_"] == {"user_id": "7"}


def test_trim_history_is_the_operators_choice_for_openai_clients() -> None:
    assert ABLE.chat("r1", body()).trim_history
    assert not PLAIN.chat("r1", body()).trim_history


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [3]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "messages[0].content[0]"),
        ({"model": 3}, "model"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"stop": 3}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"tools": {}}, "tools"),
        ({"kuwa": {"form": {"modelfile": "{"}}}, "modelfile"),
    ],
)
def test_a_bad_field_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ABLE.chat("r1", body(**fields))
    assert caught.value.param == param


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"3", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b'{"model": "m"}']
)
def test_what_is_no_body_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        PLAIN.chat("r1", data)


def test_an_unknown_model_is_not_found_and_the_known_ones_are_named() -> None:
    with pytest.raises(ModelNotFound, match="m, other"):
        PLAIN.chat("r1", body(model="x"))


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"n": 2},
        {"logprobs": True},
        {"response_format": {"type": "json_object"}},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
    ],
)
def test_what_an_executor_cannot_do_is_refused_and_what_it_can_is_not(fields: dict[str, Any]) -> None:
    with pytest.raises(Unsupported):
        PLAIN.chat("r1", body(**fields))
    assert ABLE.chat("r1", body(**fields)).body


@pytest.mark.parametrize(
    "fields", [{"tools": []}, {"n": 1}, {"response_format": {"type": "text"}}, {"logprobs": False}]
)
def test_asking_for_nothing_special_needs_no_capability(fields: dict[str, Any]) -> None:
    assert PLAIN.chat("r1", body(**fields)).messages


def test_tool_choice_none_means_no_tools() -> None:
    assert PLAIN.chat("r1", body(tools=[{"type": "function"}], tool_choice="none")).tools == []


def test_a_completion_has_one_prompt_of_text() -> None:
    request = PLAIN.completion("r1", b'{"model": "m", "prompt": ["once"], "stream": true}')
    assert (request.kind, request.messages) == ("completion", [{"role": "user", "content": "once"}])
    for prompt in ("[1, 2]", '["a", "b"]', "[[1]]"):
        with pytest.raises(Unsupported):
            PLAIN.completion("r1", b'{"model": "m", "prompt": %b}' % prompt.encode())


def test_a_form_is_read() -> None:
    form = {
        "name": "m",
        "input": '[{"msg": "a", "isbot": false}, {"msg": "b", "isbot": true}, {"msg": "c", "isbot": false}]',
        "modelfile": '[{"name": "parameter", "args": "llm_temperature 0.5"}]',
        "openai_token": "k",
    }
    request = PLAIN.form("r1", form, "zh-TW")
    assert [message["content"] for message in request.messages] == ["a", "b", "c"]
    assert request.parameters == {"temperature": 0.5}
    assert request.trim_history
    assert request.stream
    assert request.form["openai_token"] == "k"
    with pytest.raises(InvalidRequest):
        PLAIN.form("r1", {"name": "m"}, "")


@pytest.mark.parametrize(
    ("given", "inputs"), [('"a"', ["a"]), ('["a", "b"]', ["a", "b"]), ("[1, 2]", [[1, 2]]), ("[[1], [2]]", [[1], [2]])]
)
def test_inputs_to_embed_are_one_or_several(given: str, inputs: list[Any]) -> None:
    request, as_base64 = PLAIN.embedding("r1", b'{"model": "m", "input": %b}' % given.encode(), "key")
    assert (request.inputs, request.provider_key, as_base64) == (inputs, "key", False)


@pytest.mark.parametrize("given", ["[]", "3", '[1, "a"]', "null"])
def test_nothing_to_embed_is_refused(given: str) -> None:
    with pytest.raises(InvalidRequest):
        PLAIN.embedding("r1", b'{"model": "m", "input": %b}' % given.encode(), "")


def test_documents_to_rerank_are_texts_or_objects_with_a_text() -> None:
    data = b'{"model": "m", "query": "q", "documents": ["a", {"text": "b"}], "top_n": 9, "return_documents": true}'
    request, with_documents = PLAIN.ranking("r1", data, "")
    assert (request.documents, request.top_n, with_documents) == (["a", "b"], 2, True)


FIELDS = ["model", "messages", "prompt", "input", "stream", "temperature", "stop", "kuwa", "tools", "n", "documents"]
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "type"]), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(FIELDS), ANY_JSON))
def test_any_body_is_read_or_refused_with_a_4xx(fields: dict[str, Any]) -> None:
    data = json.dumps({"model": "m", **fields}).encode()
    for read in (
        lambda: ABLE.chat("r", data),
        lambda: ABLE.completion("r", data),
        lambda: ABLE.embedding("r", data, ""),
        lambda: ABLE.ranking("r", data, ""),
    ):
        status = 200
        try:
            read()
        except KuwaError as error:
            status = error.status
        assert status < 500


def test_tools_and_calls_reach_an_executor_in_one_form() -> None:
    tool = {"function": {"name": "tell", "description": None, "parameters": None, "strict": None}}
    call = {"id": "c1", "function": {"name": "tell", "arguments": ""}}
    history = [
        {"role": "assistant", "content": None, "name": None, "refusal": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "done"},
    ]
    request = ABLE.chat("r1", body(messages=[*HI, *history], tools=[tool]))
    assert request.tools == [{"type": "function", "function": {"name": "tell"}}]
    told = {"id": "c1", "type": "function", "function": {"name": "tell", "arguments": "{}"}}
    assert request.messages[1] == {"role": "assistant", "content": None, "tool_calls": [told]}


def test_an_executor_that_passes_bodies_on_lets_its_server_judge_tools() -> None:
    passing = Intake(["m"], ["tools"], trim_history=False, passes_on=True)
    fields = {
        "tools": [{"type": "custom", "custom": {"name": "shell"}}],
        "functions": [{"name": "old"}],
        "messages": [{"role": "assistant", "content": None, "tool_calls": [{"type": "custom"}], "name": 3}, *HI],
    }
    request = passing.chat("r1", body(**fields))
    assert request.tools == fields["tools"]
    assert request.body["messages"] == fields["messages"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"functions": [{"name": "old"}]}, "functions"),
        ({"messages": [{"role": "user", "content": "x", "name": 7}]}, "messages[0].name"),
        ({"messages": [*HI, {"role": "tool", "content": "x", "tool_call_id": 7}]}, "messages[1].tool_call_id"),
        ({"messages": [*HI, {"role": "assistant", "reasoning_content": []}]}, "messages[1].reasoning_content"),
        ({"messages": [*HI, {"role": "assistant", "tool_calls": {}}]}, "messages[1].tool_calls"),
    ],
)
def test_what_no_model_of_ours_can_read_is_refused_with_its_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(KuwaError) as caught:
        ABLE.chat("r1", body(**fields))
    assert (caught.value.status, caught.value.param) == (400, param)


def test_an_empty_stop_text_stops_nothing() -> None:
    assert stop_strings(PLAIN.chat("r1", body(stop=["", "x"]))) == ["x"]
    assert stop_strings(PLAIN.chat("r1", body(stop=""))) == []
