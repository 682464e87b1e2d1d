"""Prompt assembly: order, wrapping, trimming, templates, and the functions of June 2024."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuwa.executor.modelfile import Modelfile
from kuwa.executor.prompt import (
    Message,
    UnknownTemplate,
    apply_modelfile,
    extract_last_url,
    last_user_text,
    rectify_chat_history,
    resolve_template,
    text_of,
    to_openai_chat_format,
    trim_oldest,
    with_system_prompt,
)


def user(text: Any) -> Message:
    return {"role": "user", "content": text}


def bot(text: str) -> Message:
    return {"role": "assistant", "content": text}


SYSTEM: Message = {"role": "system", "content": "own"}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("a", "a"),
        (None, ""),
        ([{"type": "text", "text": "a"}, {"type": "image_url"}, {"type": "text", "text": "b"}, 3], "ab"),
        (7, ""),
    ],
)
def test_the_text_of_a_message(content: Any, text: str) -> None:
    assert text_of(user(content)) == text


def test_the_last_user_text_is_the_last_one_whoever_spoke_after() -> None:
    assert last_user_text([user("a"), user("b"), bot("c")]) == "b"
    assert last_user_text([]) == ""


def test_system_modelfile_history_stand_in_this_order_and_the_last_user_turn_is_wrapped() -> None:
    modelfile = Modelfile("sys", [bot("example")], before_prompt="<", after_prompt=">")
    applied = apply_modelfile([SYSTEM, user("a"), bot("b"), user("c"), bot("d")], modelfile)
    assert applied == [
        {"role": "system", "content": "sys"},
        bot("example"),
        user("a"),
        bot("b"),
        user("<c>"),
        bot("d"),
    ]


def test_without_a_system_prompt_in_the_modelfile_the_conversations_own_stays() -> None:
    assert apply_modelfile([SYSTEM, user("a")], Modelfile()) == [SYSTEM, user("a")]


def test_parts_are_wrapped_as_parts() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    applied = apply_modelfile([user([image])], Modelfile(before_prompt="look: "))
    assert applied == [user([{"type": "text", "text": "look: "}, image])]


def test_wrapping_leaves_the_clients_messages_alone() -> None:
    messages = [user("a")]
    apply_modelfile(messages, Modelfile(before_prompt="x"))
    assert messages == [user("a")]


def test_an_executors_own_system_prompt_counts_only_where_there_is_none() -> None:
    assert with_system_prompt([user("a")], "mine") == [{"role": "system", "content": "mine"}, user("a")]
    assert with_system_prompt([SYSTEM, user("a")], "mine") == [SYSTEM, user("a")]
    assert with_system_prompt([user("a")], "") == [user("a")]


def fits(limit: int) -> Any:
    return lambda messages: sum(len(m["content"]) for m in messages) <= limit


def test_the_oldest_turns_are_left_out_and_the_system_message_stays() -> None:
    messages = [SYSTEM, user("aaaa"), bot("bbbb"), user("cccc"), bot("dd"), user("ee")]
    assert trim_oldest(messages, fits(100)) == (messages, 0)
    assert trim_oldest(messages, fits(11)) == ([SYSTEM, user("cccc"), bot("dd"), user("ee")], 2)
    assert trim_oldest(messages, fits(10)) == ([SYSTEM, user("ee")], 4)
    assert trim_oldest(messages, fits(4)) is None
    assert trim_oldest([user("aaaa")], fits(1)) is None


@given(
    st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), st.text("x", max_size=5))), st.integers(0, 30)
)
def test_what_is_left_after_trimming_fits_and_ends_as_before(turns: list[tuple[str, str]], limit: int) -> None:
    messages: list[Message] = [{"role": role, "content": text} for role, text in turns]
    trimmed = trim_oldest(messages, fits(limit))
    if trimmed is None:
        return
    kept, left_out = trimmed
    assert fits(limit)(kept)
    assert len(kept) + left_out == len(messages)
    if left_out:
        history = [m for m in kept if m["role"] != "system"]
        assert history[0]["role"] == "user"
        assert history == [m for m in messages if m["role"] != "system"][left_out:]


def test_a_template_is_text_or_a_files_text_or_a_known_name() -> None:
    assert resolve_template("{{ x }}", "file", ["x"]) == "{{ x }}"
    assert resolve_template("{% x %}", None) == "{% x %}"
    assert resolve_template("path", "its text", ["path"]) == "its text"
    assert resolve_template("chatml", None, ["chatml"]) == "chatml"
    with pytest.raises(UnknownTemplate, match="chatml"):
        resolve_template("chatmll", None, ["chatml"])


def test_the_functions_of_june_2024() -> None:
    assert to_openai_chat_format([{"msg": "a", "isbot": False}, {"msg": None, "isbot": True}]) == [user("a"), bot("")]
    assert rectify_chat_history([SYSTEM, bot("a"), user("b")]) == [SYSTEM, user("b")]
    assert rectify_chat_history([]) == []
    history = [user("see https://a.example/x and http://b.example"), bot("https://c.example"), user("thanks")]
    assert extract_last_url(history) == ("http://b.example", history)
    assert extract_last_url([user("a"), bot("https://c.example")]) == (None, [user("a"), bot("https://c.example")])
