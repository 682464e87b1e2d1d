from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kuwa.kernel.trail import BLOCK_CHARACTERS, MAX_MARKS, of_conversation, of_session, session_in

Message = dict[str, Any]
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text(max_size=5)}),
    max_size=8,
)


def body(messages: list[Message], **fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": messages, **fields}).encode()


def said(text: str) -> Message:
    return {"role": "user", "content": text}


@given(MESSAGES, MESSAGES, MESSAGES)
def test_two_requests_share_as_many_marks_as_messages_at_their_beginning(
    start: list[Message], one: list[Message], other: list[Message]
) -> None:
    first, second = of_conversation(body(start + one)), of_conversation(body(start + other))
    same = 0
    for a, b in zip(start + one, start + other, strict=False):
        if list(a.items()) != list(b.items()):  # in which order its fields come counts, too
            break
        same += 1
    assert first[:same] == second[:same]
    assert not set(first[same:]) & set(second[same:])


def test_what_stands_before_the_messages_counts_from_the_first_mark() -> None:
    plain = of_conversation(body([said("hi")]))
    assert plain == of_conversation(body([said("hi")], temperature=0.5, stream=True))
    assert plain != of_conversation(body([said("hi")], tools=[{"type": "function"}]))
    assert plain != of_conversation(body([said("hi")]), before="a Modelfile")


def test_a_long_conversation_is_known_by_its_last_marks() -> None:
    messages = [said(str(n)) for n in range(3 * MAX_MARKS)]
    trail = of_conversation(body(messages))
    assert len(trail) == MAX_MARKS
    assert of_conversation(body(messages[:-1]))[-1] == trail[-2]


def test_a_plain_prompt_is_cut_into_blocks() -> None:
    text = "a" * (2 * BLOCK_CHARACTERS + 5)
    first = of_conversation(json.dumps({"prompt": text}).encode())
    longer = of_conversation(json.dumps({"prompt": text + "b" * BLOCK_CHARACTERS}).encode())
    assert len(first) == 2
    assert longer[:2] == first


def test_what_cannot_be_read_has_no_trail() -> None:
    for bad in (b"", b"[]", b'{"messages": "hi"}', b'{"messages": [', b'{"prompt": [1, 2]}', b"\xff", b"[" * 5000):
        assert of_conversation(bad) == ()
        assert session_in(bad) is None


def test_a_session_is_one_mark_and_none_without_a_name() -> None:
    assert of_session("x") == of_session("x") != of_session("y")
    assert of_session(None) == of_session("") == ()
    assert session_in(body([], prompt_cache_key="k", user="u")) == "k"
    assert session_in(body([], user="u")) == "u"
    assert session_in(body([])) is None
