"""Servers behind `--upstream` whose answers are odd or broken: every client is answered at once."""

from __future__ import annotations

import socket
import sys
import time

import pytest

from calls import DONE, chat, old_chat, stream_chat
from processes import REPOSITORY, Kernel, Stage, until

HOSTILE = str(REPOSITORY / "tests" / "fakes" / "hostile_upstream.py")


def kernel_before(stage: Stage, kind: str) -> Kernel:
    port = stage.port()
    process = stage.process([sys.executable, HOSTILE, str(port), kind], name=f"hostile-{kind}")

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    process.wait_for(listens, "it listened")
    kernel = stage.kernel("--upstream", f"odd=http://127.0.0.1:{port}/v1")
    until(lambda: kernel.ready("odd"), "it was ready")
    return kernel


@pytest.mark.parametrize("kind", ["deep_first_event", "deep_error", "deep_whole", "bad_utf8", "wrong_types"])
def test_an_answer_that_cannot_be_read_is_a_bad_upstream_at_once(stage: Stage, kind: str) -> None:
    kernel = kernel_before(stage, kind)
    began = time.monotonic()
    answer = chat(kernel.url, "odd", "hi", stream=kind not in ("deep_error", "deep_whole"))
    assert (answer.status, answer.error["code"]) == (502, "bad_upstream")
    assert time.monotonic() - began < 5
    until(lambda: kernel.idle("odd"), "the slot was free")
    assert "Traceback" not in kernel.process.log


def test_an_event_that_cannot_be_read_ends_a_stream_that_has_begun(stage: Stage) -> None:
    kernel = kernel_before(stage, "deep_event")
    began = time.monotonic()
    with stream_chat(kernel.url, "odd", "hi") as stream:
        assert b"bad_upstream" in stream.read()
    assert time.monotonic() - began < 5
    assert "Traceback" not in kernel.process.log


@pytest.mark.parametrize("kind", ["byte_order_mark", "carriage_returns", "no_type", "nulls"])
def test_an_odd_stream_is_a_stream(stage: Stage, kind: str) -> None:
    kernel = kernel_before(stage, kind)
    with old_chat(kernel.url, "odd", "hi") as raw:
        assert raw.read() == b"word "
    with stream_chat(kernel.url, "odd", "hi") as stream:
        assert (stream.header("content-type") or "").startswith("text/event-stream")
        assert list(stream.datas())[-1] == DONE
    until(lambda: kernel.idle("odd"), "the slot was free")
