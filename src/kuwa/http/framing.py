"""HTTP/1.1 response framing: the head, and the chunk walk. Pure; used by the pooled client.

Sizes are read through a table of hex literals: strict (no sign, no underscore) and faster than `int(text, 16)`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import httptools

HeaderPair = tuple[bytes, bytes]

MAX_HEAD_BYTES = 64 * 1024
MAX_CHUNK_BYTES = 16 * 1024 * 1024
_SIZES = {b"%x" % size: size for size in range(1, 32768)} | {b"%X" % size: size for size in range(1, 32768)}
_HEX = re.compile(rb"[0-9a-fA-F]{1,7}").fullmatch
_DIGITS = re.compile(rb"[0-9]{1,15}").fullmatch
MAX_LINE_BYTES = 1024

_Step = Literal["size", "payload", "payload end", "trailer"]


class BadFraming(ValueError):
    """The bytes are no HTTP/1.1 response."""


@dataclass(slots=True, eq=False)
class ResponseHead:
    """A parsed response head; heads that come again, but for their Content-Length, share one object.

    `sized`: its Content-Length says how long the body is. `derived` is for whoever hears the response: what it read
    out of this head, so that it need not again.
    """

    status: int
    headers: tuple[HeaderPair, ...]
    sized: bool
    chunked: bool
    keep_alive: bool
    derived: Any = None

    def get(self, name: bytes) -> bytes | None:
        """The first header called `name` (lower case), or None."""
        for key, value in self.headers:
            if key == name:
                return value
        return None


class _HeadParser:
    def __init__(self) -> None:
        self.headers: list[HeaderPair] = []
        self.parser = httptools.HttpResponseParser(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))


def parse_head(head: bytes, *, no_body: bool = False) -> tuple[ResponseHead, int]:
    """Parse a whole response head, blank line included; the head, and the announced length of its body. Raises
    BadFraming.

    `no_body`: the response to a HEAD request.
    """
    sink = _HeadParser()
    try:
        sink.parser.feed_data(head)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
        raise BadFraming(f"it is no HTTP response ({str(error).partition(chr(10))[0]})") from error
    status = sink.parser.get_status_code()
    lengths = [value for name, value in sink.headers if name == b"content-length"]
    codings = [value.lower() for name, value in sink.headers if name == b"transfer-encoding"]
    if len(lengths) > 1 or len(codings) > 1 or (lengths and codings):
        raise BadFraming("it frames its body in two ways at once")
    if codings and codings[0] != b"chunked":
        raise BadFraming(f"it uses the transfer coding {codings[0][:40]!r}")
    if lengths and _DIGITS(lengths[0]) is None:
        raise BadFraming(f"it announces the body length {lengths[0][:40]!r}")
    length = int(lengths[0]) if lengths else 0
    sized = bool(lengths)
    if no_body or status in (204, 304) or status < 200:
        length, sized, codings = 0, True, []
    keep_alive = bool(sink.parser.should_keep_alive()) and (sized or bool(codings))
    return ResponseHead(status, tuple(sink.headers), sized, bool(codings), keep_alive), length


class ChunkDecoder:
    """Takes the chunked framing off a body, however it is split into reads."""

    __slots__ = ("_left", "_rest", "_step", "ended")

    def __init__(self) -> None:
        self._step: _Step = "size"
        self._left = 0
        self._rest = b""
        self.ended = False

    @property
    def between_chunks(self) -> bool:
        """Whether everything fed so far was whole chunks."""
        return self._step == "size" and not self._rest

    def feed(self, data: bytes) -> bytes:
        """The payload in `data`. Raises BadFraming; bytes beyond the end of the body are bad framing too."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        pieces: list[bytes] = []
        position = 0
        while position < len(data):
            if self.ended:
                raise BadFraming("bytes follow the end of the body")
            if self._step == "payload":
                piece = data[position : position + self._left]
                pieces.append(piece)
                position += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._step = "payload end"
                continue
            end = data.find(b"\r\n", position, position + MAX_LINE_BYTES)
            if end < 0:
                if len(data) - position >= MAX_LINE_BYTES:
                    raise BadFraming("a line of its chunked framing has no end")
                self._rest = data[position:]
                break
            self._line(data[position:end])
            position = end + 2
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _line(self, line: bytes) -> None:
        if self._step == "size":
            self._left = chunk_size(line)
            self._step = "payload" if self._left else "trailer"
        elif self._step == "payload end":
            if line:
                raise BadFraming("a chunk is longer than announced")
            self._step = "size"
        elif not line:
            self.ended = True


def chunk_size(line: bytes) -> int:
    """The size in a chunk-size line (without its CRLF), extensions ignored. Raises BadFraming."""
    size = _SIZES.get(line)
    if size is not None:
        return size
    digits = line.partition(b";")[0].strip(b" \t")
    if _HEX(digits) is None:
        raise BadFraming(f"a chunk-size line reads {line[:40]!r}")
    size = int(digits, 16)
    if size > MAX_CHUNK_BYTES:
        raise BadFraming(f"a chunk of {size} bytes")
    return size


def whole_chunks(data: bytes) -> int:
    """How `data` is framed: 1 = whole chunks, 2 = whole chunks and the end of the body, 0 = anything else.

    Only plain size lines are understood here; 0 is always a safe answer, `ChunkDecoder` then decides.
    """
    position = 0
    total = len(data)
    while True:
        line_end = data.find(b"\r\n", position, position + 8)
        if line_end < 0:
            return 0
        size = _SIZES.get(data[position:line_end])
        if size is None:
            return 2 if data[position:] == b"0\r\n\r\n" else 0
        position = line_end + size + 4
        if position > total or data[position - 2 : position] != b"\r\n":
            return 0
        if position == total:
            return 1


def unframe(frames: bytes) -> bytes:
    """The payload of whole chunks, as `whole_chunks` recognised them."""
    pieces: list[bytes] = []
    position = 0
    while True:
        line_end = frames.find(b"\r\n", position)
        size = _SIZES.get(frames[position:line_end])
        if size is None:
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        start = line_end + 2
        pieces.append(frames[start : start + size])
        position = start + size + 2
