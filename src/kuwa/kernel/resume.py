"""A stream that outlives its replica: what was delivered, and what is new when it is computed again. Pure.

The executor that begins a stream announces by which model and seed it computes it (`: r …`, `wire/resume`). From
then on the relay keeps what the client is sent in a `Journal`, raw and unread. When the replica is lost, `chat`
sends the request to another one of the same fingerprint, with that seed; a `Replay` compares what comes with what
was delivered, text by text and whatever the events look like, drops what is the same, and lets the rest pass. At
the first difference the stream ends with a typed error: a client never gets two answers spliced together.

Token ids beside the events (`: k …`) go along in the request. An executor that can read them computes what was
delivered in one step instead of one token at a time; the answer is compared all the same.
"""

from __future__ import annotations

from collections import deque

import msgspec

from kuwa.http.framing import ChunkDecoder
from kuwa.wire import resume, sse
from kuwa.wire.errors import UpstreamLost
from kuwa.wire.json import Fields, decoder, fields_in, is_object, items_in
from kuwa.wire.openai import choices_in, count_of, reason_of
from kuwa.wire.sse import blocks_of, data_of

MAX_JOURNAL_BYTES = 256 * 1024
MAX_JOURNALS_BYTES = 64 * 1024 * 1024
GROWTH_BYTES = 8 * 1024

Key = tuple[object, ...]

_decode = decoder(Fields)
_encode = msgspec.json.Encoder().encode


class StreamDiffers(UpstreamLost):
    """Computed again, the stream is another one. Nobody's fault: near a tie, numbers may fall either way."""


class Journals:
    """The room that the journals of all streams share. `granted` never exceeds `limit`, in bytes."""

    def __init__(self, limit: int = MAX_JOURNALS_BYTES) -> None:
        self.limit = limit
        self.granted = 0

    def grant(self, count: int) -> bool:
        if self.granted + count > self.limit:
            return False
        self.granted += count
        return True

    def take_back(self, count: int) -> None:
        self.granted -= count


