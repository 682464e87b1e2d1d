"""One attempt: the response of one replica, read as it comes and written to the client.

`chat` makes a relay for each attempt and waits until it is `over`. Nothing is written before the first content, so
that an attempt which fails before it can be made again elsewhere.

- `EventRelay`: a stream. Its replica's wire has made the bytes OpenAI events, where they were not (`reader`), and
  the client's dialect makes them the client's, where they are not (`renderer`). Without either, which is the hot
  path, whole events pass unread. The first events are held until one has content; reads whose end is not that of an
  ordinary event are read event by event, which is where the usage event is withheld from clients that did not ask,
  and where the end of the answer is noted. The events are kept in a journal if the replica announced how to resume
  the stream; a relay that resumes one is given the `Replay` that says what of it is new.
- `WholeRelay`: an answer in one piece, sent when it is complete.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from kuwa.http.exchange import JSON_LINE, Exchange, header_lines
from kuwa.http.framing import ResponseHead, unframe
from kuwa.http.upstream_connection import UpstreamConnection
from kuwa.kernel.refusals import PassedOn
from kuwa.kernel.renderer import Renderer
from kuwa.kernel.resume import Journal, Replay
from kuwa.wire import sse
from kuwa.wire.errors import BadUpstream, KuwaError, UpstreamLost
from kuwa.wire.json import FAULTS, BadJson
from kuwa.wire.openai import Usage, decode_outline, decode_whole, decode_whole_unguarded
from kuwa.wire.resume import announcement_in

MAX_ERROR_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_HELD_BYTES = 16 * 1024
MAX_ORDINARY_BYTES = 200

PASSED_HEADERS = frozenset({b"cache-control", b"x-kuwa-trimmed-messages", b"openai-processing-ms"})

EVENTS_LINE = b"content-type: text/event-stream\r\n"
_NULL_FINISH = b'"finish_reason":null'
_NEVER = b"\0"


class Refusal(msgspec.Struct, gc=False):
    """An answer other than 200. `retry_after` is the header's value, empty where there was none."""

    status: int
    body: bytearray
    retry_after: bytes = b""


class Clock(Protocol):
    """A monotonic time in seconds, refreshed a few times a second (`now`) and read exactly (`time`)."""

    now: float

    def time(self) -> float: ...


class Reader(Protocol):
    """Makes the body of one answer OpenAI events, however it is split. Implemented in `kernel/wires`."""

    def feed(self, data: bytes) -> bytes:
        """Raises KuwaError for what cannot be read."""
        ...

    def end(self) -> bytes:
        """The closing events, after the whole body."""
        ...

    def whole(self, body: bytes) -> bytes:
        """A whole body as a whole OpenAI answer; in place of `feed` and `end`."""
        ...


def _nobody() -> None:
    """Nobody waits for the end."""


class _Passed(msgspec.Struct, frozen=True):
    """The lines of a replica's head that pass on: without its Content-Type, and with it."""

    lines: bytes
    with_type: bytes

    @classmethod
    def of(cls, head: ResponseHead) -> _Passed:
        lines = header_lines(field for field in head.headers if field[0] in PASSED_HEADERS)
        return cls(lines, header_lines(field for field in head.headers if field[0] == b"content-type") + lines)


class Relay(msgspec.Struct, eq=False):
    """What all attempts share: refusals collected, losses told, the first content stamped.

    `over`: it has ended, complete or with `error` or `refusal`; then `on_over` is called. `begun`: the client has
    been sent content of it.
    """

    exchange: Exchange
    headers: bytes
    clock: Clock
    reader: Reader | None = None
    renderer: Renderer | None = None
    on_over: Callable[[], None] = _nobody
    connection: UpstreamConnection | None = None
    over: bool = False
    begun: bool = False
    first_content_at: float = 0.0
    error: KuwaError | None = None
    refusal: Refusal | None = None
    usage: Usage | None = None

    # ---- ResponseHandler -----------------------------------------------------------------------------------

    def on_head(self, head: ResponseHead) -> None:
        exchange = self.exchange
        exchange.source = self
        if exchange.connection.congested:
            self.pause()
        if head.status != 200:
            self.refusal = Refusal(head.status, bytearray(), head.get(b"retry-after") or b"")
        else:
            self._accepted(head)

    def on_whole(self, head: ResponseHead, body: bytes) -> None:
        self.on_head(head)
        self.on_data(body, ended=True)

    def on_frames(self, frames: bytes, ended: bool) -> None:
        self.on_data(unframe(frames), ended)

    def on_data(self, data: bytes, ended: bool) -> None:
        if self.over:
            return
        refusal = self.refusal
        if refusal is None:
            self._body(data, ended)
            return
        refusal.body += data[: MAX_ERROR_BYTES - len(refusal.body)]
        if ended:
            self._end()

    def on_lost(self, error: KuwaError) -> None:
        """The attempt has failed. A second call does nothing."""
        if self.over:
            return
        self.error = error
        if self.connection is not None:
            self.connection.cancel(self)
        self._end()

    # ---- Source of the exchange ----------------------------------------------------------------------------

    def pause(self) -> None:
        if self.connection is not None:
            self.connection.pause(self)

    def resume(self) -> None:
        if self.connection is not None:
            self.connection.resume(self)

    # ---- what the attempts differ in -----------------------------------------------------------------------

    def _accepted(self, head: ResponseHead) -> None:
        """The answer begins. What of its head passes on to the client is read once for all answers with that head."""
        passed = head.derived
        if passed is None:
            passed = head.derived = _Passed.of(head)
        if self.reader is None and self.renderer is None:
            self.headers += passed.with_type
        else:
            self.headers += passed.lines

    def _body(self, data: bytes, ended: bool) -> None:
        raise NotImplementedError

    # ---- what they share -----------------------------------------------------------------------------------

    def _begin(self) -> None:
        """The first content is here: from now on this attempt is the client's answer."""
        self.begun = True
        self.first_content_at = self.clock.time()
        exchange = self.exchange
        exchange.errors = self.renderer or exchange.errors
        if not exchange.started:  # a client that asked to be told of its waiting has had the head already
            exchange.start(200, self.headers)

    def _end(self) -> None:
        self.over = True
        self.exchange.source = None
        self.on_over()

    def cancel(self) -> None:
        """Nobody waits for it any more: cut the connection that still carries it."""
        self.over = True
        self.exchange.source = None
        if self.connection is not None:
            self.connection.cancel(self)


