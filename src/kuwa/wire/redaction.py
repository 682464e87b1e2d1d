"""Takes API keys out of what other servers say, before a client, a page or a log shows it. Pure.

A server that refuses a key tends to repeat it: whole, cut short, escaped, percent-encoded, or in the base64 or the
hexadecimal digits of the header that held it. The kernel (`verdict`, `chat`) and the executors (`provider.failures`,
`lines`) make a `Redactor` of the keys that the other side was sent.
"""

from __future__ import annotations

import base64
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass

BLOT = "***"
# So many characters of a key in a row are not there by accident.
PIECE = 8
# Shorter "keys" are placeholders for servers that ask for none; taking them out would garble the text.
MIN_KEY = 4
# A text may be escaped inside a text that is escaped: JSON in JSON, percent signs in a query.
DEPTH = 3

_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})|\\u([0-9A-Fa-f]{4})|\\x([0-9A-Fa-f]{2})|\\([\\/\"'])|&#([0-9]{1,3});")
# What touches a piece of a key, written in these characters, belongs to the key.
_NEIGHBOURS = frozenset(string.ascii_letters + string.digits + "_%\\+~-=")
_MAX_NEIGHBOURS = 64
_WORD = re.compile(r"\S+")
_ELISION = re.compile(r"\*{3,}|\.{2,}|\u2026|\u2022{2,}|[xX]{4,}")
# How many characters the half-open bytes of base64 spoil at the beginning, by how many bytes stand before the key.
_SPOILT = (0, 2, 3)

Span = tuple[int, int]


class Redactor:
    """Replaces `keys`, and pieces of them, by `***`. Without a key it changes nothing."""

    def __init__(self, *keys: str) -> None:
        self._keys = [key for key in keys if len(key) >= MIN_KEY]
        self._pieces: dict[int, set[str]] = {}
        for key in self._keys:
            for form in _forms(key):
                length = min(PIECE, len(form))
                pieces = (form[at : at + length] for at in range(len(form) - length + 1))
                self._pieces.setdefault(length, set()).update(pieces)

    def __call__(self, text: str) -> str:
        if not self._keys:
            return text
        return _blotted(text, sorted([*self._shown(text), *self._elided(text)]))

    def _shown(self, text: str) -> Iterator[Span]:
        """Where pieces of a key are, also below escapes."""
        view: _View | None = _View(text, range(len(text) + 1))
        for _ in range(DEPTH + 1):
            if view is None:
                return
            for length, pieces in self._pieces.items():
                for start, end in _found(view.text, pieces, length):
                    span = view.starts[start], view.starts[end]
                    yield _with_neighbours(text, span) if length == PIECE else span
            view = view.unescaped()

    def _elided(self, text: str) -> Iterator[Span]:
        """Keys of which only the ends are shown, such as `sk-12345...cdef`, and words that are starred out."""
        for word in _WORD.finditer(text):
            if any(self._is_elision(text, word, dots) for dots in _ELISION.finditer(text, *word.span())):
                yield word.span()

    def _is_elision(self, text: str, word: re.Match[str], dots: re.Match[str]) -> bool:
        if dots.group().startswith("***"):
            return True
        return any(
            text.endswith(key[:length], word.start(), dots.start()) or text.startswith(key[-length:], dots.end())
            for key in self._keys
            if len(key) >= PIECE
            for length in range(MIN_KEY, PIECE)
        )


@dataclass(frozen=True, slots=True)
class _View:
    """A text as somebody reads it who undoes its escapes. `starts` says where each character is in the original."""

    text: str
    starts: range | list[int]

    def unescaped(self) -> _View | None:
        """The view one level below; None where nothing is escaped."""
        characters: list[str] = []
        starts: list[int] = []
        end = 0
        for escape in _ESCAPE.finditer(self.text):
            characters.append(self.text[end : escape.start()])
            starts += self.starts[end : escape.start()]
            characters.append(_character(escape))
            starts.append(self.starts[escape.start()])
            end = escape.end()
        if not end:
            return None
        return _View("".join([*characters, self.text[end:]]), [*starts, *self.starts[end:]])


def _character(escape: re.Match[str]) -> str:
    percent, unicode, byte, plain, decimal = escape.groups()
    if plain:
        return plain
    return chr(int(decimal)) if decimal else chr(int(percent or unicode or byte, 16))


def _forms(key: str) -> Iterator[str]:
    """How `key` may be written: as it is, and in base64 (with anything before it) and hexadecimal digits."""
    yield key
    if len(key) < PIECE:
        return
    data = key.encode("utf-8", "surrogateescape")
    yield data.hex()
    yield data.hex().upper()
    for before, spoilt in enumerate(_SPOILT):
        encoded = base64.b64encode(b"\0" * before + data).decode()
        # The last character before the padding holds bits of what would follow.
        sound = encoded.rstrip("=")[:-1] if encoded.endswith("=") else encoded
        yield sound[spoilt:]
        yield sound[spoilt:].translate({ord("+"): "-", ord("/"): "_"})


def _found(text: str, pieces: set[str], length: int) -> Iterator[Span]:
    """Where `pieces`, all of one `length`, are in `text`; those that overlap or touch are one."""
    start = end = -1
    for at in range(len(text) - length + 1):
        if text[at : at + length] in pieces:
            if at > end:
                if end > 0:
                    yield start, end
                start = at
            end = at + length
    if end > 0:
        yield start, end


def _with_neighbours(text: str, span: Span) -> Span:
    start, end = span
    first, last = max(0, start - _MAX_NEIGHBOURS), min(len(text), end + _MAX_NEIGHBOURS)
    while start > first and text[start - 1] in _NEIGHBOURS:
        start -= 1
    while end < last and text[end] in _NEIGHBOURS:
        end += 1
    return start, end


def _blotted(text: str, spans: list[Span]) -> str:
    shown: list[str] = []
    reached = 0
    for start, end in spans:
        if start >= reached:
            # Where two pieces of the key overlap or touch, they are one.
            shown += [text[reached:start], BLOT] if start > reached or not shown else []
        reached = max(reached, end)
    return "".join([*shown, text[reached:]])
