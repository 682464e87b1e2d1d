"""One attempt: the response of one replica, heard as it comes and written to the client.

`chat` makes a relay for each attempt and awaits its `outcome`. Nothing is written before the first content, so that
an attempt which fails before it can be made again elsewhere. There are three:

- `EventRelay`: OpenAI events to an OpenAI client, the hot path. Whole events pass unread. The first events are held
  until one has content; reads whose end is not that of an ordinary event are read event by event, which is where
  the usage event is withheld from clients that did not ask, and where the end of the answer is noted.
- `WholeRelay`: an answer in one piece, sent when it is complete.
- `TranslatingRelay`: where client and replica speak different wires.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from kuwa.http.exchange import Exchange, HeaderPair
from kuwa.http.framing import ResponseHead, unframe
from kuwa.kernel.story import Signal
from kuwa.kernel.translate import Translator, Usage
from kuwa.wire import sse
from kuwa.wire.errors import BadUpstream, KuwaError, UpstreamLost

MAX_ERROR_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_HELD_BYTES = 16 * 1024
MAX_ORDINARY_BYTES = 200

PASSED_HEADERS = frozenset({b"content-type", b"cache-control", b"x-kuwa-trimmed-messages", b"openai-processing-ms"})

_NULL_FINISH = b'"finish_reason":null'
_NEVER = b"\0"


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """An answer other than 200. `retry_after` is the header's value, empty where there was none."""

    status: int
    body: bytes
    retry_after: bytes = b""


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """How an attempt ended: complete, or with `error`. `delivered` says whether the client has been sent content."""

    error: KuwaError | None = None
    delivered: bool = False
    refusal: Refusal | None = None
    usage: Usage | None = None


class Clock(Protocol):
    """A monotonic time in seconds, refreshed a few times a second (`now`) and read exactly (`time`)."""

    now: float

    def time(self) -> float: ...


class Relay:
    """What all attempts share: refusals collected, losses told, the first content stamped."""

    __slots__ = ("_clock", "_exchange", "_headers", "_refusal", "_refused", "begun", "first_content_at", "outcome")

    def __init__(self, exchange: Exchange, headers: tuple[HeaderPair, ...], clock: Clock) -> None:
        self._exchange = exchange
        self._headers = headers
        self._clock = clock
        self._refused: bytearray | None = None
        self._refusal = Refusal(0, b"")
        self.begun = False
        self.first_content_at = 0.0
        self.outcome: Signal[Outcome] = Signal()

    # ---- ResponseHandler -----------------------------------------------------------------------------------

    def on_head(self, head: ResponseHead) -> None:
        if head.status != 200:
            self._refusal = Refusal(head.status, b"", head.get(b"retry-after") or b"")
            self._refused = bytearray()
        else:
            self._accepted(head)

    def on_frames(self, frames: bytes, ended: bool) -> None:
        self.on_data(unframe(frames), ended)

    def on_data(self, data: bytes, ended: bool) -> None:
        refused = self._refused
        if refused is None:
            self._body(data, ended)
            return
        refused += data[: MAX_ERROR_BYTES - len(refused)]
        if ended:
            refusal = Refusal(self._refusal.status, bytes(refused), self._refusal.retry_after)
            self.outcome.fire(Outcome(refusal=refusal))

    def on_lost(self, error: KuwaError) -> None:
        self._fail(error)

    # ---- what the attempts differ in -----------------------------------------------------------------------

    def _accepted(self, head: ResponseHead) -> None:
        self._headers += tuple(field for field in head.headers if field[0] in PASSED_HEADERS)

    def _body(self, data: bytes, ended: bool) -> None:
        raise NotImplementedError

    # ---- what they share -----------------------------------------------------------------------------------

    def _begin(self) -> None:
        """The first content is here: from now on this attempt is the client's answer."""
        self.begun = True
        self.first_content_at = self._clock.time()
        self._exchange.start(200, self._headers)

    def _fail(self, error: KuwaError) -> None:
        self.outcome.fire(Outcome(error=error, delivered=self.begun))


class _Choice(msgspec.Struct, gc=False):
    delta: dict[str, msgspec.Raw] = {}
    text: str = ""
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: dict[str, msgspec.Raw] | str | None = None


_decode_event = msgspec.json.Decoder(_Event).decode
_EMPTY = (b'""', b"null", b"[]", b"{}")


