"""Clients for tests, one for each thing a client can do: ask and wait, stream and stop half way, send raw bytes.

They block and own their socket, so that a test can close it at an exact moment; tests run several in threads.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from kuwa.wire.sse import DONE, SseReader

TIMEOUT_S = 30.0  # without a byte
WHOLE_TIMEOUT_S = 110.0  # for all of an answer, however often a byte comes: a stream is kept alive by comments


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The OpenAI error object of a refused request."""
        error = self.json()["error"]
        assert set(error) >= {"message", "type", "param", "code"}, error
        assert error["message"], error
        return error

    @property
    def code(self) -> str:
        return self.error["code"]


def connect(url: str, *, timeout_s: float = TIMEOUT_S, ca: ssl.SSLContext | None = None) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    assert parts.hostname
    if parts.scheme == "https":
        return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=timeout_s, context=ca)
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)


def fetch(
    url: str,
    method: str = "GET",
    body: bytes | str | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    timeout_s: float = TIMEOUT_S,
    ca: ssl.SSLContext | None = None,
) -> Answer:
    """One request on a connection of its own, and the whole answer."""
    parts = urlsplit(url)
    connection = connect(url, timeout_s=timeout_s, ca=ca)
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


def post_json(url: str, message: Any, headers: Mapping[str, str] | None = None, **options: Any) -> Answer:
    body = json.dumps(message, ensure_ascii=False).encode()
    return fetch(url, "POST", body, {"content-type": "application/json", **(headers or {})}, **options)


def post_form(url: str, fields: Mapping[str, str], headers: Mapping[str, str] | None = None, **options: Any) -> Answer:
    kind = {"content-type": "application/x-www-form-urlencoded"}
    return fetch(url, "POST", urlencode(fields), {**kind, **(headers or {})}, **options)


def chat_body(model: str, text: str, **parameters: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **parameters}


def chat(url: str, model: str, text: str, headers: Mapping[str, str] | None = None, **parameters: Any) -> Answer:
    """A chat that is not streamed. `url` is the server's, without a path."""
    return post_json(url + "/v1/chat/completions", chat_body(model, text, **parameters), headers)


def chat_text(url: str, model: str, text: str, **parameters: Any) -> str:
    """The text that was answered."""
    answer = chat(url, model, text, **parameters)
    assert answer.status == 200, answer
    return answer.json()["choices"][0]["message"]["content"]


class Stream:
    """A request whose answer is read piece by piece. A context manager; leaving it closes the socket at once."""

    def __init__(
        self,
        url: str,
        path: str,
        body: bytes | str,
        headers: Mapping[str, str],
        *,
        timeout_s: float = TIMEOUT_S,
        ca: ssl.SSLContext | None = None,
    ) -> None:
        self._connection = connect(url, timeout_s=timeout_s, ca=ca)
        self._deadline = time.monotonic() + WHOLE_TIMEOUT_S
        self._connection.request("POST", path, body, dict(headers))
        self._response: http.client.HTTPResponse | None = None
        self._reader = SseReader()
        self._waiting: list[bytes] = []
        self.closed_at = 0.0

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def response(self) -> http.client.HTTPResponse:
        """The answer's head; waits for it."""
        if self._response is None:
            self._response = self._connection.getresponse()
        return self._response

    @property
    def status(self) -> int:
        return self.response.status

    def header(self, name: str) -> str | None:
        return self.response.getheader(name)

    def pieces(self) -> Iterator[bytes]:
        """The body as it comes, in the pieces that it is read in."""
        while piece := self._piece():
            yield piece

    def read(self) -> bytes:
        return b"".join(self.pieces())

    def _piece(self) -> bytes:
        if time.monotonic() > self._deadline:
            raise TimeoutError(f"the answer did not end within {WHOLE_TIMEOUT_S:g} s")
        return self.response.read1(65536)

    def datas(self) -> Iterator[bytes]:
        """The data of each event, `[DONE]` included. May be left and taken up again."""
        while True:
            while self._waiting:
                yield self._waiting.pop(0)
            piece = self._piece()
            if not piece:
                return
            self._waiting += [event.data for event in self._reader.feed(piece)]

    def events(self) -> Iterator[dict[str, Any]]:
        """Each event decoded; ends after `[DONE]`, and fails where the body ends without one."""
        for data in self.datas():
            if data == DONE:
                return
            yield json.loads(data)
        raise AssertionError("the stream ended without [DONE]")

    def deltas(self) -> Iterator[str]:
        """The pieces of text of the first choice. An error event fails."""
        for event in self.events():
            assert "error" not in event, event
            for choice in event["choices"]:
                if text := choice.get("delta", {}).get("content"):
                    yield text

    def first_text(self) -> str:
        """Wait for the first piece of text and return it."""
        return next(self.deltas())

    def text(self) -> str:
        """All the text from here to the end."""
        return "".join(self.deltas())

    def close(self) -> None:
        """Close the connection now, whatever is still to come."""
        if self.closed_at:
            return
        if self._connection.sock is not None:
            self._connection.sock.close()
        self.closed_at = time.monotonic()
        if self._response is not None:
            self._response.close()
        self._connection.close()


def stream_chat(
    url: str,
    model: str,
    text: str,
    headers: Mapping[str, str] | None = None,
    *,
    ca: ssl.SSLContext | None = None,
    **parameters: Any,
) -> Stream:
    body = json.dumps(chat_body(model, text, stream=True, **parameters), ensure_ascii=False).encode()
    return Stream(url, "/v1/chat/completions", body, {"content-type": "application/json", **(headers or {})}, ca=ca)


def open_chat(url: str, model: str, text: str, **parameters: Any) -> Stream:
    """A chat that is not streamed, sent but not waited for: what a client holds that may still give up."""
    body = json.dumps(chat_body(model, text, **parameters), ensure_ascii=False).encode()
    return Stream(url, "/v1/chat/completions", body, {"content-type": "application/json"})


def old_form(name: str, text: str, *, history_id: str = "-1", user_id: str = "7", **fields: str) -> dict[str, str]:
    """The form of a v1.0 chat: one turn of the user's."""
    turns = json.dumps([{"msg": text, "isbot": False}], ensure_ascii=False)
    return {"name": name, "input": turns, "history_id": history_id, "user_id": user_id, **fields}


def old_chat(url: str, name: str, text: str, **fields: str) -> Stream:
    """A chat by the v1.0 wire, one-phase; its body is raw text."""
    headers = {"content-type": "application/x-www-form-urlencoded"}
    return Stream(url, "/v1.0/chat/completions", urlencode(old_form(name, text, **fields)), headers)


def old_abort(url: str, *history_ids: int, user_id: str = "7") -> Answer:
    return post_form(url + "/v1.0/chat/abort", {"history_id": json.dumps(history_ids), "user_id": user_id})


def send_raw(port: int, data: bytes, *, timeout_s: float = 5.0) -> bytes:
    """Send bytes as they are; return everything until the server closes or is silent for `timeout_s`."""
    with socket.create_connection(("127.0.0.1", port), timeout_s) as raw:
        raw.settimeout(timeout_s)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            raw.sendall(data)
        answer = b""
        deadline = time.monotonic() + WHOLE_TIMEOUT_S
        try:
            while piece := raw.recv(65536):
                answer += piece
                assert time.monotonic() < deadline, f"the answer did not end within {WHOLE_TIMEOUT_S:g} s"
        except (TimeoutError, ConnectionResetError):
            pass
        return answer
