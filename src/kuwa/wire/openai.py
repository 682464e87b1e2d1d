"""The messages of the OpenAI dialect, and how leniently they are read. Pure; for kernel, client and executors.

Servers differ in what they send where they have nothing to say. Decided here, once for all: null means absent, a finish
reason that is empty or spells null is none, a content made of parts is the text of its parts, and a token count that
is not a whole number within reason is unknown. Anything else of the wrong type is BadJson.
"""

from __future__ import annotations

import base64
import struct
from typing import Annotated, Any, Literal

import msgspec

from kuwa.wire.json import BadJson, Fields, bare_decoder, decoder, fields_in, is_list, is_object, items_in

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]

MAX_COUNT = 2**53
"""Beyond it a number in JSON is not exact, and no count of tokens."""

_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
_NO_REASON = ("", "null")
_EMPTY = (b"", b'""', b"null", b"[]", b"{}")
_TEXT_PARTS = ("text", "input_text", "output_text")


# ---- values ------------------------------------------------------------------------------------------------


def count_of(value: object) -> int | None:
    """A count of tokens, or None where it is unknown. `3.0` is 3."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_COUNT:
        return None
    return int(value) if value == int(value) else None


def reason_of(value: object) -> str | None:
    """Why a choice ended, or None where it has not."""
    return value if isinstance(value, str) and value not in _NO_REASON else None


def known_reason(reason: str) -> FinishReason:
    """A reason as OpenAI names it; those that only one server knows (`eos`) are ordinary ends."""
    return _REASONS.get(reason, "stop")


def parts_of(content: object) -> list[Fields]:
    """The parts of a content, in their order: a text is one part, and what is not an object is an empty one."""
    if isinstance(content, str):
        return [_text_part(content)]
    if not is_list(content):
        return []
    return [_text_part(part) if isinstance(part, str) else fields_in(part) for part in content]


def text_of(content: object) -> str:
    """The text of a content: text, null, or a list of parts, of which images and the like are left out."""
    if isinstance(content, str):
        return content
    return "".join(map(_text_in, parts_of(content)))


def url_of(part: Fields, name: str) -> object:
    """The URL of a part such as `image_url`: in an object, or with some clients as it is."""
    value: object = part.get(name)
    return value.get("url") if is_object(value) else value


def _text_part(text: str) -> Fields:
    return {"type": "text", "text": text}


def _text_in(part: Fields) -> str:
    kind = part.get("type")
    text = part.get("refusal") if kind == "refusal" else part.get("text") if kind in _TEXT_PARTS else None
    return text if isinstance(text, str) else ""


# ---- what every answer may hold -----------------------------------------------------------------------------


Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]


class PromptDetails(msgspec.Struct, frozen=True, gc=False):
    cached_tokens: Count | None = None


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Token counts of a whole request. `cached`: of the prompt, those that were computed before; servers say it in
    one of two places."""

    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    cached_tokens: Count = 0
    prompt_tokens_details: PromptDetails | None = None

    @classmethod
    def of(cls, value: object) -> Usage | None:
        """The `usage` of an answer; None where it holds no count that can be known."""
        fields = fields_in(value)
        prompt, completion = count_of(fields.get("prompt_tokens")), count_of(fields.get("completion_tokens"))
        if prompt is None and completion is None:
            return None
        details = fields_in(fields.get("prompt_tokens_details"))
        cached = count_of(details.get("cached_tokens")) or count_of(fields.get("cached_tokens"))
        return cls(prompt or 0, completion or 0, cached or 0)

    @property
    def cached(self) -> int:
        details = self.prompt_tokens_details
        return (details.cached_tokens or 0) if details is not None else self.cached_tokens

    def fields(self) -> Fields:
        """The `usage` of an answer."""
        fields: Fields = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }
        if self.cached:
            fields["prompt_tokens_details"] = {"cached_tokens": self.cached}
        return fields


class Error(msgspec.Struct, frozen=True):
    """The error object of an answer or an event."""

    message: str = ""
    type: str = ""
    param: str | None = None
    code: str = ""

    @classmethod
    def of(cls, value: object) -> Error | None:
        """The value of `error`: an object, or with some servers a text. None for an empty one and any other value."""
        if isinstance(value, str):
            return cls(value) if value else None
        fields = fields_in(value)
        if not fields:
            return None
        message, kind, param, code = (fields.get(name) for name in ("message", "type", "param", "code"))
        return cls(
            message if isinstance(message, str) else "",
            kind if isinstance(kind, str) else "",
            param if isinstance(param, str) else None,
            str(code) if isinstance(code, str | int) else "",
        )


class Message(msgspec.Struct, frozen=True):
    """What an event or a whole answer may hold besides its choices."""

    usage: Usage | None = None
    fault: Any = msgspec.field(default=None, name="error")

    @property
    def error(self) -> Error | None:
        return Error.of(self.fault) if self.fault is not None else None


def mend(message: Fields) -> None:
    """Counts and reasons of the wrong type are unknown. The rest of the message may still be right."""
    message["usage"] = Usage.of(message.get("usage"))
    for choice in map(fields_in, items_in(message.get("choices"))):
        choice["finish_reason"] = reason_of(choice.get("finish_reason"))


