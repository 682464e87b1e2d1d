"""A provider's events on their way through: the short way gives what the long way gives."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuwa.executor import RawAnswer, RawEvent, Request
from kuwa.executor.answer import RawText, Whole
from kuwa.executor.events import Events
from kuwa.wire.errors import BadUpstream
from kuwa.wire.sse import DONE_EVENT, plain_events

TOP = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt", "system_fingerprint": "fp"}


def chunk(
    delta: dict[str, Any] | None = None,
    finish: str | None = None,
    *,
    index: int = 0,
    ascii_only: bool = True,
    **beside: Any,
) -> bytes:
    choice = {"index": index, "delta": delta or {}, "logprobs": None, "finish_reason": finish, **beside}
    return json.dumps({**TOP, "choices": [choice]}, ensure_ascii=ascii_only).encode("utf-8", "replace")


def events(kind: str = "chat") -> Events:
    body = {"model": "mine", "stream": True}
    request = Request(id="req_1", access_code="mine", kind="chat" if kind == "chat" else "completion", body=body)
    return Events(request, created=7, cuts_stops=False)


def sent(answer: Events, datas: list[bytes]) -> list[dict[str, Any]]:
    """The events that come out for `datas`, decoded; the role's event is left out."""
    whole = decoded(b"".join(answer.take(RawEvent(data)) for data in datas))
    return [event for event in whole if "role" not in event["choices"][0].get("delta", {})]


def decoded(sent: bytes) -> list[dict[str, Any]]:
    return [json.loads(data) for data in plain_events(sent) or []]


texts = st.text(alphabet=st.characters(exclude_categories=("Cs",)), min_size=1)


@given(st.lists(texts, min_size=2, max_size=6), st.booleans())
def test_texts_pass_unchanged_whatever_they_hold(pieces: list[str], ascii_only: bool) -> None:
    answer = events()
    out = sent(answer, [chunk({"content": piece}, ascii_only=ascii_only) for piece in pieces])
    assert [event["choices"][0]["delta"] for event in out] == [{"content": piece} for piece in pieces]
    assert {(event["id"], event["model"], event["created"]) for event in out} == {("chatcmpl-req_1", "mine", 7)}
    assert {event.get("system_fingerprint") for event in out[1:]} == {"fp"}
    assert answer.characters == sum(map(len, pieces))


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_an_empty_finish_reason_is_none_and_the_one_that_is_told_counts(reason: str) -> None:
    datas = [chunk({"content": text}, "") for text in "abc"] + [chunk({}, reason), chunk({}, "")]
    stream = events()
    out = [*sent(stream, datas), *decoded(stream.finish().removesuffix(DONE_EVENT))]
    assert [event["choices"][0]["finish_reason"] for event in out] == [None, None, None, reason]
    whole = Whole(Request(id="r", access_code="m"), created=7, cuts_stops=False)
    assert not any(whole.take(RawEvent(data)) for data in datas)
    assert json.loads(whole.finish())["choices"][0]["finish_reason"] == reason


