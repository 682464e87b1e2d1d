"""What an executor yields as the bytes of a response. Every answer must be one the OpenAI SDK accepts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from kuwa.executor import Chunk, Finish, Progress, RawEvent, Reasoning, Request, Text, ToolCallDelta, Usage
from kuwa.executor.answer import Answer, RawText, Whole, WrongChunk, estimated_tokens
from kuwa.executor.events import Events
from kuwa.wire.errors import BadUpstream
from kuwa.wire.sse import DONE, SseReader


def request(kind: Any = "chat", **parameters: Any) -> Request:
    body = {"stream_options": {"include_usage": True}} if parameters.pop("usage", False) else {}
    messages = [{"role": "user", "content": "Hello"}]
    return Request(id="r1", access_code="m", kind=kind, messages=messages, parameters=parameters, body=body)


def answer(kind: type[Answer], chunks: list[Chunk], asked: Request | None = None) -> bytes:
    made = kind(asked or request(), created=5, cuts_stops=True)
    return b"".join([made.take(chunk) for chunk in chunks]) + made.finish()


def events(data: bytes) -> list[dict[str, Any]]:
    *datas, last = [event.data for event in SseReader().feed(data)]
    assert last == DONE
    return [json.loads(event) for event in datas]


def whole(chunks: list[Chunk], asked: Request | None = None) -> dict[str, Any]:
    return json.loads(answer(Whole, chunks, asked))


def raw(**choice: Any) -> RawEvent:
    return RawEvent(json.dumps({"id": "theirs", "choices": [{"index": 0, **choice}], "x_new": 1}).encode())


class TestEvents:
    def test_a_stream_is_role_text_finish(self) -> None:
        found = events(answer(Events, ["He", "llo 🙂"]))
        deltas = [event["choices"][0]["delta"] for event in found]
        assert deltas == [{"role": "assistant", "content": ""}, {"content": "He"}, {"content": "llo 🙂"}, {}]
        assert [event["choices"][0]["finish_reason"] for event in found] == [None, None, None, "stop"]
        assert {(e["id"], e["created"], e["model"]) for e in found} == {("chatcmpl-r1", 5, "m")}
        for event in found:
            ChatCompletionChunk.model_validate_json(json.dumps(event), strict=True)

    def test_nothing_yielded_is_an_empty_answer_with_a_role_and_a_finish(self) -> None:
        assert [e["choices"][0]["finish_reason"] for e in events(answer(Events, [""]))] == [None, "stop"]

    def test_usage_comes_last_and_only_when_asked_for(self) -> None:
        chunks: list[Chunk] = ["a", Usage(3, 4, cached_tokens=2)]
        assert all(event["choices"] for event in events(answer(Events, chunks)))
        last = events(answer(Events, chunks, request(usage=True)))[-1]
        assert last["choices"] == []
        assert last["usage"] == {
            "prompt_tokens": 3,
            "completion_tokens": 4,
            "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 2},
        }

    def test_a_usage_that_nobody_counted_says_that_it_is_estimated(self) -> None:
        usage = events(answer(Events, ["abcd" * 4], request(usage=True)))[-1]["usage"]
        assert usage == {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9, "estimated": True}

    def test_reasoning_tool_calls_and_choices(self) -> None:
        chunks: list[Chunk] = [
            Reasoning("hm"),
            ToolCallDelta(0, name="add"),
            ToolCallDelta(0, arguments='{"a":1}'),
            Text("other", choice=1),
            Finish("length", choice=1),
        ]
        found = events(answer(Events, chunks, request(n=2)))
        assert found[1]["choices"][0]["delta"] == {"reasoning_content": "hm"}
        call = found[2]["choices"][0]["delta"]["tool_calls"][0]
        assert call["id"].startswith("call_")
        assert (call["type"], call["function"]) == ("function", {"name": "add", "arguments": ""})
        assert found[3]["choices"][0]["delta"]["tool_calls"] == [{"index": 0, "function": {"arguments": '{"a":1}'}}]
        finishes = {c["index"]: c["finish_reason"] for e in found for c in e["choices"] if c["finish_reason"]}
        assert finishes == {0: "tool_calls", 1: "length"}
        for event in found:
            ChatCompletionChunk.model_validate_json(json.dumps(event), strict=True)

    def test_a_made_up_call_id_is_the_same_each_time(self) -> None:
        assert answer(Events, [ToolCallDelta(0, name="f")]) == answer(Events, [ToolCallDelta(0, name="f")])

    def test_a_completion_has_text_and_no_role(self) -> None:
        found = events(answer(Events, ["a", "b"], request("completion")))
        assert [event["choices"][0]["text"] for event in found] == ["a", "b", ""]
        assert found[0]["object"] == "text_completion"

    def test_half_a_surrogate_pair_becomes_the_replacement_character(self) -> None:
        assert "�" in answer(Events, ["a\ud83d"]).decode()

    def test_what_is_no_chunk_is_refused_by_its_name(self) -> None:
        wrong: Any = 3
        with pytest.raises(WrongChunk, match="int"):
            answer(Events, [wrong])

    @given(st.lists(st.text(max_size=20), max_size=20))
    def test_the_texts_together_are_what_was_yielded(self, pieces: list[str]) -> None:
        found = events(answer(Events, list(pieces)))
        assert "".join(e["choices"][0]["delta"].get("content", "") for e in found) == "".join(pieces)


def test_progress_is_a_comment_in_a_stream_and_nothing_elsewhere() -> None:
    assert Events(request(), created=1, cuts_stops=False).take(Progress(5, 10)) == b": computing 5/10\n\n"
    assert Events(request(), created=1, cuts_stops=False).take(Progress()) == b": computing\n\n"
    assert Whole(request(), created=1, cuts_stops=False).take(Progress(5, 10)) == b""
    assert RawText(request(), created=1, cuts_stops=False).take(Progress(5, 10)) == b""


class TestRawStream:
    def test_pieces_of_one_call_are_put_together_also_within_one_delta(self) -> None:
        pieces = [
            {"index": 0, "id": "a", "function": {"name": "tide", "arguments": ""}},
            {"index": 0, "function": {"arguments": '{"h'}},
            {"index": 1, "id": "b", "function": {"name": "wind", "arguments": "{}"}},
        ]
        last = raw(delta={"tool_calls": [{"index": 0, "function": {"arguments": '": 1}'}}]})
        calls = whole([raw(delta={"tool_calls": pieces}), last])["choices"][0]["message"]["tool_calls"]
        assert [call["function"] for call in calls] == [
            {"name": "tide", "arguments": '{"h": 1}'},
            {"name": "wind", "arguments": "{}"},
        ]

    def test_lists_of_things_without_a_number_are_joined(self) -> None:
        found = whole(
            [raw(delta={"notes": [{"index": 3, "url": "a"}, {"url": "b"}, "c"]}), raw(delta={"notes": ["d"]})]
        )
        notes = found["choices"][0]["message"]["notes"]
        assert notes == [{"index": 3, "url": "a"}, {"url": "b"}, "c", "d"]

    def test_a_raw_event_keeps_unknown_fields_and_gets_our_id(self) -> None:
        chunks: list[Chunk] = [
            raw(delta={"role": "assistant", "content": ""}),
            raw(delta={"content": "a", "x_delta": 2}, logprobs={"content": []}),
            raw(delta={"role": "assistant", "content": "b"}),
            raw(delta={}, finish_reason="length"),
            RawEvent(b'{"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}'),
        ]
        found = events(answer(Events, chunks, request(usage=True)))
        assert [e["id"] for e in found] == ["chatcmpl-r1"] * 5
        assert found[0]["choices"][0]["delta"]["role"] == "assistant"
        assert found[1]["choices"][0]["delta"] == {"content": "a", "x_delta": 2}
        assert found[1]["choices"][0]["logprobs"] == {"content": []}
        assert found[1]["x_new"] == 1
        assert found[2]["choices"][0]["delta"] == {"content": "b"}
        assert found[3]["choices"][0]["finish_reason"] == "length"
        assert found[4]["usage"]["total_tokens"] == 3

    def test_an_event_with_a_role_alone_is_no_content_yet(self) -> None:
        made = Events(request(), created=5, cuts_stops=True)
        assert made.take(raw(delta={"role": "assistant", "content": "", "refusal": None})) == b""

    @pytest.mark.parametrize("data", [b"{", b"[]", b'{"choices": 3}', b'{"choices": [3]}', b"\xff"])
    def test_what_is_no_event_is_a_bad_upstream(self, data: bytes) -> None:
        with pytest.raises(BadUpstream):
            answer(Events, [RawEvent(data)])

    def test_raw_pieces_are_put_together_for_a_whole_answer(self) -> None:
        call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
        chunks: list[Chunk] = [
            raw(delta={"content": "a", "reasoning_content": "x"}, logprobs={"content": [1]}),
            raw(delta={"content": "b", "reasoning_content": "y"}, logprobs={"content": [2]}),
            raw(delta={"tool_calls": [call]}),
            raw(delta={"tool_calls": [{"index": 0, "function": {"arguments": '{"k":'}}]}),
            raw(delta={"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]}),
            raw(delta={}, finish_reason="tool_calls"),
        ]
        choice = whole(chunks)["choices"][0]
        assert choice["message"]["content"] == "ab"
        assert choice["message"]["reasoning_content"] == "xy"
        assert choice["logprobs"] == {"content": [1, 2]}
        assert choice["message"]["tool_calls"] == [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"k":1}'}}
        ]
        assert choice["finish_reason"] == "tool_calls"


class TestWhole:
    def test_a_whole_answer_is_one_that_the_sdk_accepts(self) -> None:
        body = whole(["He", "llo"])
        found = ChatCompletion.model_validate_json(json.dumps(body), strict=True)
        assert found.choices[0].message.content == "Hello"
        assert found.usage is not None

    def test_a_completion_too(self) -> None:
        body = whole(["He", "llo"], request("completion"))
        assert Completion.model_validate_json(json.dumps(body), strict=True).choices[0].text == "Hello"

    def test_tool_calls_without_text_have_no_content(self) -> None:
        choice = whole([ToolCallDelta(0, id="c", name="f", arguments="{}")])["choices"][0]
        assert choice["message"]["content"] is None
        assert choice["finish_reason"] == "tool_calls"

    @given(st.lists(st.sampled_from(["a", "EN", "E", "N", "D", "xEND"]), max_size=8))
    def test_streamed_or_not_the_stop_string_cuts_the_same(self, pieces: list[str]) -> None:
        asked = request(stop=["END"])
        streamed = events(answer(Events, list(pieces), asked))
        text = "".join(e["choices"][0]["delta"].get("content", "") for e in streamed)
        assert text == whole(list(pieces), asked)["choices"][0]["message"]["content"]
        assert text == "".join(pieces).split("END")[0]


def test_raw_text_is_the_text_alone() -> None:
    assert answer(RawText, ["你", Reasoning("hm"), Usage(1, 1), "好", Finish("stop")]) == "你好".encode()


def test_an_answer_is_cut_once_every_choice_has_stopped() -> None:
    made = Events(request(stop="X", n=2), created=5, cuts_stops=True)
    made.take(Text("aX", choice=0))
    assert not made.cut
    made.take(Text("bX", choice=1))
    assert made.cut


def test_an_executor_that_handles_stop_strings_is_not_cut() -> None:
    made = Events(request(stop="X"), created=5, cuts_stops=False)
    assert b"aXb" in made.take("aXb")


@pytest.mark.parametrize(("characters", "wide", "tokens"), [(0, 0, 0), (1, 0, 1), (8, 0, 2), (4, 4, 4), (9, 1, 3)])
def test_the_estimate_of_tokens(characters: int, wide: int, tokens: int) -> None:
    assert estimated_tokens(characters, wide) == tokens
