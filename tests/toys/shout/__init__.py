"""A dialect that exists nowhere else: server-sent events of its own."""

from __future__ import annotations

import json
from typing import Any

from kuwa.http.exchange import Exchange
from kuwa.kernel.call import Call
from kuwa.kernel.dialects.dialect import BaseDialect, call_for
from kuwa.kernel.identity import Caller
from kuwa.wire.errors import InvalidRequest, KuwaError
from kuwa.wire.sse import DONE, SseReader


class Errors:
    def refusal(self, error: KuwaError) -> tuple[int, bytes, bytes]:
        return error.status, b"application/vnd.oops", json.dumps({"oops": error.message, "code": error.code}).encode()

    def closing(self, error: KuwaError) -> bytes:
        return b"event: oops\ndata: %b\n\n" % json.dumps({"oops": error.message, "code": error.code}).encode()


class Shouting(Errors):
    content_type = b"text/event-stream"

    def __init__(self) -> None:
        self.reader = SseReader()

    def events(self, events: bytes) -> bytes:
        chunks = [json.loads(event.data) for event in self.reader.feed(events) if event.data != DONE]
        texts = [choice["delta"].get("content") for chunk in chunks for choice in chunk["choices"]]
        return b"".join(b"event: shout\ndata: %b\n\n" % json.dumps(text.upper()).encode() for text in texts if text)

    def finish(self, usage: Any) -> bytes:
        return b"event: end\ndata: %d\n\n" % (usage.completion_tokens if usage else 0)

    def whole(self, answer: bytes) -> tuple[bytes, bytes]:
        return b"text/shout", json.loads(answer)["choices"][0]["message"]["content"].upper().encode()

    def keepalive(self, text: str) -> bytes:
        return b"event: wait\ndata: %b\n\n" % text.encode()


class Shout(BaseDialect, Errors):
    def read(self, exchange: Exchange, caller: Caller, request_id: str, route: str) -> Call:
        try:
            asked = json.loads(exchange.body)
            messages = [{"role": "user", "content": asked["shout"]}]
            body = {"model": asked["at"], "messages": messages, "stream": not asked.get("once")}
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidRequest("A shout needs 'at' and 'shout'.") from error
        return call_for(exchange, caller, request_id, route, body, Shouting())