class Journal:
    """What one stream's client was sent since the announcement: `frames`, in chunked framing; None where it is not
    kept. A stream that has outgrown its bound or found no room among the others, or that was never announced, cannot
    be gone on with.

    Whoever writes into `frames` calls `grow` once they are longer than `room`.
    """

    __slots__ = ("_journals", "announced", "frames", "room")

    def __init__(self, journals: Journals) -> None:
        self._journals = journals
        self.announced: resume.Announcement | None = None
        self.frames: bytearray | None = None
        self.room = 0

    @property
    def bytes(self) -> int:
        return len(self.frames) if self.frames is not None else 0

    def begin(self, announced: resume.Announcement) -> bytearray:
        """The first replica has announced the stream. Returns where to write what is delivered."""
        self.announced = announced
        self.frames = bytearray()
        return self.frames

    def grow(self) -> bool:
        """Make room for what was written. False: there is none, and the journal is given up."""
        needed = -(-(self.bytes - self.room) // GROWTH_BYTES) * GROWTH_BYTES
        if self.room + needed > MAX_JOURNAL_BYTES or not self._journals.grant(needed):
            self.drop()
            return False
        self.room += needed
        return True

    def drop(self) -> None:
        """Give it up, or the stream is over: its room is the others'."""
        self.frames = None
        self._journals.take_back(self.room)
        self.room = 0

    def replay(self) -> Replay | None:
        """What is to be found again in the stream computed anew, or None where that cannot be told."""
        if self.announced is None or self.frames is None:
            return None
        try:
            return Replay(self.announced, ChunkDecoder().feed(bytes(self.frames)))
        except (ValueError, RecursionError):
            return None  # what was delivered is no stream of chat events


class Replay:
    """What was delivered, and has not yet been found again. `done`: all of it has."""

    def __init__(self, announced: resume.Announcement, delivered: bytes) -> None:
        self.announced = announced
        self._left: deque[tuple[Key, str]] = deque()
        self._offset = 0
        self._ids: list[int] = []
        self._head: Fields = {}
        for block in blocks_of(delivered):
            self._ids += resume.ids_in(block)
            data = data_of(block)
            if data.startswith(b"{"):
                self._remember(_decode(data))

    @property
    def done(self) -> bool:
        return not self._left

    def request(self, body: bytes) -> bytes:
        """The request's body with what another replica needs to go on."""
        ask = resume.ResumeRequest(
            seed=self.announced.seed,
            fingerprint=self.announced.fingerprint,
            prompt_hash=self.announced.prompt_hash,
            created=count_of(self._head.get("created")) or 0,
            ids=self._ids,
        )
        end = body.rindex(b"}")
        return b'%b,"kuwa_resume":%b}' % (body[:end], _encode(ask))

    def take(self, block: bytes) -> bytes:
        """What of a whole event is new. Raises StreamDiffers where it differs from what was delivered."""
        data = data_of(block)
        if not data.startswith(b"{"):
            if data == sse.DONE and self._left:
                raise _differs("it ended before the place where it was lost")
            return block if data == sse.DONE else b""
        try:
            return self._new_in(_decode(data))
        except (ValueError, RecursionError) as error:
            raise _differs("an event cannot be read") from error

    # ---- what was delivered --------------------------------------------------------------------------------

    def _remember(self, event: Fields) -> None:
        if not self._head:
            self._head = event
        for key, text in _pieces(event):
            if self._left and self._left[-1][0] == key:
                self._left[-1] = (key, self._left[-1][1] + text)
            else:
                self._left.append((key, text))

    # ---- what comes again ----------------------------------------------------------------------------------

    def _new_in(self, event: Fields) -> bytes:
        new = False
        kept: list[Fields] = []
        for choice in choices_in(event):
            index = choice.get("index", 0)
            delta = choice.get("delta")
            if is_object(delta):
                choice["delta"] = self._new_delta(index, delta)
                new = new or bool(choice["delta"])
            elif "text" in choice:
                choice["text"] = self._rest((index, "text"), _text(choice["text"]))
                new = new or bool(choice["text"])
            reason = reason_of(choice.get("finish_reason"))
            if reason is not None:
                new = bool(self._rest((index, "finish"), reason)) or new
            kept.append(choice)
        if event.get("usage") and not kept:
            new = bool(self._rest(("usage",), "."))
        return sse.event(_encode(event)) if new else b""

    def _new_delta(self, index: object, delta: Fields) -> Fields:
        """The delta without what was delivered of it, and without the role, which was."""
        fresh: Fields = {}
        for name, value in delta.items():
            if name == "role" or value in (None, "", []):
                continue
            if name == "tool_calls":
                calls = [call for call in map(self._new_call, map(fields_in, items_in(value))) if call]
                if calls:
                    fresh[name] = calls
            elif isinstance(value, str) and (rest := self._rest((index, name), value)):
                fresh[name] = rest
            elif not isinstance(value, str) and self._rest((index, name), _text(value)):
                fresh[name] = value
        return fresh

    def _new_call(self, call: Fields) -> Fields:
        position = call.get("index", 0)
        function = fields_in(call.get("function"))
        head = _head_of(call, function)
        head_is_new = bool(head) and bool(self._rest((position, "call"), head))
        rest = self._rest((position, "arguments"), _text(function.get("arguments")))
        if head_is_new:
            return {**call, "function": {**function, "arguments": rest}}
        return {"index": position, "function": {"arguments": rest}} if rest else {}

    def _rest(self, key: Key, text: str) -> str:
        """What of `text` was not delivered."""
        while text and self._left:
            expected_key, expected = self._left[0]
            if key != expected_key:
                raise _differs(f"{expected_key[-1]!r} was expected, {key[-1]!r} came")
            count = min(len(text), len(expected) - self._offset)
            if not expected.startswith(text[:count], self._offset):
                raise _differs("its text is another one")
            text = text[count:]
            self._offset += count
            if self._offset == len(expected):
                self._left.popleft()
                self._offset = 0
        return text


def _pieces(event: Fields) -> list[tuple[Key, str]]:
    """What an event says, in the order in which `Replay` looks for it."""
    found: list[tuple[Key, str]] = []
    choices = choices_in(event)
    for choice in choices:
        index = choice.get("index", 0)
        for name, value in fields_in(choice.get("delta")).items():
            if name == "role" or value in (None, "", []):
                continue
            if name == "tool_calls":
                for call in map(fields_in, items_in(value)):
                    position = call.get("index", 0)
                    function = fields_in(call.get("function"))
                    found.append(((position, "call"), _head_of(call, function)))
                    found.append(((position, "arguments"), _text(function.get("arguments"))))
            else:
                found.append(((index, name), _text(value)))
        found.append(((index, "text"), _text(choice.get("text"))))
        found.append(((index, "finish"), reason_of(choice.get("finish_reason")) or ""))
    if event.get("usage") and not choices:
        found.append((("usage",), "."))
    return [(key, text) for key, text in found if text]


def _head_of(call: Fields, function: Fields) -> str:
    """The id and name of a tool call, which come once, with its first piece."""
    return f"{call['id']} {function.get('name')}" if call.get("id") else ""


def _text(value: object) -> str:
    """A text as it is, nothing for null, and the JSON of any other value."""
    if value is None:
        return ""
    return value if isinstance(value, str) else _encode(value).decode()


def _differs(how: str) -> StreamDiffers:
    return StreamDiffers(f"The replica was lost, and another one computed a different answer: {how}.")
