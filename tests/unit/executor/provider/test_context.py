"""The token estimate, and the trimming that stands on it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuwa.executor.provider.context import TOKENS_PER_MEDIUM, message_tokens, text_tokens, trim
from kuwa.wire.errors import ContextLengthExceeded


def turns(*texts: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("text", "least"),
    [
        ("The quick brown fox jumps over the lazy dog.", 10),  # a token a word, one for the full stop
        ("請用繁體中文回答我的問題，謝謝。", 2 * 16),  # two tokens a character
        ("f(a[0], b[1])", 9),  # a token a sign
        ("3.14159265358979", 8),
        ("🙂🙃😀", 3 * 2),
        ("", 0),
    ],
)
def test_the_estimate_is_above_what_tokenizers_usually_need_but_not_absurd(text: str, least: int) -> None:
    assert least <= text_tokens(text) <= 2 * least + 1


@given(st.text(), st.text())
def test_more_text_never_takes_fewer_tokens(text: str, more: str) -> None:
    assert 0 < text_tokens(text) <= text_tokens(text + more)


def test_half_a_character_is_counted_and_does_not_fail() -> None:
    assert text_tokens("\ud83d") >= 1


def test_an_image_costs_the_same_however_long_its_data_url_is() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}
    message = {"role": "user", "content": [{"type": "text", "text": "what is this?"}, image]}
    assert TOKENS_PER_MEDIUM < message_tokens(message) < TOKENS_PER_MEDIUM + 50


def test_tool_calls_cost_what_they_say() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "x" * 3000}}
    assert message_tokens({"role": "assistant", "content": None, "tool_calls": [call]}) > 900


def test_a_conversation_that_fits_is_left_as_it_is() -> None:
    messages = turns("hello", "hi", "how are you?")
    assert trim(messages, 4096, {}) == (messages, 0)


def test_the_oldest_turns_go_and_the_system_prompt_stays() -> None:
    system = {"role": "system", "content": "be kind"}
    messages = [system, *turns("old " * 500, "older " * 500, "new question")]
    kept, left_out = trim(messages, 600, {})
    assert kept == [system, messages[-1]]
    assert left_out == 2


def test_room_is_kept_for_the_answer_that_was_asked_for() -> None:
    messages = turns("a" * 300, "b" * 300, "c" * 300)
    assert trim(messages, 600, {"max_tokens": 10})[1] == 0
    assert trim(messages, 600, {"max_tokens": 400})[1] == 2
    assert trim(messages, 600, {"max_completion_tokens": 400})[1] == 2


def test_tools_take_room_too() -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": "d" * 900}}]
    messages = turns("a" * 300, "b" * 300, "c" * 300)
    assert trim(messages, 600, {"max_tokens": 10})[1] == 0
    assert trim(messages, 600, {"max_tokens": 10, "tools": tools})[1] == 2


def test_a_last_turn_that_is_too_long_is_refused_and_says_how_long() -> None:
    with pytest.raises(ContextLengthExceeded, match="context window of 100 tokens"):
        trim(turns("a" * 3000), 100, {})


@given(st.lists(st.text(max_size=200), min_size=1, max_size=12), st.integers(100, 3000))
def test_what_is_kept_is_an_end_of_the_conversation_that_fits(texts: list[str], window: int) -> None:
    messages = turns(*texts)
    try:
        kept, left_out = trim(messages, window, {"max_tokens": 50})
    except ContextLengthExceeded:
        return
    assert kept == messages[left_out:]
    assert sum(map(message_tokens, kept)) <= window - 50
