"""Response heads and chunked bodies: every split reads the same, and what is odd is refused."""

from __future__ import annotations

import contextlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuwa.http.framing import BadFraming, ChunkDecoder, chunk_size, parse_head, unframe, whole_chunks

PIECES = st.lists(st.binary(min_size=1, max_size=300), max_size=8)


def framed(pieces: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


@given(PIECES, st.lists(st.integers(0, 3000), max_size=10))
def test_a_body_is_the_same_however_its_framing_is_split(pieces: list[bytes], cuts: list[int]) -> None:
    data = framed(pieces) + b"0\r\n\r\n"
    decoder = ChunkDecoder()
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    payload = b"".join(decoder.feed(data[a:b]) for a, b in pairwise(edges))
    assert payload == b"".join(pieces)
    assert decoder.ended


@given(PIECES.filter(bool))
def test_whole_chunks_are_recognised_and_nothing_less(pieces: list[bytes]) -> None:
    data = framed(pieces)
    assert whole_chunks(data) == 1
    assert whole_chunks(data + b"0\r\n\r\n") == 2
    assert unframe(data) == b"".join(pieces)
    assert whole_chunks(data[:-1]) == 0
    assert whole_chunks(data + b"0\r\n") == 0


@given(st.binary(max_size=60))
def test_garbage_is_framing_or_refused_but_never_a_crash(data: bytes) -> None:
    whole_chunks(data)
    with contextlib.suppress(BadFraming):
        ChunkDecoder().feed(data)


@pytest.mark.parametrize("line", [b"", b"+1", b"-1", b"0x1", b"1_0", b"g", b" ", b"fffffff", b"12345678"])
def test_only_hex_digits_are_a_chunk_size(line: bytes) -> None:
    with pytest.raises(BadFraming):
        chunk_size(line)


def test_chunk_extensions_and_trailers_are_read_past() -> None:
    decoder = ChunkDecoder()
    assert decoder.feed(b"5;a=b\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n") == b"hello"
    assert decoder.ended
    with pytest.raises(BadFraming):
        decoder.feed(b"x")


def test_a_chunk_longer_than_announced_is_refused() -> None:
    with pytest.raises(BadFraming):
        ChunkDecoder().feed(b"3\r\nhello\r\n")


def test_a_head_says_how_its_body_is_framed() -> None:
    sized, length = parse_head(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\n\r\n")
    assert (sized.status, sized.sized, length, sized.chunked, sized.keep_alive, sized.get(b"x-a")) == (
        200,
        True,
        5,
        False,
        True,
        b"b",
    )
    chunked, _ = parse_head(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert (chunked.sized, chunked.chunked, chunked.keep_alive) == (False, True, True)
    until_close, _ = parse_head(b"HTTP/1.0 200 OK\r\n\r\n")
    assert (until_close.sized, until_close.chunked, until_close.keep_alive) == (False, False, False)
    bodyless, length = parse_head(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert (bodyless.sized, length) == (True, 0)
    assert parse_head(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", no_body=True)[1] == 0


@pytest.mark.parametrize(
    "head",
    [
        b"hello\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    ],
)
def test_a_head_that_can_be_read_in_two_ways_is_refused(head: bytes) -> None:
    with pytest.raises(BadFraming):
        parse_head(head)
