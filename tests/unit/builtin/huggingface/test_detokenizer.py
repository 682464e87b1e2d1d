"""Text from token ids that come one by one: whole characters, nothing lost, nothing twice."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from kuwa.builtin.huggingface.detokenizer import BROKEN, MOST_HELD, Detokenizer


def by_bytes(ids: Sequence[int]) -> str:
    """A vocabulary of single bytes: the worst there is for anything wider than ASCII."""
    return bytes(ids).decode("utf-8", "replace")


def with_leading_blank(ids: Sequence[int]) -> str:
    """As SentencePiece vocabularies decode: the blank before the very first word is left out."""
    return "".join(f" w{i}" for i in ids).removeprefix(" ")


def pieces(ids: Sequence[int]) -> list[str]:
    detokenizer = Detokenizer(by_bytes)
    return [*[detokenizer.push(i) for i in ids], detokenizer.finish()]


@given(st.text())
def test_text_comes_out_as_it_is_a_character_at_a_time(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode().replace(BROKEN, "")
    shown = pieces(text.encode())
    assert "".join(shown) == text
    assert all(BROKEN not in piece for piece in shown)


@given(st.lists(st.integers(0, 255), max_size=MOST_HELD - 1))
def test_bytes_that_are_no_text_come_out_as_a_whole_decode_gives_them(ids: list[int]) -> None:
    assert "".join(pieces(ids)) == by_bytes(ids).rstrip(BROKEN)


@given(st.lists(st.integers(0, 9), max_size=30))
def test_blanks_between_words_are_kept_and_none_is_put_before_the_first(ids: list[int]) -> None:
    detokenizer = Detokenizer(with_leading_blank)
    assert "".join([*[detokenizer.push(i) for i in ids], detokenizer.finish()]) == with_leading_blank(ids)


def test_half_a_character_is_held_back_and_at_the_end_left_out() -> None:
    assert pieces("燈".encode()[:2]) == ["", "", ""]
    assert pieces(b"a" + "燈".encode()) == ["a", "", "", "燈", ""]


def test_endless_garbage_is_given_out_in_bounded_pieces() -> None:
    shown = pieces([0xFF] * 300)
    assert max(map(len, shown)) <= MOST_HELD
