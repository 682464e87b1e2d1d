"""What a replica's refusal means."""

from __future__ import annotations

import json

import pytest

from kuwa.kernel.refusals import error_from_answer
from kuwa.wire.errors import BadUpstream
from kuwa.wire.redaction import Redactor


@pytest.mark.parametrize(("status", "elsewhere"), [(400, False), (404, False), (429, True), (500, True), (503, True)])
def test_a_replicas_error_keeps_its_status_and_words(status: int, elsewhere: bool) -> None:
    body = b'{"error":{"message":"because","type":"t","param":"p","code":"c"}}'
    error, retry = error_from_answer(status, body, "The executor")
    assert (error.status, error.type, error.param, error.code, str(error)) == (status, "t", "p", "c", "because")
    assert retry is elsewhere
    assert (error.retry_after_s is not None) == (status in (429, 503))


def test_a_replicas_retry_after_reaches_the_client() -> None:
    body = b'{"error":{"message":"slow down"}}'
    assert error_from_answer(429, body, "x", b"17")[0].retry_after_s == 17
    assert error_from_answer(429, body, "x", b"Wed, 21 Oct")[0].retry_after_s == 1


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"detail":"x"}', b'{"error":"x"}', b"\xff"])
def test_an_error_in_no_known_shape_becomes_bad_upstream(body: bytes) -> None:
    error, retry = error_from_answer(500, body, "The executor at http://a")
    assert isinstance(error, BadUpstream)
    assert "http://a" in str(error)
    assert "500" in str(error)
    assert retry


def test_a_redirect_is_not_followed_and_no_success() -> None:
    error, _ = error_from_answer(302, b'{"error":{"message":"x"}}', "The executor")
    assert isinstance(error, BadUpstream)


def test_what_a_replica_says_is_passed_on_without_the_key_in_any_of_its_parts() -> None:
    key = "upstream-key-Qw83nZ"
    parts = {"message": f"no such token {key}", "type": f"{key}_error", "param": key[:-2], "code": f"for_{key}"}
    error, _ = error_from_answer(401, json.dumps({"error": parts}).encode(), "far", hide=Redactor(key))
    assert error.payload()["error"] == {"message": "no such token ***", "type": "***", "param": "***", "code": "***"}
    assert str(error) == "no such token ***"


def test_a_code_that_every_client_knows_stays_though_the_placeholder_for_a_key_is_like_it() -> None:
    body = b'{"error": {"message": "no", "type": "invalid_request_error", "code": "invalid_api_key"}}'
    error, _ = error_from_answer(401, body, "far", hide=Redactor("my_invalid_api_key"))
    assert (error.type, error.code) == ("invalid_request_error", "invalid_api_key")


def test_a_body_that_is_no_error_is_shown_without_the_key_that_is_cut_at_its_end() -> None:
    key = "upstream-key-Qw83nZ"
    error, _ = error_from_answer(500, b"x " * 97 + key.encode(), "far", hide=Redactor(key))
    assert "upst" not in error.message
