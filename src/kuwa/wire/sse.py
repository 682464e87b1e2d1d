"""Server-sent events: where they end, what they hold, and an incremental reader that takes any split of bytes.

The WHATWG event-stream grammar: lines end in LF, CR or CRLF, comments begin with a colon, an event ends at a blank
line, a byte order mark at the start is not part of the first line, and an unfinished event at the end of the stream is
dropped. What passes streams on cuts them into blocks (`whole_events`, `blocks_of`, `data_of`), which keep every
byte; code that wants only the data feeds a `SseReader`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

DONE = b"[DONE]"
DONE_EVENT = b"data: [DONE]\n\n"
MAX_EVENT_BYTES = 2 * 1024 * 1024
BOM = b"\xef\xbb\xbf"

_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
"""The end of an event: the end of its last line, and the empty line. Atomic, or CRLF would be taken for two ends."""


class EventTooLong(ValueError):
    """A single event grew beyond the reader's bound; the stream is not worth reading further."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """One event: its joined data lines, its `event:` name, and the comments that stood before it."""

    data: bytes
    name: bytes = b""
    comments: tuple[bytes, ...] = ()


def is_event_stream(content_type: bytes) -> bool:
    """Whether a body of that type may be events. Some servers name none: then the body itself has to tell."""
    media_type = content_type.partition(b";")[0].strip().lower()
    return media_type in (b"", b"text/event-stream")


# ---- blocks: an event, or comments, with the blank line that ends them -----------------------------------------


def whole_events(data: bytes) -> int:
    """How many bytes of `data` are whole events: up to the last blank line.

    After a CR at the end an LF may still come; it then begins the next block, where a line end means nothing.
    """
    if b"\r" not in data:
        last = data.rfind(b"\n\n")
        return last + 2 if last >= 0 else 0
    end = 0
    for found in _BLANK_LINE.finditer(data):
        end = found.end()
    return end


def blocks_of(events: bytes) -> list[bytes]:
    """Whole events one by one, each with the blank line that ends it."""
    if b"\r" not in events:
        parts = events.split(b"\n\n")
        last = parts.pop()
        blocks = [part + b"\n\n" for part in parts]
        return [*blocks, last] if last else blocks
    blocks: list[bytes] = []
    start = 0
    for found in _BLANK_LINE.finditer(events):
        blocks.append(events[start : found.end()])
        start = found.end()
    return [*blocks, events[start:]] if start < len(events) else blocks


def data_of(block: bytes) -> bytes:
    """The data of a block; of several data lines, joined. Blanks around it mean nothing to JSON and are taken off."""
    if block.startswith(b"data: ") and block.find(b"\n", 0, len(block) - 2) < 0 and b"\r" not in block:
        return block[6:].strip()
    return b"\n".join(_data_lines(block)).strip()


def _data_lines(block: bytes) -> list[bytes]:
    lines = block.splitlines()  # of bytes: at LF, CR and CRLF alone
    return [line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:") or line == b"data"]


class SseReader:
    """Turns bytes, however split, into events. `feed` may be called with any number of bytes at a time."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max = max_event_bytes
        self._buffer = b""
        self._comments: list[bytes] = []
        self._first = True

    @property
    def unfinished(self) -> bool:
        """Whether bytes of an event that has not ended are held."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> Iterator[Event]:
        """Yield the events that `data` completes. Raises EventTooLong beyond the bound."""
        held = self._buffer + data
        cut = whole_events(held)
        rest = held[cut:]
        if cut:
            rest = rest.lstrip(b"\r\n")
        self._buffer = rest
        for block in blocks_of(held[:cut]) if cut else ():
            if len(block) > self._max:
                raise EventTooLong(f"an event is longer than {self._max} bytes")
            event = self._event(block)
            if event is not None:
                yield event
        if len(self._buffer) > self._max:
            raise EventTooLong(f"an event is longer than {self._max} bytes")

    def _event(self, block: bytes) -> Event | None:
        if self._first:
            self._first = False
            block = block.removeprefix(BOM)
        if block.startswith(b"data: ") and block.find(b"\n") == len(block) - 2 and b"\r" not in block:
            event = Event(block[6:-2], b"", tuple(self._comments))
            self._comments.clear()
            return event
        data = _data_lines(block)
        name = b""
        for line in block.splitlines():
            field, colon, value = line.partition(b":")
            if not field and colon:
                self._comments.append(value.removeprefix(b" "))
            elif field == b"event":
                name = value.removeprefix(b" ")
        if not data:
            return None
        event = Event(b"\n".join(data), name, tuple(self._comments))
        self._comments.clear()
        return event


def plain_events(data: bytes) -> list[bytes] | None:
    """The data of each event, where `data` is nothing but whole events of one `data: ` line each; else None.

    What most servers send with most writes; `SseReader` reads everything else.
    """
    if not (data.startswith(b"data: ") and data.endswith(b"\n\n")) or b"\r" in data:
        return None
    datas = data[6:-2].split(b"\n\ndata: ")
    return datas if data.count(b"\n") == 2 * len(datas) else None


def event(data: bytes) -> bytes:
    """One event whose data is a single line (JSON always is)."""
    return b"data: " + data + b"\n\n"


def comment(text: str) -> bytes:
    """A comment, which every client ignores. Line breaks in `text` become spaces."""
    return b": " + " ".join(text.splitlines()).encode() + b"\n\n"
