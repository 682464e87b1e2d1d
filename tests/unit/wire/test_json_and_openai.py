"""One decoder with one error; and what servers send where nothing is to be said."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuwa.wire.json import BadJson, decode, decoder
from kuwa.wire.openai import (
    Error,
    Usage,
    count_of,
    decode_chunk,
    decode_outline,
    decode_whole,
    parts_of,
    text_of,
    vectors_in,
)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


class Point(msgspec.Struct):
    x: int
    inside: list[dict[str, int]] = []


@given(st.binary(max_size=60) | st.text(max_size=60))
def test_whatever_is_decoded_is_of_the_type_or_bad(data: bytes | str) -> None:
    for read in (decoder(Point), lambda given: decode(given, Point)):
        with contextlib.suppress(BadJson):
            assert isinstance(read(data), Point)


@pytest.mark.parametrize(
    ("data", "wrong_type", "says"),
    [
        (b'{"x":1,"inside":[{"a":"b"}]}', True, "$.inside[0]"),
        (b"{}", True, "`x`"),
        (b'{"x":1', False, "truncated"),
        (b'{"y":' + b"[" * 100_000, False, "nested too deeply"),
        (b'{"x":1,"inside":[{"\xff":1}]}', False, "UTF-8"),
        ('{"x":1,"inside":[{"\ud800":1}]}', False, "UTF-8"),
    ],
)
def test_the_error_says_what_is_wrong_and_where(data: bytes | str, wrong_type: bool, says: str) -> None:
    with pytest.raises(BadJson) as caught:
        decode(data, Point)
    assert says in str(caught.value)
    assert caught.value.wrong_type is wrong_type


@pytest.mark.parametrize(
    ("value", "count"),
    [(3, 3), (3.0, 3), (0, 0), (2**53, 2**53), (2**53 + 1, None), (-1, None), (0.5, None), (True, None), ("3", None),
     (None, None), (1e300, None), (float("nan"), None)],
)  # fmt: skip
def test_a_count_is_whole_and_within_reason(value: object, count: int | None) -> None:
    assert count_of(value) == count


def test_usage_is_read_whatever_its_numbers_look_like() -> None:
    plain = {"prompt_tokens": 3, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 2}}
    odd = {"prompt_tokens": 3.0, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 2.0}}
    for usage in (plain, odd):
        for read in (decode_whole, decode_outline, decode_chunk):
            found = read(json.dumps({"choices": [], "usage": usage}).encode()).usage
            assert found is not None
            assert (found.prompt_tokens, found.completion_tokens, found.cached) == (3, 5, 2)
    for unknown in (None, "x", 7, {}, {"prompt_tokens": -1}, {"prompt_tokens": None, "completion_tokens": "5"}):
        assert Usage.of(unknown) is None


@pytest.mark.parametrize("reason", ["", "null", None, 7, [], {}])
def test_a_reason_that_names_none_goes_on(reason: object) -> None:
    data = json.dumps({"choices": [{"delta": {"content": "a"}, "finish_reason": reason}]}).encode()
    assert not decode_outline(data).finishes
    assert decode_outline(data).has_content
    [choice] = decode_chunk(data).choices or ()
    assert (choice.said, choice.ended) == ("a", None)


@pytest.mark.parametrize(
    "message",
    [{}, {"choices": None}, {"choices": []}, {"choices": [{"delta": None}]}, {"choices": [{"text": None}]},
     {"choices": [{"delta": {"content": None, "role": "assistant", "tool_calls": None}}], "error": None}],
)  # fmt: skip
def test_null_is_absent(message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    outline = decode_outline(data)
    assert not outline.has_content
    assert not outline.finishes
    assert outline.error is None
    assert decode_chunk(data).text == ""


def test_content_parts_are_their_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url"}, "b", 7, {"type": "refusal", "refusal": "c"}]
    assert text_of(parts) == "abc"
    assert len(parts_of(parts)) == len(parts)
    assert decode_chunk(json.dumps({"choices": [{"delta": {"content": parts}}]}).encode()).text == "abc"
    assert (text_of("x"), text_of(None), text_of({"text": "x"})) == ("x", "", "")


def test_an_error_is_an_object_or_a_text() -> None:
    said = Error.of({"message": "m", "code": 7, "param": [], "type": None})
    assert said is not None
    assert (said.message, said.code, said.param) == ("m", "7", None)
    assert Error.of("oops") == Error("oops")
    assert [Error.of(nothing) for nothing in (None, "", {}, 0, [], False)] == [None] * 6


def test_vectors_are_numbers_or_base64_in_the_order_of_their_inputs() -> None:
    data = [{"index": 1, "embedding": [1, 0.5]}, {"index": 0, "embedding": "AACAPwAAAEA="}]
    assert vectors_in(json.dumps({"data": data}).encode()) == ([[1.0, 2.0], [1.0, 0.5]], 0)
    with pytest.raises(BadJson):
        vectors_in(b'{"data":[{"embedding":"AAA="}]}')


@given(st.dictionaries(st.sampled_from(["choices", "usage", "error", "id"]), values), values)
def test_any_message_is_read_or_is_bad(message: dict[str, Any], choice: Any) -> None:
    for given_message in (message, {**message, "choices": [choice]}):
        data = json.dumps(given_message).encode()
        for read in (decode_whole, decode_outline, decode_chunk):
            try:
                found = read(data)
            except BadJson:
                continue
            assert found.error is None or isinstance(found.error, Error)
