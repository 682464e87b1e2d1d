"""llama.cpp's events read as chunks, and its errors as ours."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kuwa.builtin.llamacpp.answer import Answer
from kuwa.builtin.llamacpp.engine import refusal
from kuwa.executor.chunks import Finish, Reasoning, Text, ToolCallDelta, Usage
from kuwa.wire.errors import (
    BadUpstream,
    ContextLengthExceeded,
    EngineLost,
    InvalidRequest,
    KuwaError,
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


def test_an_ordinary_answer_is_text_finish_and_usage() -> None:
    first = event({"role": "assistant", "content": None})
    chunks = read(first, event({"content": "你"}), event({"content": "好"}), event(finish="length"), usage(5, 2, 3))
    assert chunks == [Text("你"), Text("好"), Finish("length"), Usage(5, 2, 3)]


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
