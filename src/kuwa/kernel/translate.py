"""Between the dialects: OpenAI events and the v1.0 wire's raw text. Pure, incremental, one class a direction.

Used where client and replica speak different wires; where both speak the OpenAI dialect, bytes pass unread
(`relay`). Also the request's way to an executor of the old wire: an OpenAI body as a form.
"""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from kuwa.wire import form as form_wire
from kuwa.wire import sse
from kuwa.wire.errors import BadUpstream, InvalidRequest, KuwaError, RequestTooLarge, Unsupported
from kuwa.wire.names import PROVIDER_KEY_HEADER

SMALL_BYTES = 256 * 1024
MAX_QUOTES = 200_000
MAX_FORM_BODY_BYTES = 4 * 1024 * 1024
MAX_RETRY_AFTER_S = 24 * 3600


class PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None


class Usage(msgspec.Struct, frozen=True):
    """Token counts as every OpenAI answer carries them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: PromptDetails | None = None


class Translator(Protocol):
    """Turns a response body, however split, into the client's. `finished`: the answer came to its own end."""

    finished: bool
    usage: Usage | None

    def feed(self, data: bytes) -> bytes: ...
    def end(self) -> bytes:
        """What closes the client's streamed body. Called once, after the whole answer."""
        ...

    def whole(self, collected: bytes) -> bytes:
        """The client's body in one piece, from all that `feed` gave; in place of `end`."""
        ...


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)


class _Event(msgspec.Struct):
    choices: list[_Choice] = []


_decode_event = msgspec.json.Decoder(_Event).decode


class TextFromEvents:
    """OpenAI chat events as the raw text of the v1.0 wire."""

    def __init__(self) -> None:
        self._reader = sse.SseReader()

    def feed(self, data: bytes) -> bytes:
        """Raises BadUpstream for what is no event of a chat."""
        text: list[str] = []
        try:
            for event in self._reader.feed(data):
                if event.data != sse.DONE:
                    text += [choice.delta.content or "" for choice in _decode_event(event.data).choices]
        except (msgspec.MsgspecError, sse.EventTooLong) as error:
            raise BadUpstream(f"The executor's stream cannot be read: {error}.") from error
        return "".join(text).encode("utf-8", "surrogatepass")


class PlainText:
    """The v1.0 wire's raw text as it is. Its end cannot be told from a cut but by the HTTP framing."""

    def __init__(self) -> None:
        self.finished = True
        self.usage: Usage | None = None

    def feed(self, data: bytes) -> bytes:
        return data

    def end(self) -> bytes:
        return b""

    def whole(self, collected: bytes) -> bytes:
        return collected


