from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from kuwa.terminal.markdown import Prose, blocks, finished


def shown(text: str, width: int = 40) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(Prose(text), crop=False)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().split("\n")).strip("\n")


def test_a_paragraph_is_finished_when_the_next_has_begun_for_sure() -> None:
    assert finished("one\n") == ([], "one\n")
    assert finished("one\n\ntw") == ([], "one\n\ntw")
    assert finished("one\n\ntwo\n") == (["one\n\n"], "two\n")


def test_a_list_is_not_finished_by_the_beginning_of_its_next_point() -> None:
    assert finished("1. one\n\n2") == ([], "1. one\n\n2")
    assert finished("1. one\n\n2. two\n") == ([], "1. one\n\n2. two\n")


def test_code_that_is_not_closed_grows() -> None:
    text = "```\n# no heading\n\n- no list\n\n"
    assert finished(text) == ([], text)


PIECES = st.sampled_from(
    ["a", "word ", "\n", "\n\n", "```\n", "- x\n", "1. y\n", "# h\n", "> q\n", "|a|b|\n|-|-|\n", "中"]
)


@given(st.lists(PIECES, max_size=30).map("".join))
def test_blocks_are_the_text(text: str) -> None:
    assert "".join(blocks(text)) == text


@given(st.lists(PIECES, max_size=20))
def test_nothing_is_lost_between_what_is_finished_and_what_grows(pieces: list[str]) -> None:
    rest, done = "", []
    for piece in pieces:
        new, rest = finished(rest + piece)
        done += new
    assert "".join([*done, rest]) == "".join(pieces)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("one\ntwo", "one\ntwo"),
        ("a <b>c</b> <tag>", "a <b>c</b> <tag>"),
        ("<<<WARNING>>>\nx\n<<</WARNING>>>", "<<<WARNING>>>\nx\n<<</WARNING>>>"),
        ("see [it](http://x.example/)", "see it (http://x.example/)"),
        ("[1]: http://x.example/", "[1]: http://x.example/"),
        ("# Title", "Title"),
    ],
)
def test_nothing_a_model_says_is_swallowed(text: str, seen: str) -> None:
    assert shown(text) == seen


def test_a_long_line_of_code_is_left_whole() -> None:
    line = "curl " + "x" * 100
    assert shown(f"```sh\n{line}\n```") == line


def test_in_a_list_a_long_line_of_code_is_folded_and_not_cut() -> None:
    assert shown(f"- a\n\n  ```\n  {'x' * 100}\n  ```").count("x") == 100