decode_whole = decoder(Message, mend)
"""A whole answer, of which nothing but its token counts has to be known."""

decode_whole_unguarded = bare_decoder(Message)
"""The same without its guard, for each answer in one piece: on FAULTS, `decode_whole` says what is wrong, or mends."""


def choices_in(message: Fields) -> list[Fields]:
    """The choices of a message that was decoded without a type. Raises BadJson."""
    choices: object = message.get("choices")
    found = items_in(choices)
    if (choices is not None and found is not choices) or not all(map(is_object, found)):
        raise BadJson("its choices are not a list of objects")
    return found


# ---- vectors ---------------------------------------------------------------------------------------------------


class _Vector(msgspec.Struct):
    embedding: list[float] | str
    index: int | None = None


class _Vectors(Message, frozen=True, kw_only=True):
    data: list[_Vector]


_decode_vectors = decoder(_Vectors, mend)


def vectors_in(answer: bytes) -> tuple[list[list[float]], int]:
    """The vectors of an answer, in the order of their inputs, and the tokens of these. Raises BadJson."""
    whole = _decode_vectors(answer)
    try:
        vectors = [_numbers(entry.embedding) for entry in sorted(whole.data, key=lambda entry: entry.index or 0)]
    except (ValueError, struct.error) as error:
        raise BadJson(f"an embedding is not base64 of floats: {error}") from error
    return vectors, whole.usage.prompt_tokens if whole.usage is not None else 0


class _Score(msgspec.Struct):
    index: int
    relevance_score: float


class _Scores(Message, frozen=True, kw_only=True):
    results: list[_Score]


_decode_scores = decoder(_Scores, mend)


def scores_in(answer: bytes) -> tuple[list[float], int]:
    """The scores of an answer that ranks, in the order of the documents, and the tokens of these. Raises BadJson."""
    whole = _decode_scores(answer)
    scores = [result.relevance_score for result in sorted(whole.results, key=lambda result: result.index)]
    return scores, whole.usage.prompt_tokens if whole.usage is not None else 0


def _numbers(embedding: list[float] | str) -> list[float]:
    if isinstance(embedding, list):
        return embedding
    packed = base64.b64decode(embedding, validate=True)
    return list(struct.unpack(f"<{len(packed) // 4}f", packed))


# ---- events, read in full --------------------------------------------------------------------------------------


class FunctionDelta(msgspec.Struct, frozen=True):
    name: str | None = None
    arguments: str | None = None


class CallDelta(msgspec.Struct, frozen=True):
    """A piece of a tool call: `id` and the function's name come with the first piece of each `index`."""

    index: int | None = None
    id: str | None = None
    function: FunctionDelta | None = None


class Delta(msgspec.Struct, frozen=True):
    content: str | list[Any] | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallDelta] | None = None


class Choice(msgspec.Struct, frozen=True):
    """Of a chat the text is in `delta`, of a plain completion in `text`: `said` is either."""

    index: int | None = None
    delta: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: Any = None

    @property
    def said(self) -> str:
        content = self.delta.content if self.delta is not None else None
        return content if isinstance(content, str) and content else text_of(content) or self.text or ""

    @property
    def ended(self) -> str | None:
        return reason_of(self.finish_reason)


class Piece(msgspec.Struct, frozen=True):
    """A piece of an answer. `finish_reason` comes once, `usage` last of all where the executor counts."""

    text: str = ""
    reasoning: str = ""
    finish_reason: str = ""
    usage: Usage | None = None


class Chunk(Message, frozen=True):
    """An event of a stream, with all that this project understands of it."""

    choices: list[Choice] | None = None

    @property
    def text(self) -> str:
        return "".join([choice.said for choice in self.choices or ()])

    def pieces(self) -> list[Piece]:
        """What it says, choice by choice, and the token counts at the end."""
        found = [
            Piece(choice.said, (choice.delta and choice.delta.reasoning_content) or "", choice.ended or "")
            for choice in self.choices or ()
        ]
        return [*found, Piece(usage=self.usage)] if self.usage is not None else found


decode_chunk = decoder(Chunk, mend)


# ---- events, looked into on their way through --------------------------------------------------------------------


class ChoiceOutline(msgspec.Struct, gc=False):
    delta: dict[str, msgspec.Raw] | None = None
    text: str | None = None
    finish_reason: str | None = None

    @property
    def ended(self) -> bool:
        return self.finish_reason is not None and self.finish_reason not in _NO_REASON


class Outline(Message, frozen=True):
    """What has to be known of an event, or of a whole answer, that passes unread otherwise."""

    choices: list[ChoiceOutline] | None = None

    @property
    def only_counts(self) -> bool:
        """Whether it is the event at a stream's end that brings the token counts and nothing else."""
        return self.usage is not None and not self.choices

    @property
    def has_content(self) -> bool:
        """Whether it carries more than the role."""
        for choice in self.choices or ():
            if choice.text or choice.ended:
                return True
            for name, value in choice.delta.items() if choice.delta else ():
                if name != "role" and bytes(value) not in _EMPTY:
                    return True
        return False

    @property
    def finishes(self) -> bool:
        for choice in self.choices or ():  # noqa: SIM110 - a generator costs more than the one choice there is
            if choice.ended:
                return True
        return False


decode_outline = decoder(Outline, mend)
