"""What an executor yields becomes the bytes of a response here: one OpenAI answer, raw text, or (`events`) a stream.

`server` makes one `Answer` per request, gives it each chunk with `take` and closes it with `finish`. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import msgspec

from kuwa.executor.chunks import Chunk, Finish, Progress, RawAnswer, RawEvent, Reasoning, Text, ToolCallDelta, Usage
from kuwa.executor.intake import stop_strings
from kuwa.executor.prompt import text_of
from kuwa.executor.request import Request
from kuwa.executor.stop import StopCutter
from kuwa.wire import openai
from kuwa.wire.errors import BadUpstream
from kuwa.wire.json import FAULTS, Fields, decoder, fields_in, is_list, is_object, items_in

_TOKENS_PER_MESSAGE = 3
_CHARACTERS_PER_TOKEN = 4
_encode = msgspec.json.Encoder().encode
_decode = decoder(Fields)


class WrongChunk(TypeError):
    """`llm_compute` yielded something that is no chunk."""


class Answer:
    """What has come of one answer so far. Subclasses say which bytes it becomes.

    `characters` counts the text given out. `usage` is what the executor counted itself, None until it does.
    `cut` is True once every choice has ended at a stop string: the rest need not be computed.
    """

    def __init__(self, request: Request, *, created: int, cuts_stops: bool) -> None:
        self.request = request
        self.created = created
        self.characters = 0
        self.wide = 0
        self.usage: Fields | None = None
        self.cut = False
        self._choices = int(request.parameters.get("n") or 1)
        self._stops = stop_strings(request) if cuts_stops else []
        self._cutters: dict[int, StopCutter] = {}
        self._reasons: dict[int, str] = {}
        self._begun: set[int] = set()
        self._tools: set[tuple[int, int]] = set()
        self._ids: list[int] = []

    def take(self, chunk: Chunk) -> bytes:
        """The bytes to send now; often none. Raises WrongChunk, BadUpstream (a RawEvent that is no event)."""
        if isinstance(chunk, str):
            return self._text(chunk, 0)
        match chunk:
            case Text(text, choice, ids):
                self._ids += ids
                return self._with_ids(self._text(text, choice))
            case Reasoning(text, choice):
                return self._with_ids(self._delta(choice, {"reasoning_content": text})) if text else b""
            case ToolCallDelta():
                return self._with_ids(self._tool_call(chunk))
            case Usage():
                self.usage = chunk.fields()
                return b""
            case Finish(reason, choice):
                self._reasons.setdefault(choice, reason)
                return b""
            case Progress(done, total):
                return self._progress(done, total)
            case RawEvent(data):
                return self._raw(data)
            case RawAnswer(data):
                return self._raw_answer(data)
            case _:
                raise WrongChunk(f"llm_compute yielded {type(chunk).__name__}; yield str or a chunk of kuwa.executor")

    def take_events(self, datas: list[bytes]) -> bytes:
        """The bytes to send for the events of a RawStream's read. Raises BadUpstream."""
        return self._raw(datas[0]) if len(datas) == 1 else b"".join(map(self._raw, datas))

    def finish(self) -> bytes:
        """The bytes that end the answer."""
        held = b"".join(
            self._give(rest, choice)
            for choice, cutter in self._cutters.items()
            if not cutter.stopped and (rest := cutter.finish())
        )
        return self._with_ids(held + self._close())

    def reason(self, choice: int) -> str:
        """Why a choice ended."""
        if choice in self._cutters and self._cutters[choice].stopped:
            return "stop"
        called = any(choice == index for index, _ in self._tools)
        return self._reasons.get(choice) or ("tool_calls" if called else "stop")

    def counts(self) -> Fields:
        """The request's usage; where the executor counted none, an estimate that says so."""
        if self.usage is not None:
            return self.usage
        texts = [text_of(message) for message in self.request.messages]
        prompt = sum(estimated_tokens(len(text), _wide(text)) + _TOKENS_PER_MESSAGE for text in texts)
        completion = estimated_tokens(self.characters, self.wide)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "estimated": True,
        }

    # ---- what subclasses decide ----------------------------------------------------------------------------

    def _emit_text(self, text: str, choice: int) -> bytes:
        raise NotImplementedError

    def _emit(self, choice: int, delta: Fields, beside: Fields) -> bytes:
        """A delta and what stands beside it in its choice (`finish_reason`, `logprobs`)."""
        raise NotImplementedError

    def _close(self) -> bytes:
        raise NotImplementedError

    def _with_ids(self, data: bytes) -> bytes:
        """`data` with the tokens beside it that were consumed for it."""
        return data

    def _keep(self, top: Fields) -> None:
        """Fields of a raw event beside its choices that this framework does not know."""

    def _progress(self, done: int, total: int) -> bytes:
        """Nothing but a stream of events can carry it."""
        del done, total
        return b""

    # ---- shared --------------------------------------------------------------------------------------------

    def _text(self, text: str, choice: int) -> bytes:
        if self._stops:
            text = self._until_stop(text, choice)
        return self._give(text, choice) if text else b""

    def _give(self, text: str, choice: int) -> bytes:
        self._count(text)
        return self._emit_text(text, choice)

    def _count(self, text: str) -> None:
        self.characters += len(text)
        if not text.isascii():
            self.wide += _wide(text)

    def _until_stop(self, text: str, choice: int) -> str:
        cutter = self._cutters.get(choice)
        if cutter is None:
            cutter = self._cutters[choice] = StopCutter(self._stops)
        shown = cutter.feed(text)
        if cutter.stopped:
            self.cut = sum(c.stopped for c in self._cutters.values()) >= self._choices
        return shown

    def _delta(self, choice: int, delta: Fields) -> bytes:
        if choice in self._cutters and self._cutters[choice].stopped:
            return b""
        return self._emit(choice, delta, {})

    def _tool_call(self, call: ToolCallDelta) -> bytes:
        function: Fields = {"arguments": call.arguments}
        fields: Fields = {"index": call.index, "function": function}
        if (call.choice, call.index) not in self._tools:
            self._tools.add((call.choice, call.index))
            function = {"name": call.name, "arguments": call.arguments}
            made_up = _call_id(self.request.id, call.choice, call.index)
            fields = {"index": call.index, "id": call.id or made_up, "type": "function", "function": function}
        return self._delta(call.choice, {"tool_calls": [fields]})

    def _raw(self, data: bytes) -> bytes:
        with _read_as("an event"):
            return self._event_read(_decode(data))

    def _raw_answer(self, data: bytes) -> bytes:
        with _read_as("an answer"):
            return b"".join(map(self._event_read, as_events(_decode(data))))

    def _event_read(self, event: Fields) -> bytes:
        self.usage = _counted(event) or self.usage
        out = b"".join(map(self._raw_choice, openai.choices_in(event)))
        self._keep({k: v for k, v in event.items() if k not in _EVENT_FIELDS})
        return out

    def _raw_choice(self, fields: Fields) -> bytes:
        choice, delta, beside = split_choice(fields)
        reason = openai.reason_of(fields.get("finish_reason"))
        if reason is not None:
            self._reasons.setdefault(choice, reason)
        if not beside and not any(delta.values()):
            return b""
        self._count(delta.get("content") or "")
        return self._emit(choice, delta, beside)


