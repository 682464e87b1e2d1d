"""The one reader of a streamed answer: a response whose body is server-sent events that end with `[DONE]`.

`EventStream` is pure, for those to whom the body is pushed; `read_events` reads a `StreamedResponse` with it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from kuwa.http.client import StreamedResponse
from kuwa.wire import sse
from kuwa.wire.errors import BadUpstream, KuwaError, UpstreamLost


class NoEnd(UpstreamLost):
    """The body is complete, but its last event was not `[DONE]`. Some servers end their answers so."""


class EventStream:
    """Reads the body of a streamed answer, however it is cut. `who` sends it, in the words of an error.

    `done`: `[DONE]` has come; what follows it is not read. `broken`: why nothing more can be read.
    """

    def __init__(self, who: str) -> None:
        self._who = who
        self._reader = sse.SseReader()
        self.done = False
        self.broken: KuwaError | None = None

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that `piece` completes, up to `[DONE]`. What came before an error is still given."""
        datas = self._datas(piece)
        for index, data in enumerate(datas):
            if data.startswith(sse.DONE) and data.strip() == sse.DONE:
                self.done = True
                return datas[:index]
        return datas

    def _datas(self, piece: bytes) -> list[bytes]:
        if not self._reader.unfinished and (plain := sse.plain_events(piece)) is not None:
            return plain
        datas: list[bytes] = []
        try:
            datas += (event.data for event in self._reader.feed(piece))
        except sse.EventTooLong as error:
            self.broken = BadUpstream(f"{self._who} sent an answer that cannot be read: {error}.")
        return datas

    def end(self) -> None:
        """The body has ended. Raises `broken`, or NoEnd where `[DONE]` is missing."""
        if self.broken is not None:
            raise self.broken
        if not self.done:
            raise NoEnd(f"{self._who} ended its answer before it was complete.")


async def read_events(response: StreamedResponse, who: str) -> AsyncGenerator[list[bytes]]:
    """The data of the events of a response, read by read, without `[DONE]`.

    Raises BadUpstream where the body is not events or one of them is too long, and NoEnd; and what the connection
    raises where it breaks.
    """
    content_type = response.header(b"content-type")
    if not sse.is_event_stream(content_type):
        shown = content_type[:100].decode("latin-1")
        raise BadUpstream(f"{who} answered with {shown!r} instead of an event stream.")
    stream = EventStream(who)
    async for piece in response:
        datas = stream.feed(piece)
        if datas:
            yield datas
        if stream.done or stream.broken is not None:
            break
    stream.end()
