"""The catalogue of texts: both languages say everything, and a browser gets the one it asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from string import Formatter

import pytest

from kuwa.words import preferred, words_in
from kuwa.words.catalogue import Words


def texts(words: Words) -> dict[str, str]:
    """Every text by its path in the catalogue."""

    def walk(value: object, path: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict):
            for name, text in value.items():
                yield from walk(text, f"{path}.{name}")
        else:
            yield path, str(value)

    return dict(walk(dataclasses.asdict(words), ""))


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name}


def test_both_languages_say_everything_and_fill_in_the_same_fields() -> None:
    english, chinese = texts(words_in("en")), texts(words_in("zh-TW"))
    assert english.keys() == chinese.keys()
    for path, text in english.items():
        assert fields(text) == fields(chinese[path]), path
        assert text.strip(), path
        assert chinese[path].strip(), path


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("", "en"),
        ("zh-TW,zh;q=0.9,en;q=0.8", "zh-TW"),
        ("en-GB,en;q=0.9,zh-TW;q=0.8", "en"),
        ("zh-Hant", "zh-TW"),
        ("fr, de;q=0.9, zh;q=0.1", "zh-TW"),
        ("en;q=0.2, zh;q=0.7", "zh-TW"),
        ("zh;q=nonsense, en;q=0.1", "en"),
        ("zh;q=0", "en"),
        ("fr", "en"),
    ],
)
def test_a_browser_gets_the_language_it_prefers(accepted: str, language: str) -> None:
    assert preferred(accepted).language == language
