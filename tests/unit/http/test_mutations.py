"""Requests and answers with bytes changed, dropped, doubled and cut anywhere: nothing raises, nothing is read twice.

What the connection makes of a request that was not changed is the same however it was split.
"""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from kuwa.http.exchange import Exchange
from kuwa.http.framing import BadFraming, ChunkDecoder, parse_head, unframe, whole_chunks
from unit.http.test_connection import Client, post

REQUESTS = [
    post(b'{"model":"m"}'),
    post(b"", b"Connection: close"),
    post(b"x" * 300, b"Expect: 100-continue"),
    b"POST /hot HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"GET /hot HTTP/1.0\r\n\r\n",
    b"POST /hot HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nabc",
    b"POST /hot HTTP/1.1\r\nHost: localhost\r\nContent-Length: +3\r\n\r\nabc",
    b"POST /hot HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
]
ANSWERS = [
    b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
    b"HTTP/1.0 500 Oh no\r\n\r\n",
]
INSERTED = (b"\r\n", b"\n", b"\0", b"\r\n\r\n", b": ", b"\xff", b"0\r\n\r\n")
BODY = b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nT: v\r\n\r\n"


@st.composite
def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    data = bytearray(whole)
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(("change", "drop", "double", "insert", "cut")))
        if kind == "change" and data:
            data[place] = draw(st.integers(0, 255))
        elif kind == "drop":
            del data[place : place + draw(st.integers(1, 8))]
        elif kind == "double":
            data[place:place] = data[place : place + draw(st.integers(1, 40))]
        elif kind == "insert":
            data[place:place] = draw(
                st.sampled_from((b"\r\n", b"\n", b"\0", b"\r\n\r\n", b": ", b"\xff", b"0\r\n\r\n"))
            )
        else:
            del data[place:]
    return bytes(data)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def echo(exchange: Exchange) -> None:
    exchange.respond(200, exchange.body)


CUTS = st.lists(st.integers(0, 2000), max_size=6)


@settings(max_examples=400)
@given(st.lists(st.sampled_from(REQUESTS).flatmap(mutated), min_size=1, max_size=3), CUTS)
def test_any_requests_are_answered_or_refused(requests: list[bytes], cuts: list[int]) -> None:
    client = Client(echo)
    for piece in split(b"".join(requests), cuts):
        client.connection.data_received(piece)
    statuses = {line.split()[1] for line in client.transport.written.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")}
    assert statuses <= {b"100", b"200", b"400", b"403", b"404", b"413", b"431"}
    client.connection.connection_lost(None)


@settings(max_examples=400)
@given(st.sampled_from(ANSWERS).flatmap(mutated))
def test_any_answers_head_is_read_or_refused(head: bytes) -> None:
    try:
        parse_head(head)
    except BadFraming:
        return


@settings(max_examples=400)
@given(mutated(BODY), CUTS)
def test_any_chunked_body_reads_the_same_however_it_is_split(body: bytes, cuts: list[int]) -> None:
    assert _decoded([body]) == _decoded(split(body, cuts))
    if whole_chunks(body):
        assert unframe(body) == _decoded([body])[0]


def _decoded(pieces: list[bytes]) -> tuple[bytes, bool]:
    """What can be read before the framing breaks is not looked at: a broken body is refused as a whole."""
    decoder = ChunkDecoder()
    read = b""
    try:
        for piece in pieces:
            read += decoder.feed(piece)
    except BadFraming:
        return b"", False
    return read, decoder.ended
