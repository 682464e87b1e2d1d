"""The v1.0 wire to replicas: executors of the Kuwa before this one. A form goes out, raw text comes back. Pure."""

from __future__ import annotations

import codecs
import time
from typing import Any

import msgspec

from kuwa.kernel.call import Call
from kuwa.kernel.replica import Replica
from kuwa.wire import form as form_wire
from kuwa.wire import sse
from kuwa.wire.errors import InvalidRequest, RequestTooLarge, Unsupported
from kuwa.wire.json import BadJson, Fields, decoder, is_object, items_in
from kuwa.wire.openai import parts_of, text_of

FORM = b"application/x-www-form-urlencoded"
MAX_FORM_BODY_BYTES = 4 * 1024 * 1024


class V1Wire:
    """A chat as a form: the client's own where it sent one, else one made of the OpenAI body."""

    def target(self, replica: Replica, path: str) -> tuple[str, bytes]:
        if path != "/chat/completions":
            raise Unsupported(
                f"The executor at {replica.address} speaks the v1.0 wire, which only chats; it has no {path}."
            )
        return replica.endpoint, FORM

    def is_own(self, replica: Replica) -> bool:
        del replica
        return True

    def is_plain(self, replica: Replica) -> bool:
        del replica
        return False

    def body(self, call: Call, replica: Replica) -> bytes:
        del replica
        if call.form is not None:
            return form_wire.encode_form(call.form)
        # API requests of the v1.0 wire carry negative history ids, so that they never meet a chat of the web.
        history_id = f"-{int(call.id[-8:], 16)}"
        return form_wire.encode_form(form_from_openai(call.body, call.access_code, history_id, "0"))

    def reader(self, call: Call) -> TextReader:
        return TextReader("chatcmpl-" + call.id, call.access_code)

    def abort_url(self, replica: Replica) -> str:
        """An executor of this wire computes on when its connection closes."""
        return replica.endpoint + "/abort"


class TextReader:
    """Raw text as OpenAI chat events; never splits a character. Its end cannot be told from a cut but by HTTP."""

    def __init__(self, response_id: str, model: str) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._head = {"id": response_id, "created": int(time.time()), "model": model}
        self._first = True

    def feed(self, data: bytes) -> bytes:
        return self._text(self._decoder.decode(data))

    def end(self) -> bytes:
        closing = self._text(self._decoder.decode(b"", final=True)) + self._choice({}, "stop")
        return closing + self._event([], usage=unknown_usage())

    def whole(self, body: bytes) -> bytes:
        message = {"role": "assistant", "content": body.decode("utf-8", "replace"), "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        answer = {**self._head, "object": "chat.completion", "choices": [choice], "usage": unknown_usage()}
        return msgspec.json.encode(answer)

    def _text(self, text: str) -> bytes:
        if not text:
            return b""
        delta = {"role": "assistant", "content": text} if self._first else {"content": text}
        self._first = False
        return self._choice(delta, None)

    def _choice(self, delta: dict[str, str], finish_reason: str | None) -> bytes:
        return self._event([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}])

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        event = {**self._head, "object": "chat.completion.chunk", "choices": choices, **more}
        return sse.event(msgspec.json.encode(event))


def unknown_usage() -> dict[str, int]:
    """The v1.0 wire counts no tokens; clients of the OpenAI dialect expect the object all the same."""
    return {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


_decode_all = decoder(Fields)

SAMPLING_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "max_tokens",
    "max_completion_tokens",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)


def form_from_openai(data: bytes, access_code: str, history_id: str, user_id: str) -> dict[str, str]:
    """An OpenAI chat body as the form an old executor reads: system prompts and sampling as Modelfile lines.

    Raises Unsupported for what the v1.0 wire cannot carry: tools, images, several answers, structured output;
    InvalidRequest and RequestTooLarge.
    """
    if len(data) > MAX_FORM_BODY_BYTES:
        raise RequestTooLarge(
            f"{access_code!r} is served by an executor of the v1.0 wire, "
            f"which takes requests of at most {MAX_FORM_BODY_BYTES} bytes."
        )
    try:
        body = _decode_all(data)
    except BadJson as error:
        raise InvalidRequest(f"The request body cannot be read: {error}.") from error
    for name in ("tools", "functions", "response_format", "logprobs"):
        value = body.get(name)
        if value and value != {"type": "text"}:
            raise Unsupported(
                f"{access_code!r} is served by an executor of the v1.0 wire, which has no {name!r}.", param=name
            )
    if body.get("n", 1) not in (None, 1):
        raise Unsupported(f"{access_code!r} is served by an executor of the v1.0 wire, which answers once.", param="n")
    system: list[str] = []
    history: list[dict[str, Any]] = []
    given: object = body.get("messages") or []
    messages = items_in(given)
    if messages != given or not all(map(is_object, messages)):
        raise InvalidRequest("'messages' must be a list of objects.", param="messages")
    for message in messages:
        text = _plain_text(message, access_code)
        if message.get("role") in ("system", "developer"):
            system.append(text)
        else:
            history.append({"role": message.get("role"), "content": text})
    sampling = {name: body[name] for name in SAMPLING_FIELDS if body.get(name) is not None}
    return {
        "name": access_code,
        "input": form_wire.encode_history(history),
        "history_id": history_id,
        "user_id": user_id,
        "modelfile": form_wire.encode_modelfile(system, sampling),
    }


def _plain_text(message: Fields, access_code: str) -> str:
    content = message.get("content")
    if any(part.get("type") != "text" for part in parts_of(content)):
        raise Unsupported(
            f"{access_code!r} is served by an executor of the v1.0 wire, which takes text only.", param="messages"
        )
    return text_of(content)
