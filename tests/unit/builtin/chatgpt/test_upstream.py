"""Reading a provider's stream: any cut of its bytes, and every way in which it can be no answer."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuwa.builtin.chatgpt.upstream import ChunkStream
from kuwa.executor.provider.failures import Origin
from kuwa.wire.errors import BadUpstream, UpstreamLost

ORIGIN = Origin("http://h/v1", "m", "sk-secret", "--api_key")


def chunk(text: str = "", finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return json.dumps({"id": "x", "choices": [choice], "vendor": {"kept": text}}, ensure_ascii=False).encode()


def body(*datas: bytes) -> bytes:
    return b"".join(b"data: " + data + b"\n\n" for data in datas)


@given(st.lists(st.text(min_size=1), min_size=1, max_size=5), st.data())
def test_events_come_through_byte_for_byte_however_the_body_is_cut(texts: list[str], data: st.DataObject) -> None:
    datas = [*(chunk(text) for text in texts), chunk(finish="stop")]
    whole = body(*datas, b"[DONE]")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    stream = ChunkStream(ORIGIN)
    got: list[bytes] = []
    for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        got += stream.feed(whole[start:end])
    stream.end()
    assert got == datas
    assert stream.done


def test_what_follows_done_is_not_passed_on() -> None:
    stream = ChunkStream(ORIGIN)
    assert list(stream.feed(body(chunk("a"), b"[DONE]", chunk("b")))) == [chunk("a")]


def test_a_usage_event_without_choices_passes() -> None:
    usage = b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
    assert list(ChunkStream(ORIGIN).feed(body(usage))) == [usage]


def test_comments_and_event_names_are_not_taken_for_answers() -> None:
    assert list(ChunkStream(ORIGIN).feed(b": ping\n\nevent: x\n" + body(chunk("a")))) == [chunk("a")]


def test_an_end_after_a_finish_is_an_end_even_without_done() -> None:
    stream = ChunkStream(ORIGIN)
    list(stream.feed(body(chunk("a"), chunk(finish="length"))))
    stream.end()


@pytest.mark.parametrize("sent", [b"", body(chunk("a")), body(chunk("a")) + b"data: {"])
def test_an_end_in_the_middle_is_no_answer(sent: bytes) -> None:
    stream = ChunkStream(ORIGIN)
    list(stream.feed(sent))
    with pytest.raises(UpstreamLost):
        stream.end()


def test_an_error_event_is_raised_after_what_came_before_it() -> None:
    stream = ChunkStream(ORIGIN)
    assert stream.feed(body(chunk("a"), b'{"error":{"message":"out of memory"}}')) == [chunk("a")]
    assert isinstance(stream.broken, BadUpstream)
    assert "out of memory" in stream.broken.message


@pytest.mark.parametrize("data", [b"hello", b"[1]", b'"x"', b'{"choices":7}', b"\xff\xfe", b"[" * 100_000])
def test_garbage_in_the_stream_is_no_answer(data: bytes) -> None:
    stream = ChunkStream(ORIGIN)
    assert stream.feed(body(data)) == []
    assert isinstance(stream.broken, BadUpstream)
    assert "no chunk of an answer" in stream.broken.message


def test_an_endless_event_is_given_up() -> None:
    stream = ChunkStream(ORIGIN)
    assert stream.feed(b"data: " + b"x" * 3_000_000) == []
    assert isinstance(stream.broken, BadUpstream)
