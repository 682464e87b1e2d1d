"""What a provider's refusals become, and that no key is in what the client reads."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuwa.executor.provider.failures import (
    MAX_RETRY_AFTER_S,
    MAX_WORDS,
    Origin,
    broken_event,
    not_a_stream,
    refusal,
    retry_after_s,
    unreachable,
)
from kuwa.wire.errors import KuwaError

KEY = "sk-canary-0123456789"
NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)


@pytest.fixture
def origin() -> Origin:
    return Origin("https://api.test:8443/v1", "gpt-x", KEY, "--api_key")


def said(message: str, code: str | None = None, param: str | None = None) -> object:
    return {"error": {"message": message, "type": "whatever", "code": code, "param": param}}


@pytest.mark.parametrize(
    ("status", "ours", "code"),
    [
        (400, 400, "invalid_request_error"),
        (401, 401, "invalid_api_key"),
        (403, 403, "permission_denied"),
        (404, 404, "model_not_found"),
        (408, 504, "upstream_timeout"),
        (409, 400, "invalid_request_error"),
        (413, 413, "request_too_large"),
        (418, 400, "invalid_request_error"),
        (422, 400, "invalid_request_error"),
        (429, 429, "rate_limit_exceeded"),
        (500, 502, "bad_upstream"),
        (503, 502, "bad_upstream"),
        (504, 504, "upstream_timeout"),
        (529, 502, "bad_upstream"),
        (302, 502, "bad_upstream"),
    ],
)
def test_each_status_becomes_the_error_that_clients_know(origin: Origin, status: int, ours: int, code: str) -> None:
    error = refusal(status, {}, said("the reason"), origin)
    assert (error.status, error.code) == (ours, code)
    assert "the reason" in error.message


def test_a_bad_request_passes_with_the_providers_own_words_and_parameter(origin: Origin) -> None:
    error = refusal(400, {}, said("temperature is too high", param="temperature"), origin)
    assert (error.message, error.param) == ("temperature is too high", "temperature")


def test_a_context_that_is_too_long_keeps_its_code(origin: Origin) -> None:
    error = refusal(400, {}, said("too many tokens", code="context_length_exceeded"), origin)
    assert (error.status, error.code) == (400, "context_length_exceeded")


def test_the_refused_key_is_named_by_its_source_only(origin: Origin) -> None:
    error = refusal(401, {}, said(f"Incorrect API key provided: {KEY}."), origin)
    assert "--api_key" in error.message
    assert KEY not in error.message


def test_a_key_with_its_middle_starred_out_is_not_shown_either(origin: Origin) -> None:
    error = refusal(401, {}, said("Incorrect API key provided: sk-canar**********6789. Find it."), origin)
    assert "canar" not in error.message
    assert "6789" not in error.message


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 429, 500, 504])
def test_no_part_of_an_error_repeats_the_key(origin: Origin, status: int) -> None:
    body = {"error": {"message": f"Bearer {KEY[:-1]}", "param": f"headers.{KEY}", "code": KEY, "type": KEY}}
    assert "canary" not in str(refusal(status, {}, body, origin).payload())


def test_a_redirect_that_holds_the_key_is_told_without_it(origin: Origin) -> None:
    error = refusal(307, {"location": f"https://login.test/?token={KEY}"}, "", origin)
    assert "https://login.test/?***" in error.message
    assert "canary" not in error.message


def test_a_context_that_is_too_long_is_told_without_the_key(origin: Origin) -> None:
    body = {"error": {"message": "exceeds the context", "n_prompt_tokens": KEY, "n_ctx": KEY}}
    assert "canary" not in refusal(400, {}, body, origin).message


def test_a_content_type_that_holds_the_key_is_told_without_it(origin: Origin) -> None:
    assert "canary" not in not_a_stream(f"text/html; token={KEY}", origin).message


def test_a_placeholder_key_does_not_garble_the_text() -> None:
    error = refusal(401, {}, said("no such user"), Origin("http://h/v1", "m", "u", "--api_key"))
    assert "no such user" in error.message


def test_every_fault_of_the_server_names_its_base_url(origin: Origin) -> None:
    for error in (refusal(500, {}, said("x"), origin), unreachable("refused", origin), not_a_stream("x/y", origin)):
        assert "https://api.test:8443/v1" in error.message


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "the reason"}},
        {"object": "error", "message": "the reason", "code": 404},
        {"error": "the reason"},
        {"detail": "the reason"},
        "the reason",
    ],
)
def test_the_reason_is_found_in_every_shape_that_servers_use(origin: Origin, body: object) -> None:
    assert "the reason" in refusal(404, {}, body, origin).message


@pytest.mark.parametrize("body", ["<!doctype html><html>secret stuff</html>", "\n <html>secret stuff"])
def test_a_web_page_is_called_one_and_not_quoted(origin: Origin, body: str) -> None:
    message = refusal(502, {}, body, origin).message
    assert "web page" in message
    assert "secret stuff" not in message


def test_a_base_url_without_a_path_is_pointed_out() -> None:
    assert "/v1" in refusal(404, {}, "", Origin("http://h:8000", "m", KEY, "--api_key")).message
    assert "/v1." not in refusal(404, {}, "", Origin("http://h:8000/v1", "m", KEY, "--api_key")).message


def test_an_error_inside_the_stream_keeps_its_words(origin: Origin) -> None:
    error = broken_event({"message": f"engine died of {KEY}", "code": 500}, origin)
    assert (error.status, error.code) == (502, "bad_upstream")
    assert "engine died of ***" in error.message


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7),
        ("0.2", 1),
        ("0", 1),
        ("-5", 1),
        ("1e9", MAX_RETRY_AFTER_S),
        ("nan", 1),
        ("inf", 1),
        ("", 1),
        ("x", 1),
    ],
)
def test_retry_after_is_read_and_bounded(value: str, seconds: int) -> None:
    assert retry_after_s(value, NOW) == seconds


def test_retry_after_may_be_a_date() -> None:
    later = (NOW + timedelta(seconds=90)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    assert retry_after_s(later, NOW) == 90


def test_too_many_requests_carries_the_providers_retry_after(origin: Origin) -> None:
    assert refusal(429, {"retry-after": "7"}, said("slow down"), origin).retry_after_s == 7


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["error", "message"]), inner),
    max_leaves=10,
)


@given(status=st.integers(300, 999), body=json_values | st.text(), retry=st.text())
def test_whatever_a_provider_answers_becomes_one_error_without_the_key(status: int, body: object, retry: str) -> None:
    error = refusal(status, {"retry-after": retry}, body, Origin("http://h/v1", "m", KEY, "the request"))
    assert isinstance(error, KuwaError)
    assert 400 <= error.status < 600
    assert len(error.message) < MAX_WORDS + 300
    assert KEY not in error.message
    assert error.body()
