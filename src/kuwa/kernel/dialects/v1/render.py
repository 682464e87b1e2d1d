"""Answers of the v1.0 wire: raw text, and the error texts that old front ends know. Pure."""

from __future__ import annotations

from kuwa.wire import form as form_wire
from kuwa.wire import sse
from kuwa.wire.errors import BadUpstream, ContextLengthExceeded, KuwaError, RequestCancelled
from kuwa.wire.json import BadJson
from kuwa.wire.openai import Usage, decode_chunk

TEXT = b"text/plain; charset=utf-8"


class V1Errors:
    """The status with the error's text; in a stream that has begun, the text that old front ends know."""

    def refusal(self, error: KuwaError) -> tuple[int, bytes, bytes]:
        if isinstance(error, RequestCancelled):
            return 200, TEXT, b""
        text = form_wire.TOO_LONG_TEXT if isinstance(error, ContextLengthExceeded) else error.message
        return error.status, TEXT, text.encode("utf-8", "replace")

    def closing(self, error: KuwaError) -> bytes:
        return b"" if isinstance(error, RequestCancelled) else form_wire.ERROR_TEXT.encode()


class TextRenderer(V1Errors):
    """OpenAI chat events as raw text."""

    content_type = TEXT

    def __init__(self) -> None:
        self._reader = sse.SseReader()

    def events(self, events: bytes) -> bytes:
        try:
            datas = [event.data for event in self._reader.feed(events)]
            texts = [decode_chunk(data).text for data in datas if data.strip() != sse.DONE]
        except (BadJson, sse.EventTooLong) as error:
            raise BadUpstream(f"The executor's stream cannot be read: {error}.") from error
        return "".join(texts).encode()

    def finish(self, usage: Usage | None) -> bytes:
        del usage
        return b""

    def whole(self, answer: bytes) -> tuple[bytes, bytes]:
        return TEXT, answer

    def keepalive(self, text: str) -> bytes:
        """Raw text has no room for anything but the answer."""
        del text
        return b""
