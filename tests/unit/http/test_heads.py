"""A head that came before is known again by its bytes, whatever length it announces, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuwa.http.heads import MAX_KNOWN, HeadMemo, KnownHead, cut_head

HEAD = b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: %b\r\nAccept: */*\r\n\r\n"


def known() -> KnownHead[str]:
    cut = cut_head(HEAD % b"5" + b"hello")
    assert cut is not None
    return KnownHead(cut, "the head")


@given(st.integers(0, 10**9), st.binary(max_size=40))
def test_a_head_is_known_whatever_length_it_announces(length: int, rest: bytes) -> None:
    head = known()
    data = HEAD % b"%d" % length + rest
    start = head.begins(data)
    assert data[start:] == rest
    assert head.body_bytes == length


@pytest.mark.parametrize(
    "data",
    [
        b"",
        HEAD % b"+5",
        HEAD % b"5_0",
        HEAD % b" 5",
        HEAD % b"",
        HEAD % b"12345678901",
        HEAD[:-4] % b"5",
        HEAD % b"5\r\nContent-Length: 6",
        (HEAD % b"5").replace(b"Accept", b"accept"),
        (HEAD % b"5").replace(b"POST", b"GET"),
    ],
)
def test_anything_else_is_not(data: bytes) -> None:
    assert known().begins(data) == 0


def test_only_a_whole_head_with_a_length_can_be_known() -> None:
    assert cut_head(HEAD[:-2] % b"5") is None
    assert cut_head(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nContent-Length: 5\r\n") is None


def test_the_memory_of_heads_is_bounded() -> None:
    memo: HeadMemo[int] = HeadMemo()
    for number in range(MAX_KNOWN + 5):
        memo.add((b"%d" % number, b""), number)
    assert memo.get((b"0", b"")) is None
    last = memo.get((b"%d" % (MAX_KNOWN + 4), b""))
    assert last is not None
    assert last.head == MAX_KNOWN + 4
