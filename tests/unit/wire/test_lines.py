"""What strangers wrote, at a terminal and in a log."""

from __future__ import annotations

import io
import logging
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuwa.wire.lines import LineFormatter, one_line, printable

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
hostile = st.text(st.characters() | st.sampled_from("\n\r\x0b\x0c\x1b\x85\x9b\u2028\u2029\x00\x7f" + BIDI))


def obeyed(text: str) -> set[str]:
    return {c for c in text if unicodedata.category(c) in ("Cc", "Zl", "Zp") or c in BIDI}


def logged(message: str, *args: object, error: BaseException | None = None, hidden: tuple[str, ...] = ()) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter())
    logger = logging.Logger("kuwa.test")
    logger.addHandler(handler)
    logger.warning(message, *args, exc_info=error, extra={"hidden": hidden})
    return stream.getvalue()


@given(hostile)
def test_one_line_holds_nothing_that_is_obeyed(text: str) -> None:
    assert not obeyed(one_line(text))
    assert len(one_line(text).splitlines()) <= 1


@given(hostile)
def test_printable_text_holds_line_breaks_and_tabs_alone(text: str) -> None:
    assert obeyed(printable(text)) <= {"\n", "\t"}
    assert printable(printable(text)) == printable(text)


@pytest.mark.parametrize("text", ["請說一個故事\u3000謝謝", "👩‍👩‍👧 🏴󠁧󠁢󠁳󠁣󠁴󠁿", "می‌خواهم", "naïve — “quoted”"])
def test_what_people_write_stays(text: str) -> None:
    assert one_line(text) == text
    assert printable(text) == text


@given(hostile)
def test_a_record_is_one_line_whatever_it_says(text: str) -> None:
    written = logged("said: %s", text)
    assert written.endswith("\n")
    assert len(written[:-1].splitlines()) == 1
    assert not obeyed(written[:-1])


def test_what_was_taken_out_can_be_read() -> None:
    assert "a\\nb\\x1b[2J\\u202ec" in logged("a\nb\x1b[2J\u202ec")


def test_the_lines_of_a_traceback_cannot_be_taken_for_records() -> None:
    try:
        raise ValueError("bad\n2026-01-02 03:04:05,678 ERROR kuwa: forged\x1b[31m")
    except ValueError as error:
        first, *rest = logged("it failed", error=error).rstrip("\n").split("\n")
    assert first.endswith("WARNING kuwa.test: it failed")
    assert any("forged" in line for line in rest)
    assert all(line.startswith("    ") and not obeyed(line) for line in rest)


def test_a_record_names_the_keys_that_it_hides() -> None:
    try:
        raise ValueError("no such key: users-key-4711-abc")
    except ValueError as error:
        written = logged("refused %s", "users-key-4711-abc", error=error, hidden=("users-key-4711-abc",))
    assert "refused ***" in written
    assert "4711" not in written
