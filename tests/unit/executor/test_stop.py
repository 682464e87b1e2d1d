"""Stop strings: cut wherever they fall across pieces, never leaked, and the first one counts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kuwa.executor.stop import StopCutter


def cut(pieces: list[str], stops: list[str]) -> str:
    cutter = StopCutter(stops)
    return "".join(cutter.feed(piece) for piece in pieces) + cutter.finish()


def expected(text: str, stops: list[str]) -> str:
    ends = [at for stop in stops if stop and (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def test_text_without_a_stop_string_passes_whole() -> None:
    assert cut(["Hello ", "world"], ["END"]) == "Hello world"


def test_a_stop_string_across_pieces_is_cut_and_nothing_follows() -> None:
    assert cut(["abcE", "N", "Ddef"], ["END"]) == "abc"


def test_a_beginning_that_comes_to_nothing_is_given_out_at_the_end() -> None:
    assert cut(["abcEN"], ["END"]) == "abcEN"


def test_a_longer_stop_string_that_began_earlier_counts() -> None:
    assert cut(["xa", "b", "c"], ["abc", "b"]) == "x"


def test_a_longer_one_that_began_earlier_and_fails_leaves_the_shorter() -> None:
    assert cut(["xa", "b", "d"], ["abc", "b"]) == "xa"


def test_empty_stop_strings_stop_nothing() -> None:
    assert cut(["abc"], ["", ""]) == "abc"


@given(st.lists(st.text("abc", max_size=6), max_size=12), st.lists(st.text("abc", min_size=1, max_size=4), max_size=4))
def test_however_the_text_is_split_the_cut_is_the_same(pieces: list[str], stops: list[str]) -> None:
    assert cut(pieces, stops) == expected("".join(pieces), stops)


@given(st.lists(st.text("abc", max_size=6), max_size=12), st.lists(st.text("abc", min_size=1, max_size=4), min_size=1))
def test_what_was_given_out_is_never_taken_back(pieces: list[str], stops: list[str]) -> None:
    cutter, shown, text = StopCutter(stops), "", ""
    for piece in pieces:
        text += piece
        shown += cutter.feed(piece)
        assert expected(text, stops).startswith(shown)
    assert cutter.stopped == any(stop in text for stop in stops) or not cutter.stopped