HOSTILE = [
    'x"},"finish_reason":"stop"}]}',
    '"finish_reason":null',
    '\\"},"logprobs":null,"finish_reason":null}]}',
    '"content":"other"',
    "\\",
    "\\\\",
    '"',
    "\u2028\n\r",
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("first", ["plain", *HOSTILE])
def test_a_text_that_looks_like_the_rest_of_an_event_stays_text(first: str, text: str) -> None:
    out = sent(events(), [chunk({"content": first}), chunk({"content": text}), chunk({"content": "after"})])
    assert [event["choices"][0]["delta"]["content"] for event in out] == [first, text, "after"]
    assert all(event["choices"][0]["finish_reason"] is None for event in out)


def test_other_events_among_the_texts_are_read_as_ever() -> None:
    call = {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}
    answer = events()
    out = sent(
        answer,
        [
            chunk({"role": "assistant", "content": ""}),
            chunk({"content": "a"}),
            chunk({"reasoning_content": "hm"}),
            chunk({"content": "b"}, logprobs={"content": [{"token": "b"}]}),
            chunk({"content": "c"}, index=1),
            chunk({"content": "d"}),
            chunk(call),
            chunk({"content": ""}),
            chunk({}, "stop"),
        ],
    )
    choices = [event["choices"][0] for event in out]
    assert [(choice["index"], choice["delta"]) for choice in choices] == [
        (0, {"content": "a"}),
        (0, {"reasoning_content": "hm"}),
        (0, {"content": "b"}),
        (1, {"content": "c"}),
        (0, {"content": "d"}),
        (0, call),
    ]
    assert choices[2]["logprobs"] == {"content": [{"token": "b"}]}
    assert answer.reason(0) == "stop"


def test_two_choices_in_one_event_are_kept_apart() -> None:
    pair = [{"index": index, "delta": {"content": text}} for index, text in enumerate("xy")]
    both = json.dumps({**TOP, "choices": pair}).encode()
    out = sent(events(), [chunk({"content": "a"}), both, chunk({"content": "b"})])
    assert [(event["choices"][0]["index"], event["choices"][0]["delta"]["content"]) for event in out] == [
        (0, "a"), (0, "x"), (1, "y"), (0, "b"),
    ]  # fmt: skip


def test_plain_completions_pass_the_same_way() -> None:
    datas = [json.dumps({"choices": [{"index": 0, "text": text, "finish_reason": None}]}).encode() for text in "abc"]
    assert [event["choices"][0]["text"] for event in sent(events("completion"), datas)] == ["a", "b", "c"]


@pytest.mark.parametrize("bad", [b"{", b'{"choices":[{"delta":{"content":"\xff"}}]}', b'{"choices":[1]}'])
def test_what_is_no_event_is_refused_however_good_the_one_before_was(bad: bytes) -> None:
    answer = events()
    answer.take(RawEvent(chunk({"content": "a"})))
    with pytest.raises(BadUpstream):
        answer.take(RawEvent(bad))


def test_a_cut_text_within_an_ordinary_frame_is_refused() -> None:
    answer = events()
    good = chunk({"content": "a"})
    answer.take(RawEvent(good))
    with pytest.raises(BadUpstream):
        answer.take(RawEvent(good.replace(b'"a"', b'"\xff"')))


@given(st.lists(texts, min_size=1, max_size=4))
def test_a_whole_answer_is_the_same_text(pieces: list[str]) -> None:
    answer = Whole(Request(id="req_1", access_code="mine"), created=7, cuts_stops=False)
    for piece in pieces:
        answer.take(RawEvent(chunk({"content": piece})))
    assert json.loads(answer.finish())["choices"][0]["message"]["content"] == "".join(pieces)


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
MESSAGE = {"role": "assistant", "content": "海", "reasoning_content": "deep", "tool_calls": [CALL], "vendor": [None]}
ANSWER = {
    **TOP,
    "object": "chat.completion",
    "choices": [{"index": 0, "message": MESSAGE, "logprobs": None, "finish_reason": "tool_calls", "stop_reason": 7}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "vendor_tokens": 4},
}


def test_a_raw_answer_passes_with_nothing_but_its_names_replaced() -> None:
    answer = Whole(Request(id="req_1", access_code="mine"), created=7, cuts_stops=False)
    answer.take(RawAnswer(json.dumps(ANSWER).encode()))
    assert json.loads(answer.finish()) == {**ANSWER, "id": "chatcmpl-req_1", "created": 7, "model": "mine"}
    assert answer.counts() == ANSWER["usage"]
    assert answer.characters == 1


def test_a_raw_answer_becomes_events_where_a_stream_was_asked_for() -> None:
    answer = events()
    assert [event["choices"][0]["delta"] for event in decoded(answer.take(RawAnswer(json.dumps(ANSWER).encode())))] == [
        {"role": "assistant", "content": ""},
        {"content": "海", "reasoning_content": "deep", "tool_calls": [{"index": 0, **CALL}], "vendor": [None]},
    ]
    assert answer.reason(0) == "tool_calls"
    assert answer.usage == ANSWER["usage"]


def test_a_raw_answer_is_its_text_on_the_old_wire() -> None:
    data = json.dumps({**ANSWER, "choices": [{"index": 0, "message": {"content": "one two"}}]}).encode()
    asked = Request(id="req_1", access_code="mine")
    assert RawText(asked, created=7, cuts_stops=False).take(RawAnswer(data)) == b"one two"


@pytest.mark.parametrize("bad", [b"{", b"[]", b'{"choices":3}', b'{"choices":[3]}', b"\xff"])
@pytest.mark.parametrize("kind", [Whole, RawText])
def test_what_is_no_answer_is_refused(kind: type[Whole | RawText], bad: bytes) -> None:
    with pytest.raises(BadUpstream):
        kind(Request(id="req_1", access_code="mine"), created=7, cuts_stops=False).take(RawAnswer(bad))
