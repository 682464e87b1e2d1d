"""From tokens to chunks: stop strings, finishes, log probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from kuwa.builtin.huggingface.answer import ChoiceAnswer
from kuwa.builtin.huggingface.parts import PartReader
from kuwa.engine.request import Drawn, EndReason
from kuwa.executor.chunks import Chunk, Finish, RawEvent, Reasoning, Text, ToolCallDelta

END = 0


def decode(ids: Sequence[int]) -> str:
    return bytes(i for i in ids if i != END).decode("utf-8", "replace")


def chunks(text: str, reason: EndReason = "stop", end: bool = True, **options: Any) -> list[Chunk]:
    answer = ChoiceAnswer(0, decode, silent={END}, **options)
    found: list[Chunk] = []
    for token in [*text.encode(), *([END] if end else [])]:
        found += answer.take(Drawn(token))
        if answer.stopped:
            return [*found, *answer.finish("stop")]
    return [*found, *answer.finish(reason)]


def text_of(found: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in found if isinstance(chunk, Text))


def test_an_answer_is_its_text_and_its_finish() -> None:
    found = chunks("Ahoy 🌊")
    assert (text_of(found), found[-1]) == ("Ahoy 🌊", Finish("stop"))
    assert chunks("Ah", "length", end=False)[-1] == Finish("length")


@given(st.text(alphabet="abc燈", max_size=30), st.lists(st.text(alphabet="abc燈", min_size=1, max_size=4), max_size=3))
def test_no_part_of_a_stop_string_is_shown(text: str, stops: list[str]) -> None:
    found = chunks(text, stops=stops)
    places = [text.index(stop) for stop in stops if stop in text]
    assert text_of(found) == text[: min(places, default=len(text))]
    assert found[-1] == Finish("stop")


def test_a_stop_string_ends_an_answer_that_was_cut_at_its_length_with_stop() -> None:
    assert chunks("ab", "length", end=False, stops=["ab"])[-1] == Finish("stop")
    assert chunks("ab", "length", end=False, stops=["bc"])[-1] == Finish("length")


def test_reasoning_and_calls_are_chunks_of_their_own() -> None:
    parts = PartReader(thinks=False, calls=True)
    found = chunks('<think>hm</think>ok<tool_call>{"name": "f"}</tool_call>', parts=parts)
    assert "".join(c.text for c in found if isinstance(c, Reasoning)) == "hm"
    assert text_of(found) == "ok"
    assert [c for c in found if isinstance(c, ToolCallDelta)] == [ToolCallDelta(0, name="f", arguments="{}")]
    assert found[-1] == Finish("tool_calls")


def test_log_probabilities_come_with_each_token_and_with_its_text() -> None:
    answer = ChoiceAnswer(1, decode, silent={END}, logprobs=True)
    found = [c for token in "é!".encode() for c in answer.take(Drawn(token, -0.5, ((33, -0.25), (token, -0.5))))]
    events = [msgspec.json.decode(c.data)["choices"][0] for c in found if isinstance(c, RawEvent)]
    assert len(events) == len(found) == 3
    assert "".join(event["delta"]["content"] for event in events) == "é!"
    (last,) = events[2]["logprobs"]["content"]
    assert (last["token"], last["bytes"], last["logprob"]) == ("!", [33], -0.5)
    assert [top["logprob"] for top in last["top_logprobs"]] == [-0.25, -0.5]
    assert answer.take(Drawn(END, -0.1)) == []


def test_a_plain_completion_has_the_older_shape() -> None:
    answer = ChoiceAnswer(0, decode, kind="completion", logprobs=True)
    events = [
        msgspec.json.decode(c.data)["choices"][0]
        for token in b"ab"
        for c in answer.take(Drawn(token, float("-inf"), ((97, -0.5),)))
        if isinstance(c, RawEvent)
    ]
    assert [event["text"] for event in events] == ["a", "b"]
    assert events[1]["logprobs"] == {
        "tokens": ["b"],
        "token_logprobs": [-9999.0],
        "top_logprobs": [{"a": -0.5}],
        "text_offset": [1],
    }
