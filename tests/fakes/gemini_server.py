"""A small server that speaks Gemini's REST wire, run as a process of its own: the far end of `geminipro` in tests.

    python tests/fakes/gemini_server.py [--port 0] [--api_key KEY] [--model NAME] [--delay SECONDS]

prints its base URL as one line once it listens. It answers `/v1/models/NAME:METHOD` (and `/v1beta/…`) for the methods
generateContent (one JSON answer), streamGenerateContent (server-sent events with `?alt=sse`, else a JSON array that
grows), countTokens, embedContent and batchEmbedContents, written from the API's public reference. Unknown fields are
refused, as Google does. By default it answers with the text of the last user turn; a last turn that is a JSON object
`{"fake": {…}}` scripts its own fate, see `Script`. `GET /recorded` is as in `openai_server.py`, from which the
handling of connections comes.

Standard library only, and nothing of ours.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from openai_server import Connection, FakeServer, Record

_PIECE = re.compile(r"\s*\S{1,4}|\s+")
_PATH = re.compile(r"/v1(?:beta)?/models/([^:/]+):([A-Za-z]+)")
_STATUSES = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND"}
_STATUSES |= {429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}
_FIELDS = {
    "contents",
    "systemInstruction",
    "tools",
    "toolConfig",
    "safetySettings",
    "generationConfig",
    "cachedContent",
}
_CONFIG = {
    *("temperature", "topP", "topK", "maxOutputTokens", "candidateCount", "stopSequences", "seed", "presencePenalty"),
    *("frequencyPenalty", "responseLogprobs", "logprobs", "responseMimeType", "responseJsonSchema", "thinkingConfig"),
}
_USERS_DATA = {"args", "response", "parametersJsonSchema", "responseJsonSchema"}
_DATA = {"text", "inlineData", "fileData", "functionCall", "functionResponse"}


@dataclass(frozen=True)
class Script:
    """What a last turn `{"fake": {…}}` may ask for. Counts are of events with content."""

    text: str | None = None  # the answer, else the last user turn
    pieces: list[str] | None = None  # the answer, cut as given
    thoughts: str = ""  # sent first, as parts marked `thought`
    calls: list[dict[str, Any]] = field(default_factory=list)  # {"name", "args"} instead of text
    signature: str = ""  # the thoughtSignature of the first call, base64
    image: str = ""  # base64 of a PNG, sent as inline data
    logprobs: bool = False
    finish: str | None = None  # the finishReason
    block: str = ""  # the blockReason of a prompt that is refused
    first_delay_s: float = 0.0
    delay_s: float | None = None
    split_bytes: bool = False
    status: int = 200  # else an error of that status
    message: str = "The fake server was told to fail."
    reason: str = ""  # of an ErrorInfo among the error's details
    retry_delay: str = ""  # of a RetryInfo, such as "7s"
    html: bool = False
    reset_after: int | None = None
    eof_after: int | None = None
    error_after: int | None = None


class GoogleError(Exception):
    def __init__(self, code: int, message: str, reason: str = "", retry_delay: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.reason, self.retry_delay = code, message, reason, retry_delay

    def body(self) -> dict[str, Any]:
        kind = "type.googleapis.com/google.rpc."
        details: list[dict[str, Any]] = []
        if self.reason:
            details.append({"@type": kind + "ErrorInfo", "reason": self.reason, "domain": "googleapis.com"})
        if self.retry_delay:
            details.append({"@type": kind + "RetryInfo", "retryDelay": self.retry_delay})
        error = {"code": self.code, "message": self.message, "status": _STATUSES.get(self.code, "UNKNOWN")}
        return {"error": {**error, "details": details}}


class GeminiConnection(Connection):
    """One client connection that speaks Gemini's wire."""

    async def _answer(self, record: Record, body: bytes) -> None:
        try:
            self._server.check_key(record.headers.get("x-goog-api-key", ""))
            found = _PATH.fullmatch(record.path)
            if record.method != "POST" or found is None:
                raise GoogleError(404, f"There is no {record.method} {record.path}.")
            model, method = found.groups()
            known = self._server.known_models
            if known and model not in known:
                raise GoogleError(404, f"models/{model} is not found for API version v1beta.")
            try:
                record.body = camel(json.loads(body))
            except ValueError as error:
                raise GoogleError(400, f"Invalid JSON payload received. {error}") from error
            await self._call(model, method, record)
        except GoogleError as error:
            await self._json(error.code, error.body())

    async def _call(self, model: str, method: str, record: Record) -> None:
        match method:
            case "generateContent" | "streamGenerateContent":
                check_body(record.body)
                await self._generate(model, record, streamed=method == "streamGenerateContent")
            case "countTokens":
                await self._json(200, {"totalTokens": count(record.body.get("contents", []))})
            case "embedContent":
                await self._json(200, {"embedding": embedding(record.body)})
            case "batchEmbedContents":
                await self._json(200, {"embeddings": [embedding(each) for each in record.body["requests"]]})
            case _:
                raise GoogleError(404, f"The method {method} is not found.")

    async def _generate(self, model: str, record: Record, *, streamed: bool) -> None:
        text = last_text(record.body)
        script = script_of(text)
        await asyncio.sleep(script.first_delay_s)
        if script.status != 200:
            raise GoogleError(script.status, script.message, script.reason, script.retry_delay)
        if script.html:
            await self._send(200, b"<!doctype html><title>Welcome</title>", "text/html; charset=utf-8")
            return
        answer = Answer(record.body, script, text, model)
        if streamed:
            await self._stream(answer, script, record)
        else:
            await self._json(200, answer.whole())

    async def _stream(self, answer: Answer, script: Script, record: Record) -> None:
        sse = "alt=sse" in self.query
        kind = "text/event-stream" if sse else "application/json; charset=UTF-8"
        self._head(200, {"content-type": kind, "transfer-encoding": "chunked"})
        delay = self._server.delay if script.delay_s is None else script.delay_s
        for number, response in enumerate(answer.responses()):
            if record.events == script.reset_after:
                record.outcome = "reset"
                self.reset()
            if record.events == script.eof_after:
                break
            if record.events == script.error_after:
                await self._piece(GoogleError(500, script.message).body(), script, sse=sse, first=number == 0)
                break
            await asyncio.sleep(delay)
            await self._piece(response, script, sse=sse, first=number == 0)
            record.events += 1
        if not sse:
            self._writer.write(b"1\r\n]\r\n")
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()

    async def _piece(self, response: dict[str, Any], script: Script, *, sse: bool, first: bool) -> None:
        data = json.dumps(response, ensure_ascii=False).encode()
        whole = b"data: " + data + b"\r\n\r\n" if sse else (b"[" if first else b",\r\n") + data
        cut = len(whole) * 2 // 3 if script.split_bytes else len(whole)
        for part in (whole[:cut], whole[cut:]):
            if part:
                self._writer.write(b"%x\r\n%b\r\n" % (len(part), part))
                await self._writer.drain()
                await asyncio.sleep(0)


