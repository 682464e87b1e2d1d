"""`--upstream`: a server that the kernel asks itself whether it works, and that it says so about when it does not."""

from __future__ import annotations

import base64
import sys
from urllib.parse import quote

import pytest

from calls import chat, chat_text, stream_chat
from processes import REPOSITORY, Process, Stage, until
from providers import start_provider

KEY = "up/Canary+7fQ2-xk93="
FAKE_SERVER = REPOSITORY / "tests" / "fakes" / "openai_server.py"


def start_far(stage: Stage, port: int, *flags: str) -> Process:
    process = stage.process([sys.executable, str(FAKE_SERVER), "--port", str(port), *flags], name="openai_server")
    process.wait_for(lambda: process.log.partition("\n")[0], "it said its URL")
    return process


def test_one_that_comes_up_later_is_served_then(stage: Stage) -> None:
    port = stage.port()
    kernel = stage.kernel("--upstream", f"far=http://127.0.0.1:{port}/v1#fake-1")
    error = chat(kernel.url, "far", "hi")
    assert (error.status, error.error["code"]) == (503, "no_replica")
    assert kernel.codes() == []
    start_far(stage, port)
    until(lambda: kernel.ready("far"), "a poll found it")
    assert chat_text(kernel.url, "far", "hi") == "hi"
    assert kernel.idle("far")


def test_one_that_refuses_the_key_is_not_served_and_the_error_says_why(stage: Stage) -> None:
    port = stage.port()
    start_far(stage, port, "--api_key", "right")
    kernel = stage.kernel("--upstream", f"far=http://127.0.0.1:{port}/v1", KUWA_UPSTREAM_KEY_FAR="wrong")
    until(lambda: "401" in kernel.replicas("far")[0]["note"], "a poll was refused")
    answer = chat(kernel.url, "far", "hi")
    assert answer.status == 503
    assert "401" in answer.error["message"]
    assert "wrong" not in kernel.process.log


def test_a_users_key_for_some_provider_does_not_reach_it(stage: Stage) -> None:
    far = start_provider(stage, "openai_server")
    kernel = stage.kernel("--upstream", f"far={far.base_url}", KUWA_UPSTREAM_KEY_FAR="sk-operators")
    until(lambda: kernel.ready("far"), "it was ready")
    chat(kernel.url, "far", "hi", {"x-kuwa-provider-key": "sk-users-own-2b7", "x-request-id": "mine"})
    assert far.last["headers"]["authorization"] == "Bearer sk-operators"
    assert far.last["headers"]["x-request-id"] == "mine"
    assert "sk-users-own-2b7" not in str(far.last)


@pytest.mark.parametrize(
    "form", [KEY, KEY[2:-1], base64.b64encode(f"Bearer {KEY}".encode()).decode(), quote(KEY, safe="")]
)
def test_one_that_repeats_its_key_is_quoted_without_it(stage: Stage, form: str) -> None:
    far = start_provider(stage, "openai_server")
    kernel = stage.kernel("--upstream", f"far={far.base_url}", KUWA_UPSTREAM_KEY_FAR=KEY)
    until(lambda: kernel.ready("far"), "it was ready")
    fate = {"message": f"Invalid token: {form}, sorry", "code": form}
    refused = chat(kernel.url, "far", "hi", fake={**fate, "status": 401})
    assert refused.error["message"] == "Invalid token: ***, sorry"
    whole = chat(kernel.url, "far", "hi", fake={**fate, "error_after": 0})
    assert (whole.status, whole.error["message"]) == (502, "Invalid token: ***, sorry")
    broken = chat(kernel.url, "far", "hi", fake={**fate, "status": 500})
    with stream_chat(kernel.url, "far", "one two three", fake={**fate, "error_after": 1}) as stream:
        streamed = stream.read().decode()
    assert "***, sorry" in streamed
    for shown in (
        refused.text,
        broken.text,
        streamed,
        whole.text,
        kernel.process.log,
        kernel.get("/v1.0/worker/debug").text,
    ):
        assert form not in shown
    assert "***, sorry" in kernel.process.log


def test_one_that_dies_is_left_alone_until_it_is_back(stage: Stage) -> None:
    port = stage.port()
    flags = ["--upstream", f"far=http://127.0.0.1:{port}/v1#fake-1"]
    far = start_far(stage, port)
    kernel = stage.kernel(*flags)
    until(lambda: kernel.ready("far"), "it was ready")
    far.stop()
    until(lambda: kernel.replicas("far")[0]["state"] == "ejected", "two polls failed", timeout_s=20)
    answer = chat(kernel.url, "far", "hi")
    assert (answer.status, answer.error["code"]) == (503, "no_replica")
    assert "cannot be reached" in answer.error["message"]
    start_far(stage, port)
    until(lambda: kernel.ready("far"), "a poll found it again")
    assert chat_text(kernel.url, "far", "hi") == "hi"


def test_what_it_makes_up_cannot_spoil_the_metrics(stage: Stage) -> None:
    port = stage.port()
    start_far(stage, port)
    kernel = stage.kernel("--upstream", f"far=http://127.0.0.1:{port}/v1#fake-1")
    until(lambda: kernel.ready("far"), "it was ready")
    for number in range(5):
        assert chat(kernel.url, "far", "x", fake={"status": 404, "code": f"made_up_{number}"}).status == 404
    assert kernel.metric("kuwa_requests_total", access_code="far", outcome="other") == 5
    assert "made_up" not in kernel.get("/metrics").text
    for count in (-5000, 2**53 + 1, 10**600):
        usage = {"prompt_tokens": count, "completion_tokens": 2, "total_tokens": 2}
        with stream_chat(kernel.url, "far", "hi", fake={"usage": False, "extra": {"usage": usage}}) as stream:
            assert b"[DONE]" in stream.read()
    assert kernel.metric("kuwa_requests_total", access_code="far", outcome="ok") == 3
    assert kernel.metric("kuwa_tokens_total", access_code="far", kind="prompt") == 0
    assert kernel.metric("kuwa_tokens_total", access_code="far", kind="completion") == 6
