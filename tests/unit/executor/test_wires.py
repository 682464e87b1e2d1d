"""How answers and errors look on the two wires of an executor."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuwa.executor.answer import RawText, Whole
from kuwa.executor.events import Events
from kuwa.executor.request import Request
from kuwa.executor.wires import OPENAI_WIRE, V1_WIRE
from kuwa.wire import resume
from kuwa.wire.errors import (
    ContextLengthExceeded,
    Draining,
    InternalError,
    InvalidRequest,
    KuwaError,
    NoReplica,
    QueueFull,
    RateLimited,
    RequestCancelled,
)
from kuwa.wire.form import ERROR_TEXT, TOO_LONG_TEXT

ANNOUNCED = resume.Announcement("tiny-llama/float32", "0f" * 12, 0, 41)


def asked(*, stream: bool) -> Request:
    return Request(id="r1", access_code="harbour", stream=stream)


def unasked() -> resume.Announcement | None:
    return None


@pytest.mark.parametrize("error", [QueueFull("full"), NoReplica("starting"), Draining("gone"), RequestCancelled("cut")])
def test_a_busy_executor_tells_old_kernels_so_whenever_it_finds_out(error: KuwaError) -> None:
    for shape in (V1_WIRE.refusals, V1_WIRE.failures):
        status, content_type, body = shape.refusal(error)
        assert (status, content_type) == (429, b"application/json")
        assert msgspec.json.decode(body) == {"msg": "Processing another request."}


def test_a_form_that_cannot_be_read_is_a_status_and_a_message() -> None:
    status, _, body = V1_WIRE.refusals.refusal(InvalidRequest("The field 'input' is a pear."))
    assert (status, msgspec.json.decode(body)) == (400, {"msg": "The field 'input' is a pear."})


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ContextLengthExceeded("9 of 8 tokens"), TOO_LONG_TEXT),
        (InternalError("a secret of the machine"), ERROR_TEXT),
        (RateLimited("The provider asks for patience."), "[The provider asks for patience.]"),
    ],
)
def test_what_goes_wrong_in_computing_is_a_text_in_the_v1_answer(error: KuwaError, text: str) -> None:
    assert V1_WIRE.failures.refusal(error) == (200, b"text/event-stream; charset=utf-8", text.encode())
    assert V1_WIRE.failures.closing(error) == text.encode()


@given(message=st.text())
def test_no_message_is_too_odd_for_an_error(message: str) -> None:
    for shape in (V1_WIRE.refusals, V1_WIRE.failures):
        assert shape.refusal(InvalidRequest(message.encode("utf-8", "ignore").decode()))[2]
        assert shape.closing(InvalidRequest(message + "\ud800"))


def test_openai_answers_whole_or_in_events_and_v1_in_text() -> None:
    for wire, stream, kind in ((OPENAI_WIRE, False, Whole), (OPENAI_WIRE, True, Events), (V1_WIRE, True, RawText)):
        answer, opening = wire.answer(asked(stream=stream), unasked, now=7, cuts_stops=True)
        assert (type(answer), opening) == (kind, b"")


def test_events_that_can_be_resumed_are_announced_first() -> None:
    _, opening = OPENAI_WIRE.answer(asked(stream=True), lambda: ANNOUNCED, now=7, cuts_stops=True)
    assert resume.announcement_in(opening) == ANNOUNCED


def test_raw_text_is_never_announced() -> None:
    def refused() -> resume.Announcement | None:
        raise AssertionError("the v1.0 wire has no room for an announcement")

    _, opening = V1_WIRE.answer(asked(stream=True), refused, now=7, cuts_stops=True)
    assert opening == b""


def test_resumed_events_keep_the_time_of_the_first_half() -> None:
    request = asked(stream=True)
    request.resume = resume.ResumeRequest(seed=41, fingerprint="f", prompt_hash="h", created=3)
    answer, _ = OPENAI_WIRE.answer(request, unasked, now=7, cuts_stops=True)
    assert answer.created == 3
