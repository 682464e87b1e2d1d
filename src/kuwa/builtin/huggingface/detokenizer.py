"""Turns token ids that come one by one into text, whole characters at a time. Pure; used by `answer`.

A token may hold a part of a character, and how a token reads may depend on the one before it. So a few tokens before
the new ones are decoded with them each time, and what could still change is held back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

BROKEN = "\ufffd"
"""What decoders put in the place of bytes that are no character, or none yet."""
MOST_HELD = 64
"""Tokens after which broken text is taken for what it is: no character takes so many."""


class Detokenizer:
    """`decode` gives the text of a list of ids, and must not depend on anything else."""

    __slots__ = ("_decode", "_ids", "_read", "_shown", "_start")

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._start = 0  # the window begins here: tokens that give the next ones their context
        self._read = 0  # the text of the tokens before this is settled
        self._shown = 0  # characters of the text behind it that were given out already

    def push(self, token: int) -> str:
        """The text that is certain now."""
        self._ids.append(token)
        text = self._behind()
        broken = text.endswith(BROKEN) and len(self._ids) - self._read < MOST_HELD
        certain = text.rstrip(BROKEN) if broken else text
        new = certain[self._shown :]
        if broken:
            self._shown = max(self._shown, len(certain))
        elif text:
            self._start, self._read, self._shown = self._read, len(self._ids), 0
        return new

    def finish(self) -> str:
        """What was held back and is text; half a character at the very end is none."""
        return self._behind().rstrip(BROKEN)[self._shown :]

    def _behind(self) -> str:
        """The text of the tokens that are not settled."""
        context = self._decode(self._ids[self._start : self._read])
        return self._decode(self._ids[self._start :])[len(context) :]