@contextmanager
def _read_as(what: str) -> Generator[None]:
    try:
        yield
    except FAULTS as error:
        raise BadUpstream(f"The model behind this executor sent {what} that cannot be read.") from error


def as_events(whole: Fields) -> list[Fields]:
    """A whole answer as the events of a stream: one for each choice, and one for the usage."""
    top = {name: value for name, value in whole.items() if name not in ("choices", "usage")}
    events: list[Fields] = []
    for given in openai.choices_in(whole):
        choice = dict(given)
        if "message" in choice:
            choice["delta"] = _delta_of(fields_in(choice.pop("message")))
        events.append({**top, "choices": [choice]})
    if usage := _counted(whole):
        events.append({**top, "choices": [], "usage": usage})
    return events


def _delta_of(message: Fields) -> Fields:
    """A message as the one delta that makes it. Calls of tools are numbered in streams only."""
    delta = {name: value for name, value in message.items() if value is not None}
    if calls := items_in(delta.get("tool_calls")):
        delta["tool_calls"] = [{"index": index, **fields_in(call)} for index, call in enumerate(calls)]
    return delta


def split_choice(fields: Fields) -> tuple[int, Fields, Fields]:
    """A raw choice as its index, its delta, and what stands beside it, but for its finish."""
    delta = dict(fields_in(fields.get("delta")))
    delta.pop("role", None)
    content = fields.get("text") if "text" in fields else delta.get("content")
    if content is not None or "text" in fields:
        delta["content"] = openai.text_of(content)
    beside = {k: v for k, v in fields.items() if k not in _CHOICE_FIELDS and v is not None}
    return openai.count_of(fields.get("index")) or 0, delta, beside


def _counted(message: Fields) -> Fields | None:
    """The usage of a message, with all that a provider counts in it; None where it counts nothing."""
    usage = fields_in(message.get("usage"))
    return usage if openai.Usage.of(usage) is not None else None


_CHOICE_FIELDS = ("index", "delta", "text", "finish_reason")
_EVENT_FIELDS = ("id", "object", "created", "model", "choices", "usage", "error")


