"""How a conversation is cut, and what a provider's refusal teaches."""

from __future__ import annotations

from kuwa.builtin.chatgpt.window import Window
from kuwa.executor.prompt import Message
from kuwa.executor.provider.context import prompt_tokens
from kuwa.wire.errors import ContextLengthExceeded

LONG: list[Message] = [
    {"role": "user", "content": "old " * 500},
    {"role": "assistant", "content": "older " * 500},
    {"role": "user", "content": "new"},
]


def test_a_conversation_is_left_alone_while_nobody_knows_the_window() -> None:
    assert Window(0).fit(LONG, {}) == (LONG, 0)


def test_the_oldest_turns_go_where_they_do_not_fit() -> None:
    assert Window(600).fit(LONG, {}) == (LONG[-1:], 2)


def test_exact_counts_take_the_place_of_the_estimate() -> None:
    assert Window(600, tally=lambda messages: 100 * len(messages)).fit(LONG, {"max_tokens": 300}) == (LONG, 0)


def test_a_refusal_that_names_its_figures_corrects_window_and_estimate_for_good() -> None:
    refusal = ContextLengthExceeded(
        "This model's maximum context length is 900 tokens. However, your messages resulted in 4000 tokens."
    )
    learned = Window(0).corrected(refusal, LONG)
    assert (learned.tokens, learned.certain) == (900, True)
    assert learned.count(LONG) in (4000, 4001)
    assert learned.fit(LONG, {"max_tokens": 100}) == (LONG[-1:], 2)


def test_a_refusal_without_figures_halves_the_conversation_this_once() -> None:
    learned = Window(0).corrected(ContextLengthExceeded("too long"), LONG)
    assert (learned.tokens, learned.certain) == (prompt_tokens(LONG) // 2, False)


def test_a_count_of_something_else_moves_the_estimate_only_so_far() -> None:
    refusal = ContextLengthExceeded("maximum context length is 900 tokens, resulted in 99999999 tokens")
    assert Window(0).corrected(refusal, LONG).ratio == 4
