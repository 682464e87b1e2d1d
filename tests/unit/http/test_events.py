"""A streamed answer: where it ends, and everything that makes it none."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuwa.http.client import StreamedResponse
from kuwa.http.events import EventStream, NoEnd, read_events
from kuwa.http.framing import ResponseHead
from kuwa.http.origin import Origin
from kuwa.wire.errors import BadUpstream, UpstreamLost
from kuwa.wire.sse import MAX_EVENT_BYTES

pytestmark = pytest.mark.anyio
ANSWER = b'\xef\xbb\xbfdata: {"a":1}\r\n\r\n: ping\r\ndata:two\r\n\r\ndata: [DONE]\r\n\r\ndata: late\r\n\r\n'


def response(content_type: bytes | None, *pieces: bytes) -> StreamedResponse:
    made = StreamedResponse(Origin.of("http://h"))
    headers = () if content_type is None else ((b"content-type", content_type),)
    made.on_head(ResponseHead(200, headers, False, True, True))
    for piece in pieces:
        made.on_data(piece, ended=False)
    made.on_data(b"", ended=True)
    return made


async def datas(of: StreamedResponse) -> list[bytes]:
    return [data async for read in read_events(of, "The server") for data in read]


@given(st.lists(st.integers(0, len(ANSWER)), max_size=8))
def test_the_events_are_the_same_however_the_body_is_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(ANSWER)]
    stream = EventStream("The server")
    found = [data for a, b in itertools.pairwise(edges) if not stream.done for data in stream.feed(ANSWER[a:b])]
    assert found == [b'{"a":1}', b"two"]
    assert stream.done
    stream.end()


@pytest.mark.parametrize("content_type", [None, b"text/event-stream", b"Text/Event-Stream;charset=utf-8"])
async def test_a_stream_is_read_up_to_done(content_type: bytes | None) -> None:
    assert await datas(response(content_type, ANSWER)) == [b'{"a":1}', b"two"]


async def test_another_content_type_is_refused_by_name() -> None:
    with pytest.raises(BadUpstream, match=r"The server answered with 'text/html'"):
        await datas(response(b"text/html", ANSWER))


async def test_a_body_without_done_has_no_end_whatever_came_before() -> None:
    for body in (b"", b"data: x\n\n", b"data: x\n\ndata: [DO"):
        with pytest.raises(NoEnd, match="before it was complete"):
            await datas(response(None, body))


async def test_what_breaks_the_connection_is_told() -> None:
    broken = response(None)
    broken.on_lost(UpstreamLost("gone"))
    with pytest.raises(UpstreamLost, match="gone"):
        await datas(broken)


def test_an_event_without_an_end_is_given_up_after_those_before_it() -> None:
    stream = EventStream("The server")
    assert stream.feed(b"data: x\n\n" + b"y" * (MAX_EVENT_BYTES + 1)) == [b"x"]
    assert isinstance(stream.broken, BadUpstream)
    with pytest.raises(BadUpstream, match="The server sent an answer that cannot be read"):
        stream.end()