class EventRelay(Relay):
    """OpenAI events, passed through."""

    __slots__ = ("_carry", "_done", "_finished", "_held", "_ordinary", "_usage", "_usage_wanted")

    def __init__(
        self, exchange: Exchange, headers: tuple[HeaderPair, ...], clock: Clock, *, include_usage: bool
    ) -> None:
        super().__init__(exchange, headers, clock)
        self._usage_wanted = include_usage
        self._usage: Usage | None = None
        self._carry = b""
        self._held = b""
        self._ordinary = _NEVER
        self._finished = False
        self._done = False

    def _accepted(self, head: ResponseHead) -> None:
        super()._accepted(head)
        content_type = head.get(b"content-type") or b""
        if not content_type.startswith(b"text/event-stream"):
            self._fail(BadUpstream(f"The replica answered a stream with {content_type[:100]!r} in place of events."))

    def on_frames(self, frames: bytes, ended: bool) -> None:
        # Nothing held, nothing cut, nothing but ordinary events: the replica's own framing passes on.
        if self.begun and frames.endswith(self._ordinary) and not self._carry and self._exchange.chunked:
            self._exchange.write_framed(frames)
        else:
            self.on_data(unframe(frames), ended)

    def _body(self, data: bytes, ended: bool) -> None:
        if self.outcome.fired:
            return
        if self._carry:
            data = self._carry + data
        cut = len(data) if ended else _whole_events(data)
        self._carry = data[cut:]
        if len(self._carry) > sse.MAX_EVENT_BYTES:
            self._fail(BadUpstream(f"The replica sent an event of more than {sse.MAX_EVENT_BYTES} bytes."))
            return
        events = data[:cut]
        if events and not self._pass(events):
            return
        if ended:
            self._end()

    def _pass(self, events: bytes) -> bool:
        """Pass whole events on, held back, thinned out or as they are. Returns False when the attempt has failed."""
        content = False
        kept: list[bytes] = []
        for block in _blocks(events):
            event = _event_of(block)
            if event is None:
                self._done = self._done or _data_of(block) == sse.DONE
            else:
                if event.error is not None and not self.begun and not content:
                    self._fail(BadUpstream(f"The replica failed: {_error_text(event.error)}"))
                    return False
                content = content or _has_content(event)
                self._finished = self._finished or event.error is not None or _finishes(event)
                if event.usage is not None:
                    self._usage = event.usage
                    if not event.choices and not self._usage_wanted:
                        continue
            kept.append(block)
        out = events if len(kept) == 1 and len(kept[0]) == len(events) else b"".join(kept)
        if not self.begun:
            self._held += out
            if not content and not self._finished and len(self._held) < MAX_HELD_BYTES:
                return True
            out, self._held = self._held, b""
            self._begin()
        if not self._finished:
            self._learn(out)
        self._exchange.write(out)
        return True

    def _learn(self, events: bytes) -> None:
        """Remember how an ordinary event ends, so that reads ending like it need not be read."""
        start = events.rfind(_NULL_FINISH)
        if start >= 0 and len(events) - start < MAX_ORDINARY_BYTES and b'"content"' not in events[start:]:
            self._ordinary = events[start:] + b"\r\n"
        else:
            self._ordinary = _NEVER

    def _end(self) -> None:
        if not (self._finished or self._done) or not self.begun:
            self._fail(UpstreamLost("The replica ended its answer without finishing it."))
            return
        self._exchange.end(b"" if self._done else sse.DONE_EVENT)
        self.outcome.fire(Outcome(delivered=True, usage=self._usage))


class WholeRelay(Relay):
    """An answer in one piece: a completion, embeddings, a ranking. Sent when it is complete and is JSON."""

    __slots__ = ("_pieces", "_size")

    def __init__(self, exchange: Exchange, headers: tuple[HeaderPair, ...], clock: Clock) -> None:
        super().__init__(exchange, headers, clock)
        self._pieces: list[bytes] = []
        self._size = 0

    def _body(self, data: bytes, ended: bool) -> None:
        if self.outcome.fired:
            return
        self._pieces.append(data)
        self._size += len(data)
        if self._size > MAX_ANSWER_BYTES:
            self._fail(BadUpstream(f"The replica's answer is larger than {MAX_ANSWER_BYTES} bytes."))
        elif ended:
            self._answer(b"".join(self._pieces))

    def _answer(self, body: bytes) -> None:
        try:
            usage = _decode_answer(body).usage
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            shown = body[:100].decode("utf-8", "replace")
            self._fail(BadUpstream(f"The replica answered with something that is no JSON object: {shown!r}."))
            return
        self.begun = True
        self.first_content_at = self._clock.time()
        self._exchange.respond(200, body, self._headers)
        self.outcome.fire(Outcome(delivered=True, usage=usage))


