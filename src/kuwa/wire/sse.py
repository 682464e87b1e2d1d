"""Server-sent events: an incremental reader that takes any split of bytes, and the writer's two lines.

The reader follows the WHATWG event-stream grammar: lines end in LF, CR or CRLF, comments begin with a colon,
an event ends at a blank line, an unfinished event at the end of the stream is dropped (and reported).
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

DONE = b"[DONE]"
DONE_EVENT = b"data: [DONE]\n\n"
MAX_EVENT_BYTES = 2 * 1024 * 1024


class EventTooLong(ValueError):
    """A single event grew beyond the reader's bound; the stream is not worth reading further."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """One event: its joined data lines, its `event:` name, and the comments that stood before it."""

    data: bytes
    name: bytes = b""
    comments: tuple[bytes, ...] = ()


class SseReader:
    """Turns bytes, however split, into events. `feed` may be called with any number of bytes at a time."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max = max_event_bytes
        self._buffer = bytearray()
        self._data: list[bytes] = []
        self._name = b""
        self._comments: list[bytes] = []
        self._size = 0
        self._after_cr = False
        self._first = True

    @property
    def unfinished(self) -> bool:
        """Whether bytes of an event that has not ended are held."""
        return bool(self._buffer or self._data)

    def feed(self, data: bytes) -> Iterator[Event]:
        """Yield the events that `data` completes. Raises EventTooLong beyond the bound."""
        self._buffer += data
        position = 0
        buffer = self._buffer
        try:
            while True:
                if self._after_cr:
                    if position == len(buffer):
                        break
                    if buffer[position] == 0x0A:
                        position += 1
                    self._after_cr = False
                end = _line_end(buffer, position)
                if end < 0:
                    break
                line = bytes(buffer[position:end])
                position = end + 1
                self._after_cr = buffer[end] == 0x0D
                event = self._line(line)
                if event is not None:
                    yield event
        finally:
            del buffer[:position]
        if len(buffer) + self._size > self._max:
            raise EventTooLong(f"an event is longer than {self._max} bytes")

    def _line(self, line: bytes) -> Event | None:
        if self._first:
            self._first = False
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line:
            if not self._data:
                self._name = b""
                return None
            event = Event(b"\n".join(self._data), self._name, tuple(self._comments))
            self._data, self._comments, self._name, self._size = [], [], b"", 0
            return event
        self._size += len(line)
        if self._size > self._max:
            raise EventTooLong(f"an event is longer than {self._max} bytes")
        field, colon, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not field and colon:
            self._comments.append(value)
        elif field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value
        return None


def plain_events(data: bytes) -> list[bytes] | None:
    """The data of each event, where `data` is nothing but whole events of one `data: ` line each; else None.

    What most servers send with most writes; `SseReader` reads everything else.
    """
    if not (data.startswith(b"data: ") and data.endswith(b"\n\n")) or b"\r" in data:
        return None
    datas = data[6:-2].split(b"\n\ndata: ")
    return datas if data.count(b"\n") == 2 * len(datas) else None


def _line_end(buffer: bytearray, start: int) -> int:
    lf = buffer.find(b"\n", start)
    cr = buffer.find(b"\r", start, lf if lf >= 0 else len(buffer))
    return cr if cr >= 0 else lf


def event(data: bytes) -> bytes:
    """One event whose data is a single line (JSON always is)."""
    return b"data: " + data + b"\n\n"


def comment(text: str) -> bytes:
    """A comment, which every client ignores. Line breaks in `text` become spaces."""
    return b": " + " ".join(text.splitlines()).encode() + b"\n\n"
