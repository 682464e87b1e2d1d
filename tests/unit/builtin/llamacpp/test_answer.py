"""llama.cpp's events read as chunks, and its errors as ours."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kuwa.builtin.llamacpp.answer import Answer
from kuwa.builtin.llamacpp.calls import Enforced
from kuwa.builtin.llamacpp.engine import refusal
from kuwa.executor.chunks import Finish, Progress, RawEvent, Reasoning, Text, ToolCallDelta, Usage
from kuwa.wire.errors import (
    BadUpstream,
    ContextLengthExceeded,
    EngineLost,
    InvalidRequest,
    KuwaError,
    UnreadableAnswer,
    Unsupported,
)


def event(delta: dict[str, Any] | None = None, *, index: int = 0, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": index, "delta": delta or {}, "finish_reason": finish, **more}
    return json.dumps({"choices": [choice], "object": "chat.completion.chunk", "created": 1}).encode()


def usage(prompt: int, completion: int, cached: int = 0) -> bytes:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion}
    return json.dumps({"choices": [], "usage": {**counts, "prompt_tokens_details": {"cached_tokens": cached}}}).encode()


def read(*events: bytes) -> list[Any]:
    answer = Answer()
    return [chunk for data in events for chunk in answer.chunks(data)]


def test_a_prompt_that_is_being_read_is_progress() -> None:
    beside = json.loads(event({"role": "assistant", "content": None}))
    told = json.dumps({**beside, "prompt_progress": {"total": 4096, "cache": 0, "processed": 2048, "time_ms": 5}})
    assert read(told.encode()) == [Progress(2048, 4096)]


def test_an_ordinary_answer_is_text_finish_and_usage() -> None:
    first = event({"role": "assistant", "content": None})
    chunks = read(first, event({"content": "你"}), event({"content": "好"}), event(finish="length"), usage(5, 2, 3))
    assert chunks == [Text("你"), Text("好"), Finish("length"), Usage(5, 2, 3)]


@pytest.mark.parametrize(
    ("formatted", "text", "given"),
    [
        (True, "a\ufffd\ufffd\ufffdb", "a\ufffdb"),
        (True, "\ufffd" * 5, "\ufffd" * 2),
        (True, "a\ufffdb", "a\ufffdb"),
        (False, "a\ufffd\ufffd\ufffdb", "a\ufffd\ufffd\ufffdb"),
    ],
)
def test_in_a_format_one_mark_stands_for_what_counted_as_one_character(formatted: bool, text: str, given: str) -> None:
    assert list(Answer(formatted=formatted).chunks(event({"content": text}))) == [Text(given)]


def test_reasoning_and_tool_calls_are_chunks_of_their_own() -> None:
    opened = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
    more = {"index": 0, "function": {"arguments": '{"a":1}'}}
    chunks = read(
        event({"reasoning_content": "hm"}),
        event({"tool_calls": [opened]}),
        event({"tool_calls": [more]}),
        event(finish="tool_calls"),
    )
    assert chunks == [
        Reasoning("hm"),
        ToolCallDelta(0, "", "f", ""),
        ToolCallDelta(0, "", "", '{"a":1}'),
        Finish("tool_calls"),
    ]


def test_the_usage_of_several_choices_is_their_sum() -> None:
    chunks = read(event({"content": "a"}, index=1), usage(5, 2), usage(5, 3))
    assert chunks == [Text("a", 1), Usage(5, 2), Usage(5, 5)]


def test_the_text_of_a_plain_completion_is_read() -> None:
    assert read(event(text="plain")) == [Text("plain")]


def test_an_error_in_the_stream_is_raised() -> None:
    with pytest.raises(BadUpstream, match="out of memory"):
        read(b'{"error": {"code": 500, "message": "out of memory", "type": "server_error"}}')


UNREADABLE = b'{"error": {"code": 500, "message": "output that does not match the expected format"}}'


def counted(text: str, tokens: int) -> bytes:
    timings = {"cache_n": 3, "prompt_n": 4, "predicted_n": tokens}
    return json.dumps({"choices": [{"index": 0, "delta": {"content": text}}], "timings": timings}).encode()


def test_an_answer_cut_inside_its_format_ends_with_its_length_and_counts() -> None:
    for answer, tokens in ((Answer(formatted=True), 8), (Answer(most_tokens=9), 9)):
        chunks = [chunk for data in (counted('{"a', 8), UNREADABLE) for chunk in answer.chunks(data)]
        assert chunks == [Text('{"a'), Finish("length"), Usage(7, tokens, 3)]


def test_an_answer_that_cannot_be_read_though_it_was_not_cut_is_an_error() -> None:
    with pytest.raises(BadUpstream):
        list(Answer(most_tokens=90).chunks(UNREADABLE))
    with pytest.raises(BadUpstream):
        list(Answer().chunks(UNREADABLE))


def test_log_probabilities_are_passed_on_as_they_are() -> None:
    data = event({"content": "a"}, logprobs={"content": []})
    assert read(data) == [RawEvent(data)]


def test_the_text_of_enforced_calls_is_read_as_calls() -> None:
    answer = Answer(Enforced({}, "f"))
    events = (event({"content": '{"a"'}), event({"content": ":1}"}), event(finish="stop"))
    chunks = [chunk for data in events for chunk in answer.chunks(data)]
    assert chunks == [
        ToolCallDelta(0, "", "f", '{"a"'),
        ToolCallDelta(0, "", "", ":1}"),
        Finish("tool_calls"),
    ]


def test_a_filled_gap_is_text_with_its_counts() -> None:
    end = {"content": "", "stop": True, "stop_type": "limit", "tokens_evaluated": 8, "tokens_predicted": 2}
    assert read(b'{"content": "x", "stop": false}', json.dumps(end).encode()) == [
        Text("x"),
        Finish("length"),
        Usage(8, 2),
    ]


@pytest.mark.parametrize("data", [b"", b"[1]", b'{"choices": 3}', b"\xff"])
def test_what_is_no_event_is_a_bad_upstream(data: bytes) -> None:
    with pytest.raises(BadUpstream, match="cannot be read"):
        read(data)


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (
            400,
            {"type": "exceed_context_size_error", "n_prompt_tokens": 9000, "n_ctx": 4096},
            ContextLengthExceeded,
            "9000 tokens.*4096",
        ),
        (400, {"message": "temperature must be a number"}, InvalidRequest, "temperature"),
        (501, {"message": "no embeddings", "type": "not_supported_error"}, Unsupported, "no embeddings"),
        (503, {"message": "Loading model"}, EngineLost, "Loading model"),
        (401, {"message": "Invalid API Key"}, EngineLost, "Invalid API Key"),
        (500, {"message": "boom"}, BadUpstream, "boom"),
        (500, {"message": "Failed to parse tools: Missing tool type"}, InvalidRequest, "Missing tool type"),
        (500, {"message": "Failed to parse messages: [json.exception.type_error.302]"}, InvalidRequest, "type_error"),
        (500, {"message": "Failed to parse tool call arguments as JSON: line 1"}, InvalidRequest, "line 1"),
        (500, {"message": "Unable to generate parser for this template."}, InvalidRequest, "this template"),
        (500, {"message": "Unknown reasoning format: loud"}, InvalidRequest, "loud"),
        (500, {"message": "Invalid diff: 'a' not found at start of 'b'"}, BadUpstream, "Invalid diff"),
        (500, {"message": "output that does not match the expected peg-native format"}, UnreadableAnswer, "peg-native"),
        (
            500,
            {"message": "input (777 tokens) is too large to process. increase the physical batch size"},
            ContextLengthExceeded,
            "777 tokens",
        ),
        (500, None, BadUpstream, "status 500"),
    ],
)
def test_a_refusal_becomes_the_error_that_fits(
    status: int, body: dict[str, Any] | None, kind: type[KuwaError], words: str
) -> None:
    error = refusal(status, b"<html>" if body is None else json.dumps({"error": body}).encode())
    assert type(error) is kind
    with pytest.raises(kind, match=words):
        raise error