class EventsFromText:
    """Raw text as OpenAI chat events; never splits a character."""

    def __init__(self, response_id: str, model: str, *, include_usage: bool) -> None:
        self.finished = True
        self.usage: Usage | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._head = {
            "id": response_id,
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }
        self._include_usage = include_usage
        self._first = True

    def feed(self, data: bytes) -> bytes:
        return self._text(self._decoder.decode(data))

    def end(self) -> bytes:
        closing = self._text(self._decoder.decode(b"", final=True)) + self._choice({}, "stop")
        if self._include_usage:
            closing += sse.event(msgspec.json.encode({**self._head, "choices": [], "usage": unknown_usage()}))
        return closing + sse.DONE_EVENT

    def _text(self, text: str) -> bytes:
        if not text:
            return b""
        delta = {"role": "assistant", "content": text} if self._first else {"content": text}
        self._first = False
        return self._choice(delta, None)

    def whole(self, collected: bytes) -> bytes:
        return collected + self.end()

    def _choice(self, delta: dict[str, str], finish_reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return sse.event(msgspec.json.encode({**self._head, "choices": [choice]}))


class CompletionFromText(PlainText):
    """Raw text as one chat completion."""

    def __init__(self, response_id: str, model: str) -> None:
        super().__init__()
        self._id = response_id
        self._model = model

    def whole(self, collected: bytes) -> bytes:
        message = {"role": "assistant", "content": collected.decode("utf-8", "replace"), "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        return msgspec.json.encode(
            {
                "id": self._id,
                "object": "chat.completion",
                "created": int(time.time()),
                "model": self._model,
                "choices": [choice],
                "usage": unknown_usage(),
            }
        )


def unknown_usage() -> dict[str, int]:
    """The v1.0 wire counts no tokens; clients of the OpenAI dialect expect the object all the same."""
    return {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


_decode_all = msgspec.json.Decoder(dict[str, Any]).decode

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

    Raises Unsupported for what the v1.0 wire cannot carry: tools, images, several answers, structured output; and
    RequestTooLarge.
    """
    if len(data) > MAX_FORM_BODY_BYTES:
        raise RequestTooLarge(
            f"{access_code!r} is served by an executor of the v1.0 wire, "
            f"which takes requests of at most {MAX_FORM_BODY_BYTES} bytes."
        )
    body = _decode_all(data)
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
    for message in body.get("messages") or ():
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


def body_for_upstream(body: bytes, model: str) -> bytes:
    """A body as a server that is no executor of ours gets it: its own model name, our extension `kuwa` taken out.

    Of a v1.0 form's Modelfile, which an executor would apply, the system prompts and the parameters are applied here.
    """
    fields = fields_of(body)
    if model:
        fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    extension = fields.pop("kuwa", None)
    if extension is not None:
        _apply_modelfile(fields, _modelfile_of(extension))
    return msgspec.json.encode(fields)


def fields_of(body: bytes) -> dict[str, msgspec.Raw]:
    """The members of a JSON object, undecoded, so that some of them can be replaced. Raises InvalidRequest."""
    # Each name is a string. Millions of them take seconds, in which nothing else of the kernel would run.
    if len(body) > SMALL_BYTES and body.count(b'"') - body.count(b'\\"') > MAX_QUOTES:
        raise InvalidRequest(f"The request body holds more than {MAX_QUOTES // 2} strings; send fewer at once.")
    return _decode_fields(body)


def brought_keys(lines: bytes, form: dict[str, str] | None) -> list[str]:
    """The keys for providers that a request brings, in its header lines or its v1.0 form: never for a log."""
    start = PROVIDER_KEY_HEADER + b":"
    keys = [line[len(start) :].strip().decode("latin-1") for line in lines.splitlines() if line.startswith(start)]
    return keys + [form[name] for name in form_wire.PROVIDER_KEY_FIELDS if name in form] if form else keys


def without_provider_key(lines: bytes) -> bytes:
    """Header lines as a server that is no executor of ours gets them: whose key a request brings is not known."""
    return b"".join(line for line in lines.splitlines(keepends=True) if not line.startswith(PROVIDER_KEY_HEADER + b":"))


_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class _Command(msgspec.Struct):
    name: str = ""
    args: str = ""


class _Form(msgspec.Struct):
    modelfile: str = "[]"


class _Extension(msgspec.Struct):
    form: _Form = msgspec.field(default_factory=_Form)


def _modelfile_of(extension: msgspec.Raw) -> list[_Command]:
    try:
        form = msgspec.json.decode(extension, type=_Extension).form
        return msgspec.json.decode(form.modelfile, type=list[_Command])
    except msgspec.MsgspecError:
        return []


def _apply_modelfile(fields: dict[str, msgspec.Raw], modelfile: list[_Command]) -> None:
    system = "\n".join(command.args for command in modelfile if command.name == "system")
    if system:
        messages = msgspec.json.decode(fields["messages"], type=list[msgspec.Raw])
        first = msgspec.Raw(msgspec.json.encode({"role": "system", "content": system}))
        fields["messages"] = msgspec.Raw(msgspec.json.encode([first, *messages]))
    for command in modelfile:
        key, _, value = command.args.partition(" ")
        if command.name in ("parameter", "kuwaparam") and key.startswith(form_wire.PARAMETER_PREFIX) and value:
            fields[key.removeprefix(form_wire.PARAMETER_PREFIX)] = msgspec.Raw(_json_value(value.strip()))


def _json_value(text: str) -> bytes:
    """The value of a Modelfile parameter: a number, true or false where it reads as one, else text."""
    try:
        value: Any = msgspec.json.decode(text)
    except msgspec.MsgspecError:
        value = text
    return msgspec.json.encode(value if isinstance(value, bool | int | float) else text)


def _plain_text(message: dict[str, Any], access_code: str) -> str:
    content = message.get("content")
    if isinstance(content, str) or content is None:
        return content or ""
    pieces: list[str] = []
    for part in content:
        if part.get("type") != "text":
            raise Unsupported(
                f"{access_code!r} is served by an executor of the v1.0 wire, which takes text only.",
                param="messages",
            )
        pieces.append(part.get("text", ""))
    return "".join(pieces)


def error_from_answer(
    status: int, body: bytes, who: str, retry_after: bytes = b"", hide: Callable[[str], str] = str
) -> tuple[KuwaError, bool]:
    """What an answer other than 200 means: the error for the client, and whether another replica may do better.

    `hide` takes out of the replica's words what a client is not to read.
    """
    passed = PassedOn.of(status, body)
    if passed is not None:
        passed.reword(hide)
        if retry_after.isdigit():
            passed.retry_after_s = min(int(retry_after[:9]), MAX_RETRY_AFTER_S)
        return passed, passed.retryable_elsewhere
    shown = hide(body.decode("utf-8", "replace"))[:200].strip() or "nothing"
    return BadUpstream(f"{who} answered with status {status} and {shown!r}."), status >= 500 or status in (
        404,
        429,
    )


class PassedOn(KuwaError):
    """An error in the OpenAI shape that a replica gave: passed on with its own status, message and code."""

    retryable_elsewhere: bool
    """Whether another replica may do better: overload and faults, but no fault of the request."""

    @classmethod
    def of(cls, status: int, body: bytes) -> PassedOn | None:
        """The error in `body`, or None where it is not in the OpenAI shape."""
        try:
            error = msgspec.json.decode(body, type=_ErrorBody).error
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
        if not 400 <= status <= 599:
            return None
        passed = cls(error.message, param=error.param)
        passed.status = status
        passed.type = error.type
        passed.code = str(error.code)
        passed.retryable_elsewhere = status >= 500 or status == 429
        if status in (429, 503):
            passed.retry_after_s = 1
        return passed


class _ErrorObject(msgspec.Struct):
    message: str
    type: str = "upstream_error"
    param: str | None = None
    code: str | int | None = None


class _ErrorBody(msgspec.Struct):
    error: _ErrorObject
