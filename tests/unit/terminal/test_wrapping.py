from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from kuwa.terminal.wrapping import NOT_FIRST, NOT_LAST, breaks


def lines(text: str, width: int) -> list[str]:
    edges = [0, *breaks(text, width, cell_len), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


def test_words_are_kept_whole() -> None:
    assert lines("one two three", 8) == ["one two ", "three"]


def test_chinese_is_broken_between_any_two_characters() -> None:
    assert lines("一二三四五六七", 6) == ["一二三", "四五六", "七"]


def test_a_mark_does_not_begin_a_line_and_a_bracket_does_not_end_one() -> None:
    assert lines("一二三，四", 6) == ["一二", "三，四"]
    assert lines("一二「三」四", 6) == ["一二", "「三」", "四"]


def test_chinese_and_words_may_be_parted_without_a_blank() -> None:
    assert lines("用Kuwa的人", 6) == ["用Kuwa", "的人"]


def test_what_is_wider_than_a_line_is_broken_anywhere() -> None:
    assert lines("abcdefgh", 3) == ["abc", "def", "gh"]
    assert lines("a abcdefgh", 4) == ["a ", "abcd", "efgh"]


@pytest.mark.parametrize("text", ["", " ", "one"])
def test_short_text_is_not_broken(text: str) -> None:
    assert breaks(text, 10, cell_len) == []


@given(st.text(alphabet="ab 中文，。「」🎉.", max_size=60), st.integers(min_value=2, max_value=20))
def test_no_line_is_too_wide_and_nothing_is_lost(text: str, width: int) -> None:
    parts = lines(text, width)
    assert "".join(parts) == text
    assert all(cell_len(part.rstrip(" ")) <= width for part in parts)


@given(st.text(alphabet="中文，。「」", max_size=60))
def test_marks_stand_where_they_may(text: str) -> None:
    parts = lines(text, 80)
    for before, after in pairwise(parts):
        assert before[-1] not in NOT_LAST
        assert after[0] not in NOT_FIRST
