"""The v1.0 forms: what is read, and what is refused with words."""

from __future__ import annotations

import json
import re
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuwa.wire import form
from kuwa.wire.errors import InvalidRequest, RequestTooLarge

TEXT = st.text(alphabet=st.characters(codec="utf-8"))


@given(st.dictionaries(TEXT.filter(bool), TEXT, max_size=10))
def test_a_form_survives_the_way(fields: dict[str, str]) -> None:
    assert form.parse_form(form.encode_form(fields)) == fields


@pytest.mark.parametrize(
    "body",
    [b"name=a&input=%E4%B8", b"name=%zz", b"name=%4", b"\xff\xfe", b"just text", b"&".join([b"a=1"] * 1000)],
    ids=["cut UTF-8", "no hex", "cut escape", "raw bytes", "no field", "too many fields"],
)
def test_a_garbled_form_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="form"):
        form.parse_form(body)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(InvalidRequest, match="'endpoint'"):
        form.required({"name": "a", "endpoint": ""}, "name", "endpoint")


def test_a_history_becomes_openai_messages_and_the_place_of_the_answer_is_left_out() -> None:
    text = (
        '[{"msg":"hi","isbot":false},{"msg":"yes?","isbot":true},{"msg":null,"isbot":false},{"msg":null,"isbot":true}]'
    )
    assert form.parse_history(text) == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": ""},
    ]


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), TEXT), max_size=10))
def test_a_history_survives_the_way(turns: list[tuple[str, str]]) -> None:
    messages = [{"role": role, "content": text} for role, text in turns]
    assert form.parse_history(form.encode_history(messages)) == messages


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"msg":1}]', "[" * 100_000, '[{"isbot":"yes"}]'])
def test_what_is_no_history_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="input"):
        form.parse_history(text)


@pytest.mark.parametrize("text", ["__import__('os')", "[1.5]", "12", "[1", '["1"]', "[1] or 1", "[" * 100_000, "{}"])
def test_only_a_list_of_integers_names_the_requests_to_abort(text: str) -> None:
    assert form.parse_history_ids("[12,-5]") == [12, -5]
    with pytest.raises(InvalidRequest, match="history_id"):
        form.parse_history_ids(text)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=1000))
def test_up_to_a_thousand_requests_are_named_at_once(ids: list[int]) -> None:
    assert form.parse_history_ids(json.dumps(ids)) == ids


@pytest.mark.parametrize(
    "text",
    [
        "[" + "7," * 1000 + "7]",
        f"[{2**63}]",
        f"[{-(2**63) - 1}]",
        "[" + "3" * 31_000 + "]",
        "[1" + " " * 40_000 + "]",
        "[" + "-12," * 200_000 + "0]",
    ],
)
def test_a_list_that_takes_long_to_read_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"history_id.* at most 1000"):
        form.parse_history_ids(text)


@given(st.binary(max_size=60))
def test_a_form_is_read_as_the_standard_library_reads_it_or_refused(body: bytes) -> None:
    try:
        read = form.parse_form(body)
    except InvalidRequest:
        read = None
    try:
        expected = dict(parse_qsl(body.decode("ascii"), keep_blank_values=True, strict_parsing=True, errors="strict"))
    except ValueError:
        expected = None
    garbled = re.search(rb"%(?![0-9a-fA-F]{2})", body) is not None
    assert read == (None if garbled else expected if body else {})


@pytest.mark.parametrize("garbled", [b"%", b"%\n", b"%\r\n", b"%%41", b"%4", b"%g1", b"%-1", b"a%3D%", b"%=41"])
def test_a_percent_sign_without_two_hexadecimal_digits_is_refused_wherever_it_is(garbled: bytes) -> None:
    for body in (
        b"name=" + garbled,
        b"name=x" + garbled + b"&input=y",
        garbled + b"=x",
        b"name=%41" + garbled + b"%42",
    ):
        with pytest.raises(InvalidRequest):
            form.parse_form(body)


def test_a_form_beyond_its_bound_is_refused_unread() -> None:
    assert form.parse_form(b"a=" + b"b" * 10, max_bytes=12) == {"a": "b" * 10}
    with pytest.raises(RequestTooLarge):
        form.parse_form(b"a=" + b"%" * 11, max_bytes=12)


def test_a_history_of_countless_turns_is_refused_before_it_is_read() -> None:
    with pytest.raises(InvalidRequest, match="braces"):
        form.parse_history("[" + "{}," * 200_001 + "{}]")
