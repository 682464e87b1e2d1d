"""Requests on their way between the wires, and what a replica's refusal means."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from kuwa.kernel.translate import (
    body_for_upstream,
    brought_keys,
    error_from_answer,
    form_from_openai,
    without_provider_key,
)
from kuwa.wire.errors import BadUpstream, Unsupported
from kuwa.wire.redaction import Redactor


def test_an_openai_body_becomes_the_form_of_the_old_wire() -> None:
    body = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": "Really."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c"},
            {"role": "user", "content": "d"},
        ],
        "temperature": 0.5,
        "max_tokens": 7,
        "response_format": {"type": "text"},
    }
    form = form_from_openai(msgspec.json.encode(body), "old", "-3", "0")
    assert json.loads(form["input"]) == [
        {"msg": "ab", "isbot": False},
        {"msg": "c", "isbot": True},
        {"msg": "d", "isbot": False},
    ]
    assert json.loads(form["modelfile"]) == [
        {"name": "system", "args": "Be brief."},
        {"name": "system", "args": "Really."},
        {"name": "parameter", "args": "llm_temperature 0.5"},
        {"name": "parameter", "args": "llm_max_tokens 7"},
    ]
    assert (form["name"], form["history_id"], form["user_id"]) == ("old", "-3", "0")


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [{}]},
        {"response_format": {"type": "json_object"}},
        {"n": 2},
        {"logprobs": True},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
    ],
    ids=lambda more: next(iter(more)),
)
def test_what_the_old_wire_cannot_carry_is_refused_with_its_name(more: dict[str, Any]) -> None:
    with pytest.raises(Unsupported) as caught:
        form_from_openai(msgspec.json.encode({"messages": [], **more}), "old", "-3", "0")
    assert caught.value.param == next(iter(more))


def test_a_body_for_an_upstream_has_its_model_and_nothing_of_ours() -> None:
    modelfile = json.dumps(
        [
            {"name": "system", "args": "Be brief."},
            {"name": "parameter", "args": "llm_temperature 0.5"},
            {"name": "parameter", "args": "llm_stop END"},
            {"name": "parameter", "args": "other 1"},
        ]
    )
    extension = {"form": {"modelfile": modelfile, "openai_token": "sk-secret"}}
    body = {
        "model": "a",
        "messages": [{"role": "user", "content": "hi"}],
        "big": 12345678901234567890,
        "kuwa": extension,
    }
    sent = body_for_upstream(json.dumps(body).encode(), "google/gemma")
    assert json.loads(sent) == {
        "model": "google/gemma",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
        "big": 12345678901234567890,
        "temperature": 0.5,
        "stop": "END",
    }
    assert b"sk-secret" not in sent


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


def test_the_keys_that_a_request_brings_are_found_and_stay_away_from_servers_of_others() -> None:
    lines = b"accept-language: de\r\nx-kuwa-provider-key: sk-a\r\nx-request-id: 1\r\n"
    assert brought_keys(lines, {"openai_token": "sk-b", "input": "[]"}) == ["sk-a", "sk-b"]
    assert brought_keys(b"", None) == []
    assert without_provider_key(lines) == b"accept-language: de\r\nx-request-id: 1\r\n"
