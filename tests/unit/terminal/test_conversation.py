from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuwa.terminal.conversation import Conversation, Entry, command
from kuwa.wire.lines import printable


def entry(*lines: str) -> Entry:
    whole = Entry()
    for line in lines:
        assert not whole.complete
        whole.add(line)
    return whole


def test_one_line_is_an_entry() -> None:
    assert entry("hello").text == "hello"
    assert entry("hello").complete


def test_a_backslash_continues_a_line() -> None:
    assert not entry("one\\").complete
    assert entry("one\\", "two\\", "").text == "one\ntwo\n"


@pytest.mark.parametrize(
    "lines",
    [('"""one', 'two"""'), ('"""', "one", "two", '"""'), ('  """one', 'two""" ')],
)
def test_text_between_marks_is_one_entry(lines: tuple[str, ...]) -> None:
    assert entry(*lines).complete
    assert entry(*lines).text == "one\ntwo"


def test_marks_on_one_line_hold_it_and_a_backslash_inside_stays() -> None:
    assert entry('"""/help"""').text == "/help"
    assert not entry('"""/help"""').is_command
    assert entry('"""a\\', 'b"""').text == "a\\\nb"


def test_a_stroke_makes_a_command_unless_a_blank_is_before_it() -> None:
    assert entry("/help").is_command
    assert not entry(" /help").is_command
    assert command("/system  Be brief. ") == ("/system", "Be brief.")
    assert command("/help") == ("/help", "")


def test_the_system_prompt_goes_first_and_only_kept_turns_follow() -> None:
    conversation = Conversation("m", "Be brief.")
    assert [m["content"] for m in conversation.asking("one")] == ["Be brief.", "one"]
    assert [m["content"] for m in conversation.asking("two")] == ["Be brief.", "two"]
    conversation.keep("two", "answer")
    assert [m["role"] for m in conversation.asking("three")] == ["system", "user", "assistant", "user"]


def test_a_saved_conversation_can_be_sent_again() -> None:
    conversation = Conversation("m")
    conversation.keep("問", "答")
    saved = json.loads(conversation.as_json())
    assert saved["messages"] == conversation.messages()
    assert "問" in conversation.as_json()
    assert conversation.as_markdown() == "# m\n\n## user\n\n問\n\n## assistant\n\n答\n"


@given(st.text())
def test_what_is_printable_holds_no_control(text: str) -> None:
    shown = printable(text)
    assert not any(c < " " or "\x7f" <= c <= "\x9f" for c in shown if c not in "\n\t")
    assert printable(shown) == shown


def test_words_lines_and_emoji_are_left_as_they_are() -> None:
    text = "a\tb\n中文 👨‍👩‍👧 é"
    assert printable(text) == text
