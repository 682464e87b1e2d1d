"""Heads that come again: a peer sends the same head with every message, but for the length of the body.

Both sides of a connection keep the head that they read last as a `KnownHead`: a read that is this head, with whatever
Content-Length, and the beginning of a body need not be parsed. `HeadMemo` shares them among connections. Pure.
"""

from __future__ import annotations

import re
from typing import Generic, TypeVar

H = TypeVar("H")

Cut = tuple[bytes, bytes]
"""A head without the digits of its Content-Length: what stands before them, and what follows."""

MAX_KNOWN = 1024
MAX_HEAD_BYTES = 16 * 1024
MAX_DIGITS = 10

_length = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ([0-9]{1,10})\r\n").search


def cut_head(data: bytes) -> Cut | None:
    """The head that `data` begins with, or None where no whole one with a Content-Length does."""
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES) + 4
    if end < 4:
        return None
    digits = _length(data, 0, end)
    if digits is None:
        return None
    first, last = digits.span(1)
    return data[:first], data[last:end]


class KnownHead(Generic[H]):
    """A head that has been parsed, and by which bytes it is known again. `body_bytes` is what `begins` read last."""

    __slots__ = ("_after", "_after_size", "_before", "_first", "_most", "body_bytes", "head")

    def __init__(self, cut: Cut, head: H) -> None:
        self._before, self._after = cut
        self._first = len(self._before)
        self._most = self._first + MAX_DIGITS + 1
        self._after_size = len(self._after)
        self.body_bytes = 0
        self.head = head

    def begins(self, data: bytes) -> int:
        """Where in `data` the body starts that follows this head; 0 where `data` begins otherwise."""
        if data.startswith(self._before):
            first = self._first
            last = data.find(b"\r", first, self._most)
            digits = data[first:last]
            if digits.isdigit() and data.startswith(self._after, last):
                self.body_bytes = int(digits)
                return last + self._after_size
        return 0


class HeadMemo(Generic[H]):
    """The heads known lately, of all connections."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[Cut, KnownHead[H]] = {}

    def get(self, cut: Cut) -> KnownHead[H] | None:
        return self._known.get(cut)

    def add(self, cut: Cut, head: H) -> KnownHead[H]:
        """Remember a head that has been parsed."""
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        known = self._known[cut] = KnownHead(cut, head)
        return known
