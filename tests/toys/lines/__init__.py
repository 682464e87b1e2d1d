"""A dialect that exists nowhere else: lines of JSON, which know no comments; a keep-alive is a line."""

from __future__ import annotations

import json
from typing import Any

from kuwa.http.exchange import Exchange
from kuwa.kernel.call import Call
from kuwa.kernel.dialects.dialect import BaseDialect, call_for
from kuwa.kernel.identity import Caller
from kuwa.wire.errors import InvalidRequest, KuwaError, QueueFull
from kuwa.wire.sse import DONE, SseReader


def line(**fields: Any) -> bytes:
    return json.dumps(fields).encode() + b"\n"


class Errors:
    def refusal(self, error: KuwaError) -> tuple[int, bytes, bytes]:
        return 503 if isinstance(error, QueueFull) else error.status, b"text/json-line", line(error=error.code)

    def closing(self, error: KuwaError) -> bytes:
        return line(error=error.code)


class Lines(Errors):
    content_type = b"application/x-ndjson"

    def __init__(self) -> None:
        self.reader = SseReader()

    def events(self, events: bytes) -> bytes:
        chunks = [json.loads(event.data) for event in self.reader.feed(events) if event.data != DONE]
        texts = [choice["delta"].get("content") for chunk in chunks for choice in chunk["choices"]]
        return b"".join(line(piece=text) for text in texts if text)

    def finish(self, usage: Any) -> bytes:
        return line(done=True, tokens=usage.completion_tokens if usage else None)

    def whole(self, answer: bytes) -> tuple[bytes, bytes]:
        return b"text/json-line", line(whole=json.loads(answer)["choices"][0]["message"]["content"])

    def keepalive(self, text: str) -> bytes:
        return line(waiting=text)


class LinesDialect(BaseDialect, Errors):
    def read(self, exchange: Exchange, caller: Caller, request_id: str, route: str) -> Call:
        try:
            asked = json.loads(exchange.body)
            messages = [{"role": "user", "content": asked["prompt"]}]
            body = {"model": asked["name"], "messages": messages, "stream": asked.get("stream", True)}
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidRequest("A request needs 'name' and 'prompt'.") from error
        return call_for(exchange, caller, request_id, route, body, Lines())