class _Answer(msgspec.Struct):
    usage: Usage | None = None


_decode_answer = msgspec.json.Decoder(_Answer).decode


class TranslatingRelay(Relay):
    """Through a translator. With `whole`, the client wants one piece: what the translator gave, wrapped by it."""

    __slots__ = ("_collected", "_translator", "_whole")

    def __init__(
        self,
        exchange: Exchange,
        headers: tuple[HeaderPair, ...],
        clock: Clock,
        translator: Translator,
        *,
        whole: bool = False,
    ) -> None:
        super().__init__(exchange, headers, clock)
        self._translator = translator
        self._whole = whole
        self._collected = bytearray()

    def _accepted(self, head: ResponseHead) -> None:
        """The client's content type is the translation's, not the replica's."""

    def _body(self, data: bytes, ended: bool) -> None:
        if self.outcome.fired:
            return
        try:
            out = self._translator.feed(data)
        except KuwaError as error:
            self._fail(error)
            return
        if out:
            self._out(out)
        if ended and not self.outcome.fired:
            self._end()

    def _out(self, out: bytes) -> None:
        if self._whole:
            self._collected += out
            if len(self._collected) > MAX_ANSWER_BYTES:
                self._fail(BadUpstream(f"The replica's answer is larger than {MAX_ANSWER_BYTES} bytes."))
            return
        if not self.begun:
            self._begin()
        self._exchange.write(out)

    def _end(self) -> None:
        translator = self._translator
        if not translator.finished:
            self._fail(UpstreamLost("The replica ended its answer without finishing it."))
            return
        if self._whole:
            self.begun = True
            self.first_content_at = self._clock.time()
            self._exchange.respond(200, translator.whole(bytes(self._collected)), self._headers)
        else:
            if not self.begun:
                self._begin()
            self._exchange.end(translator.end())
        self.outcome.fire(Outcome(delivered=True, usage=translator.usage))


def _whole_events(data: bytes) -> int:
    """How many bytes of `data` are whole events: up to the last blank line."""
    lf = data.rfind(b"\n\n") + 2
    crlf = data.rfind(b"\r\n\r\n") + 4
    return max(lf if lf >= 2 else 0, crlf if crlf >= 4 else 0)


def _blocks(events: bytes) -> list[bytes]:
    """Whole events one by one, each with the blank line that ends it."""
    separator = b"\n\n" if b"\r" not in events else b"\r\n\r\n"
    parts = events.split(separator)
    last = parts.pop()
    blocks = [part + separator for part in parts]
    if last:
        blocks.append(last)
    return blocks


def _data_of(block: bytes) -> bytes:
    """The data of an event; of several data lines, joined."""
    if block.startswith(b"data: ") and block.find(b"\n", 0, len(block) - 2) < 0:
        return block[6:].strip()
    return b"\n".join(line[5:].removeprefix(b" ") for line in block.splitlines() if line.startswith(b"data:")).strip()


def _event_of(block: bytes) -> _Event | None:
    """The event's message, or None for comments, [DONE] and what is no JSON object."""
    data = _data_of(block)
    if not data.startswith(b"{"):
        return None
    try:
        return _decode_event(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _has_content(event: _Event) -> bool:
    """Whether the event carries more than the role."""
    return any(
        choice.text
        or choice.finish_reason is not None
        or any(bytes(value) not in _EMPTY for name, value in choice.delta.items() if name != "role")
        for choice in event.choices
    )


def _finishes(event: _Event) -> bool:
    return any(choice.finish_reason is not None for choice in event.choices)


def _error_text(error: dict[str, msgspec.Raw] | str) -> str:
    if isinstance(error, str):
        return error[:500]
    message = error.get("message")
    return bytes(message)[:500].decode("utf-8", "replace") if message is not None else "it gave no reason."