class EventRelay(Relay, kw_only=True):
    """OpenAI events, passed through."""

    include_usage: bool = False
    journal: Journal | None = None
    replay: Replay | None = None
    carry: bytes = b""
    held: bytes = b""
    ordinary: bytes = _NEVER
    ordinary_frame: bytes = _NEVER
    finished: bool = False
    done: bool = False
    kept: bytearray | None = None
    room: int = 0

    def __post_init__(self) -> None:
        if self.replay is not None and self.journal is not None:
            self.begun = True
            self.kept = self.journal.frames
            self.room = self.journal.room

    def _accepted(self, head: ResponseHead) -> None:
        super()._accepted(head)
        if self.renderer is not None:
            self.headers += b"content-type: %b\r\n" % self.renderer.content_type
        elif self.reader is not None:
            self.headers += EVENTS_LINE
        if self.reader is not None:
            return
        content_type = head.get(b"content-type") or b""
        if not content_type and self.renderer is None:
            self.headers += EVENTS_LINE
        elif not sse.is_event_stream(content_type):
            self.on_lost(BadUpstream(f"The replica answered a stream with {content_type[:100]!r} in place of events."))

    def on_frames(self, frames: bytes, ended: bool) -> None:
        # Nothing held, nothing cut, nothing but ordinary events: the replica's own framing passes on.
        if self.begun and frames.endswith(self.ordinary_frame) and not self.carry and self.exchange.chunked:
            self.exchange.write_framed(frames)
            kept = self.kept
            if kept is not None:
                kept += frames
                if len(kept) > self.room:
                    self._grow()
        else:
            self.on_data(unframe(frames), ended)

    def on_lost(self, error: KuwaError) -> None:
        """What befalls the connection after [DONE] is nothing to the client."""
        if self.done and self.begun and not self.over and self.replay is None:
            if self.connection is not None:
                self.connection.cancel(self)
            self._complete()
        else:
            super().on_lost(error)

    def _grow(self) -> None:
        """The journal wants more room; without it, nothing is kept any more."""
        journal = self.journal
        if journal is None or not journal.grow():
            self.kept = None
        else:
            self.room = journal.room

    def _body(self, data: bytes, ended: bool) -> None:
        if self.reader is not None:
            data = self.reader.feed(data) + (self.reader.end() if ended else b"")
        if self.carry:
            data = self.carry + data
        cut = len(data) if ended else sse.whole_events(data)
        self.carry = data[cut:]
        if len(self.carry) > sse.MAX_EVENT_BYTES:
            self.on_lost(BadUpstream(f"The replica sent an event of more than {sse.MAX_EVENT_BYTES} bytes."))
            return
        events = data[:cut]
        if events:
            try:
                rest = self._pass(events) if not self.begun else events
                if rest:
                    self._pass(self._unread(rest))
            except KuwaError as error:
                self.on_lost(error)
                return
        if ended:
            self._complete()

    def _unread(self, events: bytes) -> bytes:
        """Pass on what ends like an ordinary event, unread; gives what follows."""
        end = events.rfind(self.ordinary) + len(self.ordinary)
        if self.replay is not None or self.ordinary is _NEVER or end < len(self.ordinary):
            return events
        self._write(events[:end], content=True)
        return events[end:]

    def _pass(self, events: bytes) -> bytes:
        """Pass whole events on, held back, thinned out or as they are: all of them, or up to the first content; gives
        what follows that. Raises what makes the attempt fail."""
        opening, content = not self.begun, False
        kept: list[bytes] = []
        blocks = sse.blocks_of(events.removeprefix(sse.BOM))
        for number, block in enumerate(blocks, 1):
            new = self._expected(block)
            if not new:
                continue
            data = sse.data_of(new)
            if data == sse.DONE:
                self.done = True
                continue  # sent with the end of the body: a client that leaves at it has had all
            if data:
                try:
                    event = decode_outline(data)
                except BadJson as error:
                    if not sse.whole_events(new):
                        continue  # the body has ended in the middle of it
                    self._write(b"".join(kept), content)
                    shown = data[:100].decode("utf-8", "replace")
                    raise BadUpstream(f"The replica sent an event that cannot be read: {shown!r} ({error}).") from error
                if event.error is not None:
                    self._write(b"".join(kept), content)
                    raise PassedOn.of(502, data) or BadUpstream(f"The replica failed: {data[:500]!r}")
                content = content or event.has_content
                self.finished = self.finished or event.finishes
                if event.usage is not None:
                    self.usage = event.usage
                    if event.only_counts and not self.include_usage:
                        continue
            elif not self.begun:
                continue  # a comment: a sign of life, which has been noticed
            kept.append(new)
            if opening and content:
                self._write(b"".join(kept), content)
                return b"".join(blocks[number:])
        self._write(b"".join(kept), content)
        return b""

    def _expected(self, block: bytes) -> bytes:
        """What of an event is for the client: not the announcement, nor what it has had before the replica was lost."""
        if self.replay is not None:
            new = self.replay.take(block)
            if self.replay.done:
                self.replay = None
                self.first_content_at = self.clock.time()
            return new
        if not self.begun and self.journal is not None:
            announced = announcement_in(block)
            if announced is not None:
                self.kept = self.journal.begin(announced)
                return b""
        return block

    def _write(self, out: bytes, content: bool) -> None:
        if not self.begun:
            self.held += out
            if not content and not self.finished and len(self.held) < MAX_HELD_BYTES:
                return
            out, self.held = self.held, b""
            self._begin()
        if not out:
            return
        if not self.finished:
            self._learn(out)
        self._send(out)
        if self.kept is not None:
            self.kept += b"%x\r\n%b\r\n" % (len(out), out)
            if len(self.kept) > self.room:
                self._grow()

    def _learn(self, events: bytes) -> None:
        """Remember how an ordinary event ends, so that reads ending like it need not be read."""
        if self.renderer is not None:
            return
        start = events.rfind(_NULL_FINISH)
        if start >= 0 and len(events) - start < MAX_ORDINARY_BYTES and b'"content"' not in events[start:]:
            self.ordinary = events[start:]
            self.ordinary_frame = self.ordinary + b"\r\n"
        else:
            self.ordinary = self.ordinary_frame = _NEVER

    def _complete(self) -> None:
        if not (self.finished or self.done) or not self.begun or self.replay is not None:
            self.on_lost(UpstreamLost("The replica ended its answer without finishing it."))
            return
        self._close()
        self._end()

    def _send(self, events: bytes) -> None:
        self.exchange.write(events if self.renderer is None else self.renderer.events(events))

    def _close(self) -> None:
        self.exchange.end(sse.DONE_EVENT if self.renderer is None else self.renderer.finish(self.usage))


