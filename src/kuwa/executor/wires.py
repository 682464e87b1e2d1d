"""How answers and errors look on the two wires of an executor: OpenAI's, and v1.0's raw text. Pure; `job` asks them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from kuwa.executor.answer import Answer, RawText, Whole
from kuwa.executor.events import Events
from kuwa.executor.request import Request
from kuwa.wire import form as form_wire
from kuwa.wire import resume
from kuwa.wire.errors import (
    OPENAI,
    ContextLengthExceeded,
    ErrorShape,
    KuwaError,
    NoReplica,
    QueueFull,
    RequestCancelled,
)

JSON = b"application/json"
EVENT_STREAM = b"text/event-stream; charset=utf-8"

Announced = Callable[[], resume.Announcement | None]


class Wire(Protocol):
    """One wire. `refusals` words the errors of requests that are not computed, `failures` those of the others.

    `ends_cut`: an answer that was cancelled ends with what it has, for want of words that say so.
    """

    refusals: ErrorShape
    failures: ErrorShape
    ends_cut: bool

    def answer(self, request: Request, announced: Announced, *, now: int, cuts_stops: bool) -> tuple[Answer, bytes]:
        """What makes the bytes of the answer, and the bytes that go before them.

        `announced` gives what the kernel needs to resume the stream elsewhere; None where it did not ask.
        """
        ...


class OpenAIWire:
    """Events, or one JSON object."""

    refusals: ErrorShape = OPENAI
    failures: ErrorShape = OPENAI
    ends_cut = False

    def answer(self, request: Request, announced: Announced, *, now: int, cuts_stops: bool) -> tuple[Answer, bytes]:
        if not request.stream:
            return Whole(request, created=now, cuts_stops=cuts_stops), b""
        told = announced()
        created = request.resume.created if request.resume is not None else now
        events = Events(request, created=created, cuts_stops=cuts_stops, shows_ids=told is not None)
        return events, b"" if told is None else resume.announce(told)


def _message(text: str) -> bytes:
    return msgspec.json.encode({"msg": text})


_BUSY_ERRORS = (QueueFull, NoReplica, RequestCancelled)
_BUSY = (429, JSON, _message("Processing another request."))


class V1Refusals:
    """A busy executor says so in the words that old kernels know; other errors are a status and a message."""

    def refusal(self, error: KuwaError) -> tuple[int, bytes, bytes]:
        return _BUSY if isinstance(error, _BUSY_ERRORS) else (error.status, JSON, _message(error.message))

    def closing(self, error: KuwaError) -> bytes:
        return _text(error)


class V1Failures(V1Refusals):
    """Once a request is computed, every other error is a text in its answer."""

    def refusal(self, error: KuwaError) -> tuple[int, bytes, bytes]:
        return _BUSY if isinstance(error, _BUSY_ERRORS) else (200, EVENT_STREAM, _text(error))


class V1Wire:
    """The text of the answer and nothing else."""

    refusals: ErrorShape = V1Refusals()
    failures: ErrorShape = V1Failures()
    ends_cut = True

    def answer(self, request: Request, announced: Announced, *, now: int, cuts_stops: bool) -> tuple[Answer, bytes]:
        del announced
        return RawText(request, created=now, cuts_stops=cuts_stops), b""


OPENAI_WIRE: Wire = OpenAIWire()
V1_WIRE: Wire = V1Wire()


def _text(error: KuwaError) -> bytes:
    if isinstance(error, ContextLengthExceeded):
        return form_wire.TOO_LONG_TEXT.encode()
    if error.status >= 500:
        return form_wire.ERROR_TEXT.encode()
    return f"[{error.message}]".encode("utf-8", "replace")
