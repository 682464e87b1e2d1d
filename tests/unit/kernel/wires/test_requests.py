"""Requests in the wire of the replica that they are sent to."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from kuwa.kernel.wires.openai import body_for_upstream
from kuwa.kernel.wires.v1 import form_from_openai
from kuwa.wire.errors import Unsupported


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
