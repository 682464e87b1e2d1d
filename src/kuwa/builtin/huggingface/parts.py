"""Finds reasoning and tool calls in a model's text while it streams. Pure; used by `answer`.

Models write them between tags of their own. A tag may come in pieces, so the end of a text that may be the beginning
of one is held back. A tool call is given out whole, once it can be read; what cannot be read stays text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from kuwa.wire.json import BadJson, Fields, decode

THINK = ("<think>", "</think>")
CALL = ("<tool_call>", "</tool_call>")

Kind = Literal["text", "reasoning", "call"]


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of text or reasoning; or a call: `name` and, as JSON, `text`, its arguments."""

    kind: Kind
    text: str
    name: str = ""


class PartReader:
    """`thinks`: the prompt ended inside the reasoning. `calls`: whether calls are looked for."""

    def __init__(self, *, thinks: bool, calls: bool) -> None:
        self._state: Kind = "reasoning" if thinks else "text"
        self._calls = calls
        self._held = ""
        self._call = ""
        self._fresh = True  # nothing but blanks has come in this state: a model lays blanks around its tags
        self._reasoned = thinks

    def feed(self, text: str) -> Iterator[Part]:
        self._held += text
        while True:
            at, tag = self._next_tag()
            if at < 0:
                break
            yield from self._give(self._held[:at])
            self._held = self._held[at + len(tag) :]
            yield from self._turn(tag)
        keep = _begun(self._held, self._tags())
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        yield from self._give(certain)

    def finish(self) -> Iterator[Part]:
        """The text has ended: what was held back, and a call whose end never came if it can be read."""
        rest, self._held = self._held, ""
        yield from self._give(rest)
        if self._state == "call":
            yield from self._called()

    def _tags(self) -> Sequence[str]:
        if self._state == "reasoning":
            return (THINK[1],)
        if self._state == "call":
            return (CALL[1],)
        return ((CALL[0],) if self._calls else ()) + (() if self._reasoned else (THINK[0],))

    def _next_tag(self) -> tuple[int, str]:
        found = [(at, tag) for tag in self._tags() if (at := self._held.find(tag)) >= 0]
        return min(found, default=(-1, ""))

    def _turn(self, tag: str) -> Iterator[Part]:
        if tag == THINK[0] and not self._fresh:
            yield Part("text", tag)  # reasoning comes first or not at all: here the tag is spoken of
            return
        if tag == CALL[1]:
            yield from self._called()
        self._state = {THINK[0]: "reasoning", CALL[0]: "call"}.get(tag, "text")  # type: ignore[assignment]
        self._reasoned = self._reasoned or tag in THINK
        self._fresh = True

    def _give(self, text: str) -> Iterator[Part]:
        if self._state == "call":
            self._call += text
            return
        if self._fresh and (self._reasoned or self._state == "reasoning"):
            text = text.lstrip()
        if text.strip():
            self._fresh = False
        if text:
            yield Part(self._state, text)

    def _called(self) -> Iterator[Part]:
        raw, self._call = self._call, ""
        yield read_call(raw) or Part("text", CALL[0] + raw + CALL[1])


def read_call(raw: str) -> Part | None:
    """The call that `{"name": …, "arguments": {…}}` spells; None where it spells none."""
    try:
        fields = decode(raw, Fields)
    except BadJson:
        return None
    name, arguments = fields.get("name"), fields.get("arguments", fields.get("parameters", {}))
    if not isinstance(name, str) or not name:
        return None
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return Part("call", text, name)


def _begun(text: str, tags: Sequence[str]) -> int:
    """The length of the longest end of `text` with which a tag begins."""
    longest = max(map(len, tags), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(tag.startswith(text[len(text) - length :]) for tag in tags):
            return length
    return 0