class WholeRelay(Relay):
    """An answer in one piece: a completion, embeddings, a ranking. Sent when it is complete and is JSON."""

    collected: bytearray | None = None

    def on_whole(self, head: ResponseHead, body: bytes) -> None:
        if head.status == 200 and not self.over:
            self._accepted(head)
            self._answer(body)
        else:
            super().on_whole(head, body)

    def _body(self, data: bytes, ended: bool) -> None:
        if ended and self.collected is None:
            self._answer(data)
            return
        if self.collected is None:
            self.collected = bytearray()
        self.collected += data
        if len(self.collected) > MAX_ANSWER_BYTES:
            self.on_lost(BadUpstream(f"The replica's answer is larger than {MAX_ANSWER_BYTES} bytes."))
        elif ended:
            self._answer(bytes(self.collected))

    def _answer(self, body: bytes) -> None:
        if self.reader is not None:
            body = self.reader.whole(body)
        try:
            answer = decode_whole_unguarded(body)
        except FAULTS:
            try:
                answer = decode_whole(body)
            except BadJson:
                shown = body[:100].decode("utf-8", "replace")
                self.on_lost(BadUpstream(f"The replica answered with something that is no JSON object: {shown!r}."))
                return
        if answer.fault is not None and answer.error:
            self.on_lost(PassedOn.of(502, body) or BadUpstream(f"The replica failed: {body[:500]!r}"))
            return
        self.usage = answer.usage
        headers = self.headers
        if self.renderer is not None:
            try:
                content_type, body = self.renderer.whole(body)
            except KuwaError as error:
                self.on_lost(error)
                return
            headers += b"content-type: %b\r\n" % content_type
        elif self.reader is not None:
            headers += JSON_LINE
        self.begun = True
        self.first_content_at = self.clock.time()
        self.exchange.respond(200, body, headers)
        self._end()