class Whole(Answer):
    """One OpenAI answer: everything is kept, and given out at the end."""

    def __init__(self, request: Request, *, created: int, cuts_stops: bool) -> None:
        super().__init__(request, created=created, cuts_stops=cuts_stops)
        self._texts: dict[int, list[str]] = {}
        self._messages: dict[int, Fields] = {}
        self._beside: dict[int, Fields] = {}
        self._more: Fields = {}
        self._passed: Fields | None = None

    def _raw_answer(self, data: bytes) -> bytes:
        with _read_as("an answer"):
            self._passed = answer = _decode(data)
            self.usage = _counted(answer) or self.usage
            for choice in openai.choices_in(answer):
                message = fields_in(choice.get("message"))
                self._count(openai.text_of(message.get("content")) or openai.text_of(choice.get("text")))
        return b""

    def _keep(self, top: Fields) -> None:
        self._more = {**top, **self._more}

    def _emit_text(self, text: str, choice: int) -> bytes:
        self._texts.setdefault(choice, []).append(text)
        return b""

    def _emit(self, choice: int, delta: Fields, beside: Fields) -> bytes:
        content = delta.pop("content", None)
        if content:
            self._emit_text(content, choice)
        _merge(self._messages.setdefault(choice, {}), delta)
        _merge(self._beside.setdefault(choice, {}), beside)
        return b""

    def _close(self) -> bytes:
        chat = self.request.kind == "chat"
        own: Fields = {"id": response_id(self.request), "created": self.created, "model": self.request.access_code}
        if self._passed is not None:
            return _encode({**self._passed, **own, "usage": self.counts()})
        indices = sorted(self._texts.keys() | self._messages.keys() | self._reasons.keys() | {0})
        body: Fields = {
            "object": "chat.completion" if chat else "text_completion",
            **own,
            "choices": [self._chat_choice(i) if chat else self._text_choice(i) for i in indices],
            "usage": self.counts(),
            **self._more,
        }
        return _encode(body)

    def _chat_choice(self, index: int) -> Fields:
        message = self._messages.get(index, {})
        text = "".join(self._texts.get(index, []))
        calls = items_in(message.get("tool_calls"))
        for call in map(fields_in, calls):
            call.pop("index", None)
        content = clean(text) if text or not calls else None
        return {
            "index": index,
            "message": {"role": "assistant", "content": content, "refusal": None, **message},
            "logprobs": None,
            **self._beside.get(index, {}),
            "finish_reason": self.reason(index),
        }

    def _text_choice(self, index: int) -> Fields:
        return {
            "index": index,
            "text": clean("".join(self._texts.get(index, []))),
            "logprobs": None,
            **self._beside.get(index, {}),
            "finish_reason": self.reason(index),
        }


class RawText(Answer):
    """The v1.0 wire: the text of the first choice and nothing else."""

    def _emit_text(self, text: str, choice: int) -> bytes:
        return clean(text).encode() if choice == 0 else b""

    def _emit(self, choice: int, delta: Fields, beside: Fields) -> bytes:
        return self._emit_text(delta.get("content") or "", choice)

    def _close(self) -> bytes:
        return b""


def response_id(request: Request) -> str:
    return ("chatcmpl-" if request.kind == "chat" else "cmpl-") + request.id


def estimated_tokens(characters: int, wide: int) -> int:
    """Tokens of a text of which nobody counted them: one for each wide character, one for four others."""
    return wide + -(-(characters - wide) // _CHARACTERS_PER_TOKEN)


def json_string(text: str) -> bytes:
    """`text` as JSON. Half a surrogate pair, which is no character, becomes U+FFFD."""
    try:
        return _encode(text)
    except UnicodeEncodeError:
        return _encode(clean(text))


def clean(text: str) -> str:
    """`text` with only what UTF-8 can carry."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _wide(text: str) -> int:
    """How many characters take three bytes or more: about as many tokens."""
    return (len(text.encode("utf-8", "surrogatepass")) - len(text)) // 2


def _call_id(request_id: str, choice: int, index: int) -> str:
    """The id of a tool call that the executor gave none: the same each time the request is computed."""
    return "call_" + hashlib.sha256(f"{request_id}/{choice}/{index}".encode()).hexdigest()[:24]


def _merge(into: Fields, delta: Fields) -> None:
    """Put a delta's fields together: texts are joined, lists of numbered pieces merged by number."""
    for name, value in delta.items():
        had = into.get(name)
        if isinstance(value, str) and isinstance(had, str) and name not in ("id", "type"):
            into[name] = had + value
        elif is_list(value):
            into[name] = _merge_list(items_in(had), value)
        elif is_object(value) and is_object(had):
            _merge(had, value)
        elif value is not None:
            into[name] = value


def _merge_list(had: list[Any], pieces: list[Any]) -> list[Any]:
    numbered = {number: fields for fields in map(fields_in, had) if (number := _number(fields)) is not None}
    for piece in pieces:
        fields = fields_in(piece)
        number = _number(fields)
        if number is None or number not in numbered:
            had.append(piece)
            if number is not None:
                numbered[number] = fields  # two pieces of one thing may come in one delta
        else:
            _merge(numbered[number], fields)
    return had


def _number(piece: Fields) -> int | None:
    return openai.count_of(piece.get("index"))
