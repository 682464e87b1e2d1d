"""The event-stream reader takes any split of any bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuwa.wire import sse

STREAM = 'data: {"a":1}\n\n: ping\r\n\r\nevent: x\rdata: one\rdata: two\r\rdata:文😀 \n\ndata: [DONE]\n\n'.encode()


def read(pieces: list[bytes]) -> list[sse.Event]:
    reader = sse.SseReader()
    return [event for piece in pieces for event in reader.feed(piece)]


def test_every_line_ending_and_comment_is_understood() -> None:
    assert [(event.data, event.name, event.comments) for event in read([STREAM])] == [
        (b'{"a":1}', b"", ()),
        (b"one\ntwo", b"x", (b"ping",)),
        ("文😀 ".encode(), b"", ()),
        (b"[DONE]", b"", ()),
    ]


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_a_stream_cut_in_two_anywhere_gives_the_same_events(cut: int) -> None:
    assert read([STREAM[:cut], STREAM[cut:]]) == read([STREAM])


def test_a_stream_byte_by_byte_gives_the_same_events() -> None:
    assert read([bytes([byte]) for byte in STREAM]) == read([STREAM])


@given(st.lists(st.binary(max_size=40), max_size=30))
def test_any_split_of_any_bytes_reads_the_same(pieces: list[bytes]) -> None:
    assert read(pieces) == read([b"".join(pieces)])


@given(st.lists(st.text(alphabet=st.characters(blacklist_characters="\r\n", codec="utf-8")), max_size=10))
def test_what_the_writer_writes_the_reader_reads(lines: list[str]) -> None:
    stream = b"".join(sse.event(line.encode()) for line in lines)
    assert [event.data for event in read([stream])] == [line.encode() for line in lines]


def test_a_comment_cannot_break_out_of_its_line() -> None:
    assert read([sse.comment("a\n\ndata: b\r\u2028c")]) == []


def test_an_unfinished_event_is_reported_and_never_given() -> None:
    reader = sse.SseReader()
    assert list(reader.feed(b"data: half")) == []
    assert reader.unfinished


def test_an_event_beyond_the_bound_is_refused_whether_in_one_line_or_many() -> None:
    for piece in (b"data: " + b"x" * 100, b"data: x\n" * 100):
        reader = sse.SseReader(max_event_bytes=64)
        with pytest.raises(sse.EventTooLong):
            list(reader.feed(piece))


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
@pytest.mark.parametrize("start", [b"", sse.BOM])
def test_events_are_the_same_whatever_ends_their_lines(end: bytes, start: bytes) -> None:
    lines = [b'data: {"a":1}', b"", b": ping", b"", b"data:one", b"data: two", b"", b"data: [DONE]", b"", b""]
    stream = start + end.join(lines)
    datas = [b'{"a":1}', b"one\ntwo", b"[DONE]"]
    assert [event.data for event in read([stream])] == datas
    blocks = sse.blocks_of(stream.removeprefix(sse.BOM))
    assert [data for block in blocks if (data := sse.data_of(block))] == datas
    for cut in range(len(stream)):
        assert [event.data for event in read([stream[:cut], stream[cut:]])] == datas


@given(st.lists(st.sampled_from([b"\n", b"\r", b"\r\n", b"data: x", b"data:", b":c", b"\xef\xbb\xbf"]), max_size=30))
def test_blocks_keep_every_byte_and_hold_what_the_reader_reads(pieces: list[bytes]) -> None:
    stream = b"".join(pieces)
    whole = stream[: sse.whole_events(stream)]
    blocks = sse.blocks_of(whole)
    assert b"".join(blocks) == whole
    first = [whole.removeprefix(sse.BOM)] if whole else []
    found = [sse.data_of(block) for one in first for block in sse.blocks_of(one)]
    assert [data for data in found if data] == [event.data.strip() for event in read([stream]) if event.data.strip()]


@pytest.mark.parametrize(
    ("content_type", "may_be"),
    [(b"text/event-stream", True), (b"Text/Event-Stream ; charset=utf-8", True), (b"", True), (b"text/html", False),
     (b"text/event-streams", False)],
)  # fmt: skip
def test_which_content_types_may_be_events(content_type: bytes, may_be: bool) -> None:
    assert sse.is_event_stream(content_type) is may_be
