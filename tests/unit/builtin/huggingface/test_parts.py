"""Reasoning and tool calls in streamed text, however it is cut."""

from __future__ import annotations

import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from kuwa.builtin.huggingface.parts import Part, PartReader, read_call


def read(text: str, cuts: list[int] | None = None, *, thinks: bool = False, calls: bool = True) -> list[Part]:
    """The parts of `text`, fed in pieces, neighbours of a kind put together."""
    reader = PartReader(thinks=thinks, calls=calls)
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts or []), len(text)]
    found = [part for a, b in itertools.pairwise(places) for part in reader.feed(text[a:b])]
    found += reader.finish()
    joined: list[Part] = []
    for part in found:
        if joined and part.kind == joined[-1].kind != "call":
            joined[-1] = Part(part.kind, joined[-1].text + part.text)
        else:
            joined.append(part)
    return joined


def test_plain_text_stays_what_it_is() -> None:
    assert read("a < b, <b>bold</b> and </think>") == [Part("text", "a < b, <b>bold</b> and </think>")]


def test_reasoning_comes_first_and_the_blanks_around_it_go() -> None:
    assert read("<think>\nwhy not\n</think>\n\nYes.") == [Part("reasoning", "why not\n"), Part("text", "Yes.")]


def test_a_prompt_that_opened_the_reasoning_is_gone_on_from() -> None:
    assert read("hm\n</think>Yes.", thinks=True) == [Part("reasoning", "hm\n"), Part("text", "Yes.")]


def test_a_tag_that_is_spoken_of_is_text() -> None:
    assert read("The tag <think> opens it.") == [Part("text", "The tag <think> opens it.")]


def test_calls_are_given_out_whole() -> None:
    call = '{"name": "tide", "arguments": {"port": "基隆"}}'
    parts = read(f"Wait.<tool_call>\n{call}\n</tool_call><tool_call>{call}</tool_call>")
    assert parts == [
        Part("text", "Wait."),
        Part("call", '{"port": "基隆"}', "tide"),
        Part("call", '{"port": "基隆"}', "tide"),
    ]


def test_a_call_that_cannot_be_read_stays_text() -> None:
    assert read("<tool_call>nonsense</tool_call>") == [Part("text", "<tool_call>nonsense</tool_call>")]


def test_a_call_whose_end_never_came_is_read_all_the_same() -> None:
    assert read('<tool_call>{"name": "a", "arguments": {}}') == [Part("call", "{}", "a")]


def test_without_tools_nobody_looks_for_calls() -> None:
    text = '<tool_call>{"name": "a"}</tool_call>'
    assert read(text, calls=False) == [Part("text", text)]


def test_what_is_no_call_is_none() -> None:
    for raw in ("", "[]", "3", '{"name": 3}', '{"name": ""}', "{" * 100_000):
        assert read_call(raw) is None
    assert read_call('{"name": "a"}') == Part("call", "{}", "a")
    assert read_call('{"name": "a", "arguments": "raw"}') == Part("call", "raw", "a")


PIECES = st.sampled_from(
    ["<think>", "</think>", "<tool_call>", "</tool_call>", "<", "</", "a", " ", "\n", json.dumps({"name": "f"}), "燈"]
)


@given(st.lists(PIECES, max_size=12), st.lists(st.integers(0, 400), max_size=8), st.booleans(), st.booleans())
def test_where_a_text_is_cut_changes_nothing(texts: list[str], cuts: list[int], thinks: bool, calls: bool) -> None:
    text = "".join(texts)
    assert read(text, cuts, thinks=thinks, calls=calls) == read(text, thinks=thinks, calls=calls)