class Answer:
    """The answer to one request, as the responses of a stream or as one."""

    def __init__(self, body: dict[str, Any], script: Script, text: str, model: str) -> None:
        config = body.get("generationConfig", {})
        said = script.text if script.text is not None else text
        pieces = script.pieces if script.pieces is not None else _PIECE.findall(said)
        self._pieces, self._finish = limited(pieces, config)
        self._finish = script.finish or self._finish
        self._script = script
        self._choices = range(config.get("candidateCount", 1))
        self._thoughts = _PIECE.findall(script.thoughts)
        self._model = model
        self._usage = {
            "promptTokenCount": count([body.get("systemInstruction", {}), *body["contents"]]),
            "candidatesTokenCount": len(self._pieces) * len(self._choices),
            "thoughtsTokenCount": len(self._thoughts),
        }
        self._usage["totalTokenCount"] = sum(self._usage.values())

    def responses(self) -> list[dict[str, Any]]:
        if self._script.block:
            return [self._response([], promptFeedback={"blockReason": self._script.block})]
        parts: list[dict[str, Any]] = [{"text": thought, "thought": True} for thought in self._thoughts]
        if self._script.calls:
            calls: list[dict[str, Any]] = [{"functionCall": call} for call in self._script.calls]
            if self._script.signature:
                calls[0]["thoughtSignature"] = self._script.signature
            parts += calls
        else:
            parts += [{"text": piece} for piece in self._pieces]
        if self._script.image:
            parts.append({"inlineData": {"mimeType": "image/png", "data": self._script.image}})
        found = [self._response([self._candidate(choice, [part]) for choice in self._choices]) for part in parts]
        last = [self._candidate(choice, [{"text": ""}], self._finish) for choice in self._choices]
        return [*found, self._response(last)]

    def whole(self) -> dict[str, Any]:
        if self._script.block:
            return self._response([], promptFeedback={"blockReason": self._script.block})
        text = [{"text": "".join(self._pieces)}]
        return self._response([self._candidate(choice, text, self._finish) for choice in self._choices])

    def _candidate(self, choice: int, parts: list[dict[str, Any]], finish: str | None = None) -> dict[str, Any]:
        candidate: dict[str, Any] = {"content": {"role": "model", "parts": parts}, "index": choice}
        if finish:
            candidate["finishReason"] = finish
        if self._script.logprobs and parts[0].get("text"):
            token = {"token": parts[0]["text"], "tokenId": 7, "logProbability": -0.25}
            other = {"token": "?", "tokenId": 8, "logProbability": -2.5}
            candidate["logprobsResult"] = {
                "chosenCandidates": [token],
                "topCandidates": [{"candidates": [token, other]}],
            }
        return candidate

    def _response(self, candidates: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
        usage = {"usageMetadata": self._usage, "modelVersion": self._model, "responseId": "fake"}
        return {**({"candidates": candidates} if candidates else {}), **fields, **usage}


class GeminiServer(FakeServer):
    connection = GeminiConnection
    base_path = ""

    def check_key(self, authorization: str) -> None:
        if self._api_key and authorization != self._api_key:
            raise GoogleError(400, "API key not valid. Please pass a valid API key.", "API_KEY_INVALID")


def camel(value: Any) -> Any:
    """`value` with the names of the API in one spelling: it takes `mime_type` for `mimeType`. Users' data stay."""
    if isinstance(value, list):
        return [camel(item) for item in value]
    if not isinstance(value, dict):
        return value
    named = {re.sub(r"_([a-z])", lambda found: found[1].upper(), name): inner for name, inner in value.items()}
    return {name: inner if name in _USERS_DATA else camel(inner) for name, inner in named.items()}


def check_body(body: dict[str, Any]) -> None:
    """Refuse what Google would refuse: unknown names, turns without parts, parts without data."""
    unknown = {*(body.keys() - _FIELDS), *(body.get("generationConfig", {}).keys() - _CONFIG)}
    if unknown:
        raise GoogleError(400, f'Invalid JSON payload received. Unknown name "{unknown.pop()}": Cannot find field.')
    if not body.get("contents"):
        raise GoogleError(400, "contents is not specified")
    for turn in body["contents"]:
        if turn.get("role") not in ("user", "model"):
            raise GoogleError(400, "Please use a valid role: user, model.")
        if not turn.get("parts"):
            raise GoogleError(400, "contents.parts must not be empty.")
        for part in turn["parts"]:
            if len(_DATA & part.keys()) != 1:
                raise GoogleError(400, "required oneof field 'data' must have one initialized field")


def last_text(body: dict[str, Any]) -> str:
    users = [turn for turn in body["contents"] if turn["role"] == "user"]
    return "".join(part.get("text", "") for part in users[-1]["parts"]) if users else ""


def script_of(text: str) -> Script:
    try:
        given = json.loads(text)
    except ValueError:
        return Script()
    return Script(**given["fake"]) if isinstance(given, dict) and "fake" in given else Script()


def limited(pieces: list[str], config: dict[str, Any]) -> tuple[list[str], str]:
    """The pieces up to the first stop sequence and the token limit, and why the answer ended there."""
    text = "".join(pieces)
    ends = [text.find(stop) for stop in config.get("stopSequences", []) if stop in text]
    if ends:
        pieces = _PIECE.findall(text[: min(ends)])
    limit = config.get("maxOutputTokens")
    if limit is not None and len(pieces) > limit:
        return pieces[:limit], "MAX_TOKENS"
    return pieces, "STOP"


def count(contents: list[dict[str, Any]]) -> int:
    parts = [part for turn in contents for part in turn.get("parts", [])]
    return sum(len(_PIECE.findall(part["text"])) if "text" in part else 258 for part in parts)


def embedding(request: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(request["content"]["parts"], sort_keys=True)
    numbers = hashlib.sha256(text.encode()).digest()[: request.get("outputDimensionality", 32)]
    return {"values": [number / 255 for number in numbers]}


def main() -> None:
    parser = argparse.ArgumentParser(description="A small server of Gemini's REST wire for tests.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--api_key", default="", help="the only key that is accepted; any by default")
    parser.add_argument("--model", action="append", default=[], help="a model that exists; any by default")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each event with content")
    args = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(GeminiServer(args.api_key, args.model, args.delay).serve(args.port))


if __name__ == "__main__":
    main()
