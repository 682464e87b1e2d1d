"""A small OpenAI-compatible server, run as a process of its own: the far end that tests put behind `chatgpt`
and behind the kernel's `--upstream`.

    python tests/fakes/openai_server.py [--port 0] [--api_key KEY] [--model NAME] [--delay SECONDS]

prints its base URL as one line once it listens. It answers `/v1/…` under any prefix (chat/completions, completions,
embeddings, models), streamed or not, honours `max_tokens`, `stop`, `n` and `stream_options`, and by default
answers with the text of the last user message. A request scripts its own fate with a field `fake`, see `Script`.
`GET /recorded` lists every API request that came in: method, path, headers, body, how many events were sent, and
`outcome` (`running`, `done`, `client_gone`, `reset`).

Standard library only, and nothing of ours, so that it can be wrong only where OpenAI's own format is misread.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import itertools
import json
import re
import socket
import struct
import sys
from dataclasses import dataclass, field
from typing import Any

# Where providers have their API: /v1/, /api/v1/, /openai/v1/, /v1beta/openai/ …
_PATH = re.compile(r"/(?:[^/]+/)*(?:v1|openai)/(chat/completions|completions|embeddings|models)")
_PIECE = re.compile(r"\s*\S{1,4}|\s+")
_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests"}
_TYPES = {401: "invalid_request_error", 429: "requests", 500: "server_error", 503: "server_error"}


@dataclass(frozen=True)
class Script:
    """What the field `fake` of a request may ask for. Counts are of events that carry content; an answer in one piece
    breaks off in its middle, whatever they are."""

    text: str | None = None  # the answer, else the last user message
    pieces: list[str] | None = None  # the answer, cut as given
    times: int = 1  # how often the pieces come
    reasoning: str = ""  # sent first, as `reasoning_content`
    tool_calls: list[dict[str, str]] = field(default_factory=list)  # {"id", "name", "arguments"} instead of text
    extra: dict[str, Any] = field(default_factory=dict)  # vendor fields added to every chunk
    finish: str | None = None  # the finish_reason, else what happened
    usage: bool = True  # whether usage is sent at all
    first_delay_s: float = 0.0  # before the response head
    delay_s: float | None = None  # before each content event, else the server's --delay
    split_bytes: bool = False  # every event cut in two writes, in the middle of its bytes
    status: int = 200  # else an error of that status
    message: str = "The fake server was told to fail."
    code: str | None = None
    retry_after: str | None = None  # the Retry-After header of an error
    html: bool = False  # 200 with a web page
    reset_after: int | None = None  # the connection is reset after so many events
    eof_after: int | None = None  # the body ends cleanly, without a finish
    error_after: int | None = None  # an error event, then [DONE]
    done: bool = True  # whether [DONE] is sent
    whole: bool = False  # answered in one piece, whatever `stream` says
    silent_after: int | None = None  # nothing more is sent after so many events, and nothing closed
    window: int | None = None  # refuse prompts of more pieces than this, with OpenAI's words


@dataclass
class Record:
    method: str
    path: str
    headers: dict[str, str]
    body: Any
    events: int = 0
    outcome: str = "running"


class ClientGoneError(Exception):
    """The peer closed its side while the answer was still being made."""


class ApiError(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, retry_after: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.retry_after = status, message, code, retry_after

    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}


class Connection:
    """One client connection: requests one after another, each watched for the client's going away."""

    def __init__(self, server: FakeServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer
        self._ahead = b""
        self.query = ""

    async def run(self) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ClientGoneError):
            while await self._one():
                pass
        self._writer.close()

    async def _one(self) -> bool:
        head = self._ahead + await self._reader.readuntil(b"\r\n\r\n")
        self._ahead = b""
        first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        path, _, self.query = target.partition("?")
        if path == "/recorded":
            await self._json(200, [vars(record) for record in self._server.records])
            return True
        await self._api(method, path, headers, body)
        return headers.get("connection", "").lower() != "close"

    async def _api(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        record = Record(method, path, headers, None)
        self._server.records.append(record)
        answering = asyncio.ensure_future(self._answer(record, body))
        watching = asyncio.ensure_future(self._next_byte())
        await asyncio.wait((answering, watching), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done() and watching.result():
            self._ahead = watching.result()
            await asyncio.wait((answering,))
        if not answering.done():
            answering.cancel()
            record.outcome = "client_gone"
            raise ClientGoneError
        try:
            answering.result()
        except ConnectionError:
            record.outcome = "reset" if record.outcome == "reset" else "client_gone"
            raise
        finally:
            if not watching.done():
                watching.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await watching
            elif not self._ahead:
                self._ahead = watching.result()
        record.outcome = "done"

    async def _next_byte(self) -> bytes:
        """The first byte of a next request; empty once the client has gone, in whichever way."""
        try:
            return await self._reader.read(1)
        except ConnectionError:
            return b""

    async def _answer(self, record: Record, body: bytes) -> None:
        try:
            self._server.check_key(record.headers.get("authorization", ""))
            match record.method, _route(record.path):
                case "GET", "models":
                    await self._json(200, self._server.models())
                case "POST", "chat/completions" | "completions" | "embeddings" as route:
                    try:
                        record.body = json.loads(body)
                    except ValueError as error:
                        raise ApiError(400, f"We could not parse the JSON body: {error}") from error
                    await self._generate(route, record)
                case _:
                    raise ApiError(404, f"Invalid URL ({record.method} {record.path})")
        except ApiError as error:
            extra = {"retry-after": error.retry_after} if error.retry_after is not None else {}
            await self._json(error.status, error.body(), extra)

    async def _generate(self, route: str, record: Record) -> None:
        body = record.body
        script = Script(**body.get("fake", {}))
        await asyncio.sleep(script.first_delay_s)
        if script.status != 200:
            raise ApiError(script.status, script.message, script.code, script.retry_after)
        if script.html:
            await self._send(200, b"<!doctype html><title>Welcome</title>", "text/html; charset=utf-8")
            return
        if self._server.known_models and body.get("model") not in self._server.known_models:
            raise ApiError(404, f"The model `{body.get('model')}` does not exist.", "model_not_found")
        if route == "embeddings":
            await self._json(200, _embeddings(body))
            return
        answer = Answer(body, script, chat=route == "chat/completions", id=f"chatcmpl-{next(self._server.ids)}")
        if script.window is not None and answer.prompt_tokens > script.window:
            message = (
                f"This model's maximum context length is {script.window} tokens. However, your messages resulted in "
                f"{answer.prompt_tokens} tokens. Please reduce the length of the messages."
            )
            raise ApiError(400, message, "context_length_exceeded")
        if body.get("stream") and not script.whole:
            await self._stream(answer, script, record)
        else:
            await self._whole(answer, script, record)

    async def _whole(self, answer: Answer, script: Script, record: Record) -> None:
        """The answer in one piece; what is scripted to break off does so in the middle of it."""
        delay = self._server.delay if script.delay_s is None else script.delay_s
        await asyncio.sleep(delay * len(answer.pieces))
        if script.error_after is not None:
            await self._json(200, ApiError(500, script.message, script.code).body())
            return
        if (script.reset_after, script.eof_after, script.silent_after) == (None, None, None):
            await self._json(200, answer.whole())
            return
        body = json.dumps(answer.whole(), ensure_ascii=False).encode()
        self._head(200, {"content-type": "application/json", "content-length": str(len(body))})
        self._writer.write(body[: len(body) // 2])
        await self._writer.drain()
        if script.silent_after is not None:
            await asyncio.sleep(3600)
        if script.reset_after is not None:
            record.outcome = "reset"
            self.reset()
        self._writer.close()

    async def _stream(self, answer: Answer, script: Script, record: Record) -> None:
        self._head(200, {"content-type": "text/event-stream; charset=utf-8", "transfer-encoding": "chunked"})
        delay = self._server.delay if script.delay_s is None else script.delay_s
        for event in answer.opening():
            await self._event(event, script)
        for event in answer.content():
            if record.events == script.reset_after:
                record.outcome = "reset"
                self.reset()
            if record.events == script.eof_after:
                self._writer.write(b"0\r\n\r\n")
                return
            if record.events == script.silent_after:
                await asyncio.sleep(3600)
            if record.events == script.error_after:
                await self._event(ApiError(500, script.message, script.code).body(), script)
                break
            await asyncio.sleep(delay)
            await self._event(event, script)
            record.events += 1
        else:
            for event in answer.closing():
                await self._event(event, script)
        if script.done:
            await self._event(None, script)
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()

    async def _event(self, event: dict[str, Any] | None, script: Script) -> None:
        data = b"[DONE]" if event is None else json.dumps(event, ensure_ascii=False).encode()
        whole = b"data: " + data + b"\n\n"
        cut = len(whole) * 2 // 3 if script.split_bytes else len(whole)
        for part in (whole[:cut], whole[cut:]):
            if part:
                self._writer.write(b"%x\r\n%b\r\n" % (len(part), part))
                await self._writer.drain()
                await asyncio.sleep(0)

    def reset(self) -> None:
        """Close with RST instead of FIN, as a crashed process or a middlebox does."""
        peer: socket.socket = self._writer.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()
        raise ConnectionResetError("reset as scripted")

    async def _json(self, status: int, value: Any, extra: dict[str, str] | None = None) -> None:
        await self._send(status, json.dumps(value, ensure_ascii=False).encode(), "application/json", extra)

    async def _send(self, status: int, body: bytes, kind: str, extra: dict[str, str] | None = None) -> None:
        self._head(status, {"content-type": kind, "content-length": str(len(body)), **(extra or {})})
        self._writer.write(body)
        await self._writer.drain()

    def _head(self, status: int, headers: dict[str, str]) -> None:
        lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}", *(f"{k}: {v}" for k, v in headers.items())]
        self._writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n")


class Answer:
    """The answer to one request, as the events of a stream or as one object."""

    def __init__(self, body: dict[str, Any], script: Script, *, chat: bool, id: str) -> None:  # noqa: A002 - the format's own name
        self._body, self._script, self._chat = body, script, chat
        self._choices = range(body.get("n") or 1)
        text = script.text if script.text is not None else _last_text(body)
        pieces = script.pieces if script.pieces is not None else _PIECE.findall(text)
        pieces = pieces * script.times
        self.pieces, self._finish = _limit(pieces, body)
        if script.tool_calls:
            self.pieces, self._finish = [], "tool_calls"
        self._finish = script.finish or self._finish
        kind = "chat.completion" if chat else "text_completion"
        self._base = {
            "id": id,
            "object": kind,
            "created": 1_700_000_000,
            "model": body.get("model"),
            **script.extra,
        }
        self._usage: dict[str, int] = {
            "prompt_tokens": len(_PIECE.findall(json.dumps(body.get("messages", body.get("prompt")))[:10_000])),
            "completion_tokens": len(self.pieces) * len(self._choices),
        }
        self._usage["total_tokens"] = sum(self._usage.values())
        self.prompt_tokens = len(_PIECE.findall(json.dumps(body.get("messages", body.get("prompt")))))

    def opening(self) -> list[dict[str, Any]]:
        if not self._chat:
            return []
        return [self._chunk(choice, {"role": "assistant", "content": ""}) for choice in self._choices]

    def content(self) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = []
        deltas += [{"reasoning_content": piece} for piece in _PIECE.findall(self._script.reasoning)]
        for index, call in enumerate(self._script.tool_calls):
            function = {"name": call["name"], "arguments": ""}
            deltas.append(
                {"tool_calls": [{"index": index, "id": call["id"], "type": "function", "function": function}]}
            )
            deltas += [
                {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}
                for piece in _PIECE.findall(call["arguments"])
            ]
        deltas += [{"content": piece} for piece in self.pieces]
        return [self._chunk(choice, delta) for delta in deltas for choice in self._choices]

    def closing(self) -> list[dict[str, Any]]:
        events = [self._chunk(choice, {}, self._finish) for choice in self._choices]
        if self._script.usage and (self._body.get("stream_options") or {}).get("include_usage"):
            events.append({**self._base, "object": self._object, "choices": [], "usage": self._usage})
        return events

    def whole(self) -> dict[str, Any]:
        text = "".join(self.pieces)
        choices: list[dict[str, Any]] = []
        for index in self._choices:
            choice: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": self._finish}
            if self._chat:
                message: dict[str, Any] = {"role": "assistant", "content": text}
                if self._script.reasoning:
                    message["reasoning_content"] = self._script.reasoning
                if self._script.tool_calls:
                    message |= {"content": None, "tool_calls": [_call(call) for call in self._script.tool_calls]}
                choice["message"] = message
            else:
                choice["text"] = text
            choices.append(choice)
        return {**self._base, "choices": choices, **({"usage": self._usage} if self._script.usage else {})}

    @property
    def _object(self) -> str:
        return "chat.completion.chunk" if self._chat else "text_completion"

    def _chunk(self, choice: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        content = {"delta": delta} if self._chat else {"text": delta.get("content", "")}
        entry = {"index": choice, **content, "logprobs": None, "finish_reason": finish}
        return {**self._base, "object": self._object, "choices": [entry]}


class FakeServer:
    connection = Connection
    base_path = "/v1"

    def __init__(self, api_key: str, known_models: list[str], delay: float) -> None:
        self.known_models = known_models
        self.delay = delay
        self.records: list[Record] = []
        self.ids = itertools.count(1)
        self._api_key = api_key

    def check_key(self, authorization: str) -> None:
        key = authorization.removeprefix("Bearer ")
        if self._api_key and key != self._api_key:
            raise ApiError(401, f"Incorrect API key provided: {key}.", "invalid_api_key")

    def models(self) -> dict[str, Any]:
        names = self.known_models or ["fake-model"]
        data = [{"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "fake"} for name in names]
        return {"object": "list", "data": data}

    async def serve(self, port: int) -> None:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self.connection(self, reader, writer).run()

        server = await asyncio.start_server(connected, "127.0.0.1", port, limit=1 << 20)
        bound = server.sockets[0].getsockname()[1]
        sys.stdout.write(f"http://127.0.0.1:{bound}{self.base_path}\n")
        sys.stdout.flush()
        await server.serve_forever()


def _route(path: str) -> str:
    found = _PATH.fullmatch(path)
    return found[1] if found else ""


def _last_text(body: dict[str, Any]) -> str:
    if "messages" not in body:
        prompt = body.get("prompt", "")
        return prompt if isinstance(prompt, str) else str(prompt[0])
    users = [message for message in body["messages"] if message.get("role") == "user"]
    content = users[-1].get("content") if users else ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or [])


def _limit(pieces: list[str], body: dict[str, Any]) -> tuple[list[str], str]:
    """The pieces up to the first stop string and the token limit, and why the answer ended there."""
    stops = body.get("stop") or []
    text = "".join(pieces)
    ends = [text.find(stop) for stop in ([stops] if isinstance(stops, str) else stops) if stop in text]
    if ends:
        pieces = _PIECE.findall(text[: min(ends)])
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    if limit is not None and len(pieces) > limit:
        return pieces[:limit], "length"
    return pieces, "stop"


def _call(call: dict[str, str]) -> dict[str, Any]:
    function = {"name": call["name"], "arguments": call["arguments"]}
    return {"id": call["id"], "type": "function", "function": function}


def _digest(text: object) -> bytes:
    return hashlib.sha256(str(text).encode()).digest()


def _embeddings(body: dict[str, Any]) -> dict[str, Any]:
    given = body.get("input", "")
    texts = [given] if isinstance(given, str) else given
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": [b / 255 for b in hashlib.sha256(str(t).encode()).digest()],
        }
        for index, t in enumerate(texts)
    ]
    tokens = sum(len(_PIECE.findall(str(text))) for text in texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": body.get("model"), "usage": usage}


def main() -> None:
    parser = argparse.ArgumentParser(description="A small OpenAI-compatible server for tests.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--api_key", default="", help="the only key that is accepted; any by default")
    parser.add_argument("--model", action="append", default=[], help="a model that exists; any by default")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each content event")
    args = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(FakeServer(args.api_key, args.model, args.delay).serve(args.port))


if __name__ == "__main__":
    main()
