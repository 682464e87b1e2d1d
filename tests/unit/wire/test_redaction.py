"""What a server says of the key that it was sent, and that nothing of the key is left in it."""

from __future__ import annotations

import base64
import json
import string
import time
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuwa.wire.redaction import PIECE, Redactor

KEY = "sk-proj-Zq9x/7Lw+2mTbV4=Rk_81"

keys = st.text(string.ascii_letters + string.digits + "-_./+=:~!$", min_size=12, max_size=80).filter(
    # A key of which every piece is like any other has no ends to tell apart.
    lambda key: len(set(key)) > 8
)
around = st.text(st.characters(codec="utf-8", exclude_characters="*"), max_size=30)

WRITTEN: dict[str, Callable[[str], str]] = {
    "as it is": lambda key: key,
    "with its scheme": lambda key: f"Bearer {key}",
    "percent-encoded": lambda key: quote(key, safe=""),
    "percent-encoded twice": lambda key: quote_plus(quote_plus(key)),
    "every byte percent-encoded": lambda key: "".join(f"%{ord(c):02x}" for c in key),
    "JSON": json.dumps,
    "JSON with its slashes escaped": lambda key: json.dumps(key).replace("/", "\\/"),
    "JSON in JSON": lambda key: json.dumps(json.dumps(key).replace("/", "\\/")),
    "by code points": lambda key: "".join(f"\\u{ord(c):04X}" for c in key),
    "base64": lambda key: base64.b64encode(key.encode()).decode(),
    "base64 for URLs": lambda key: base64.urlsafe_b64encode(key.encode()).decode().rstrip("="),
    "base64 of the header": lambda key: base64.b64encode(f"Bearer {key}".encode()).decode(),
    "base64 of name and password": lambda key: base64.b64encode(f"me:{key}".encode()).decode(),
    "hexadecimal digits": lambda key: key.encode().hex(),
    "HTML": lambda key: "".join(c if c.isalnum() else f"&#{ord(c)};" for c in key),
    "without its first": lambda key: key[1:],
    "without its last": lambda key: key[:-3],
    "from its middle": lambda key: key[2:-2],
    "with one missing": lambda key: key[: len(key) // 2 + 3] + key[len(key) // 2 + 4 :],
}


def pieces(text: str, length: int = PIECE) -> set[str]:
    return {text[at : at + length] for at in range(len(text) - length + 1)}


@pytest.mark.parametrize("how", WRITTEN)
@given(key=keys, before=around, after=around)
def test_however_a_key_is_written_no_piece_of_it_is_left(how: str, key: str, before: str, after: str) -> None:
    written = WRITTEN[how](key)
    shown = Redactor(key)(f"{before} {written} {after}")
    assert not pieces(shown) & pieces(written)


@given(
    key=keys, words=st.lists(st.sampled_from(["the", "model", "qwen3-32b", "is", "overloaded;", "see", "/v1/models"]))
)
def test_words_that_are_not_the_keys_stay(key: str, words: list[str]) -> None:
    text = " ".join(words)
    if not pieces(text) & pieces(key):
        assert Redactor(key)(text) == text


@given(st.text(), st.text())
def test_any_key_and_any_text_give_a_text_without_the_key(key: str, text: str) -> None:
    shown = Redactor(key)(text + key + text)
    assert len(key) < PIECE or key not in shown or key in "***"


def test_what_is_around_the_key_stays() -> None:
    said = f'Incorrect API key provided: {KEY}. {{"url": "https://a.test/v1?key={quote(KEY, safe="")}&alt=sse"}}'
    shown = Redactor(KEY)(said)
    assert shown == 'Incorrect API key provided: ***. {"url": "https://a.test/v1?***&alt=sse"}'


@pytest.mark.parametrize(
    "ends",
    [
        "sk-proj...",
        "sk-proj-****k_81",
        "sk-p\u2026k_81",
        "...k_81",
        "sk-proxxxxxxk_81",
        "sk-pr\u2022\u2022\u2022\u2022",
        "****",
    ],
)
def test_a_key_of_which_the_ends_are_shown_is_blotted_as_a_whole(ends: str) -> None:
    assert Redactor(KEY)(f"The key {ends} has expired.") == "The key *** has expired."


@pytest.mark.parametrize("text", ["wait ...", "from a... to z", "xxxx", "-- and so on \u2026"])
def test_dots_that_stand_for_something_else_stay(text: str) -> None:
    assert Redactor(KEY)(text) == text


def test_several_keys_are_taken_out_at_once() -> None:
    assert Redactor("", "key-of-the-user-1", "short", "u")("key-of-the-user-1, short, u") == "***, ***, u"


def test_no_key_changes_nothing() -> None:
    assert Redactor("")("*** is ***") == "*** is ***"


@pytest.mark.parametrize(
    "text", [KEY * 3000, "x" * 60_000, "%41" * 20_000, "\\\\" * 30_000, "*" * 60_000, ".. " * 20_000]
)
def test_long_texts_take_little_time(text: str) -> None:
    began = time.process_time()
    Redactor(KEY)(text)
    assert time.process_time() - began < 2.0
