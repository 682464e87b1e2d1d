"""One attempt: the response of one replica, heard as it comes and written to the client.

`chat` makes a relay for each attempt and awaits its `outcome`. Nothing is written before the first content, so that
an attempt which fails before it can be made again elsewhere. There are three:

- `EventRelay`: OpenAI events to an OpenAI client, the hot path. Whole events pass unread. The first events are held
  until one has content; reads whose end is not that of an ordinary event are read event by event, which is where
  the usage event is withheld from clients that did not ask, and where the end of the answer is noted. What is sent
  is kept in a journal if the replica announced how to go on with the stream; a relay that goes on with one is
  given the `Replay` that says what of it is new. `TextRelay` is the same for a client of the v1.0 wire.
- `WholeRelay`: an answer in one piece, sent when it is complete.
- `TranslatingRelay`: from a replica of the v1.0 wire, whose text may be wanted as events.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from kuwa.http.exchange import Exchange, HeaderPair
from kuwa.http.framing import ResponseHead, unframe
from kuwa.kernel.events import blocks_of, data_of, event_in, whole_events
from kuwa.kernel.resume import Journal, Replay
from kuwa.kernel.story import Signal
from kuwa.kernel.translate import PassedOn, TextFromEvents, Translator, Usage
from kuwa.wire import sse
from kuwa.wire.errors import BadUpstream, KuwaError, UpstreamLost
from kuwa.wire.resume import announcement_in

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
    """What all attempts share: refusals collected, losses told, the first content stamped.

    `takes_comments`: what the client gets are whole events, so that a comment may stand between any two writes.
    """

    takes_comments = False

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
        if not self._exchange.started:  # a client that asked to be told of its waiting has had the head already
            self._exchange.start(200, self._headers)

    def _fail(self, error: KuwaError) -> None:
        self.outcome.fire(Outcome(error=error, delivered=self.begun))


class EventRelay(Relay):
    """OpenAI events, passed through."""

    takes_comments = True

    __slots__ = (
        "_carry",
        "_done",
        "_finished",
        "_held",
        "_journal",
        "_kept",
        "_ordinary",
        "_replay",
        "_room",
        "_usage",
        "_usage_wanted",
    )

    def __init__(
        self,
        exchange: Exchange,
        headers: tuple[HeaderPair, ...],
        clock: Clock,
        *,
        include_usage: bool,
        journal: Journal | None = None,
        replay: Replay | None = None,
    ) -> None:
        super().__init__(exchange, headers, clock)
        self._usage_wanted = include_usage
        self._usage: Usage | None = None
        self._carry = b""
        self._held = b""
        self._ordinary = _NEVER
        self._finished = False
        self._done = False
        self._journal = journal
        self._replay = replay
        self._kept: bytearray | None = None
        self._room = 0
        if replay is not None and journal is not None:
            self.begun = True
            self._kept = journal.frames
            self._room = journal.room

    def _accepted(self, head: ResponseHead) -> None:
        super()._accepted(head)
        content_type = head.get(b"content-type") or b""
        if not content_type.startswith(b"text/event-stream"):
            self._fail(BadUpstream(f"The replica answered a stream with {content_type[:100]!r} in place of events."))

    def on_frames(self, frames: bytes, ended: bool) -> None:
        # Nothing held, nothing cut, nothing but ordinary events: the replica's own framing passes on.
        if self.begun and frames.endswith(self._ordinary) and not self._carry and self._exchange.chunked:
            self._exchange.write_framed(frames)
            kept = self._kept
            if kept is not None:
                kept += frames
                if len(kept) > self._room:
                    self._grow()
        else:
            self.on_data(unframe(frames), ended)

    def _grow(self) -> None:
        """The journal wants more room; without it, nothing is kept any more."""
        journal = self._journal
        if journal is None or not journal.grow():
            self._kept = None
        else:
            self._room = journal.room

    def _body(self, data: bytes, ended: bool) -> None:
        if self.outcome.fired:
            return
        if self._carry:
            data = self._carry + data
        cut = len(data) if ended else whole_events(data)
        self._carry = data[cut:]
        if len(self._carry) > sse.MAX_EVENT_BYTES:
            self._fail(BadUpstream(f"The replica sent an event of more than {sse.MAX_EVENT_BYTES} bytes."))
            return
        events = data[:cut]
        if events:
            try:
                self._pass(events)
            except KuwaError as error:
                self._fail(error)
                return
        if ended:
            self._end()

    def _pass(self, events: bytes) -> None:
        """Pass whole events on, held back, thinned out or as they are. Raises what makes the attempt fail."""
        content = False
        kept: list[bytes] = []
        for block in blocks_of(events):
            new = self._expected(block)
            if not new:
                continue
            data = data_of(new)
            event = event_in(data)
            if event is None:
                if not (data or self.begun):
                    continue  # a comment: a sign of life, which has been noticed
                self._done = self._done or data == sse.DONE
            else:
                if event.error is not None:
                    self._write(b"".join(kept), content)
                    raise PassedOn.of(502, data) or BadUpstream(f"The replica failed: {data[:500]!r}")
                content = content or event.has_content
                self._finished = self._finished or event.finishes
                if event.usage is not None:
                    self._usage = event.usage
                    if not event.choices and not self._usage_wanted:
                        continue
            kept.append(new)
        self._write(events if len(kept) == 1 and len(kept[0]) == len(events) else b"".join(kept), content)

    def _expected(self, block: bytes) -> bytes:
        """What of an event is for the client: not the announcement, nor what it has had before the replica was lost."""
        if self._replay is not None:
            new = self._replay.take(block)
            if self._replay.done:
                self._replay = None
                self.first_content_at = self._clock.time()
            return new
        if not self.begun and self._journal is not None:
            announced = announcement_in(block)
            if announced is not None:
                self._kept = self._journal.begin(announced)
                return b""
        return block

    def _write(self, out: bytes, content: bool) -> None:
        if not self.begun:
            self._held += out
            if not content and not self._finished and len(self._held) < MAX_HELD_BYTES:
                return
            out, self._held = self._held, b""
            self._begin()
        if not out:
            return
        if not self._finished:
            self._learn(out)
        self._send(out)
        if self._kept is not None:
            self._kept += b"%x\r\n%b\r\n" % (len(out), out)
            if len(self._kept) > self._room:
                self._grow()

    def _learn(self, events: bytes) -> None:
        """Remember how an ordinary event ends, so that reads ending like it need not be read."""
        start = events.rfind(_NULL_FINISH)
        if start >= 0 and len(events) - start < MAX_ORDINARY_BYTES and b'"content"' not in events[start:]:
            self._ordinary = events[start:] + b"\r\n"
        else:
            self._ordinary = _NEVER

    def _end(self) -> None:
        if not (self._finished or self._done) or not self.begun or self._replay is not None:
            self._fail(UpstreamLost("The replica ended its answer without finishing it."))
            return
        self._close()
        self.outcome.fire(Outcome(delivered=True, usage=self._usage))

    def _send(self, events: bytes) -> None:
        self._exchange.write(events)

    def _close(self) -> None:
        self._exchange.end(b"" if self._done else sse.DONE_EVENT)


class TextRelay(EventRelay):
    """OpenAI events to a client of the v1.0 wire, which gets their text. The journal keeps the events."""

    takes_comments = False

    __slots__ = ("_text",)

    def __init__(
        self,
        exchange: Exchange,
        headers: tuple[HeaderPair, ...],
        clock: Clock,
        *,
        journal: Journal | None = None,
        replay: Replay | None = None,
    ) -> None:
        super().__init__(exchange, headers, clock, include_usage=False, journal=journal, replay=replay)
        self._text = TextFromEvents()

    def _accepted(self, head: ResponseHead) -> None:
        """The client's content type is not the replica's; what is no stream of events shows in the text."""

    def on_frames(self, frames: bytes, ended: bool) -> None:
        self.on_data(unframe(frames), ended)

    def _send(self, events: bytes) -> None:
        text = self._text.feed(events)
        if text:
            self._exchange.write(text)

    def _close(self) -> None:
        self._exchange.end()


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
