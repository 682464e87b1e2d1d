"""`--engine vllm`: a vLLM server of the executor's own, here a small program that speaks as one."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from calls import chat, chat_text, old_chat, post_json, stream_chat
from processes import REPOSITORY, Executor, Kernel, Stage, until


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH on which there is a command `vllm`."""
    folder = tmp_path_factory.mktemp("bin")
    command = folder / "vllm"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} {REPOSITORY / "tests" / "fakes" / "vllm.py"} "$@"\n')
    command.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def start(stage: Stage, path: str, kernel: Kernel | None, *more: str, wait: bool = True) -> Executor:
    argv = ("--engine", "vllm", "--model_path", "owner/model", "--temperature", "0.5", *more)
    return stage.executor("huggingface", *argv, kernel=kernel, access_code="far", wait=wait, PATH=path)


@pytest.fixture(scope="module")
def executor(shared_stage: Stage, shared_kernel: Kernel, path: str) -> Executor:
    more = ("--max_batch_tokens", "2048", "--log", "DEBUG", "--system_prompt", "Be brief.")
    return start(shared_stage, path, shared_kernel, *more)


def test_answers_come_back_as_vllm_gives_them(executor: Executor, shared_kernel: Kernel) -> None:
    text = chat_text(shared_kernel.url, "far", "tell me", top_k=3, seed=7, max_tokens=5)
    said, _, asked = text.partition(" 海🌊 ")
    assert said == "tell me"
    expected = {"temperature": 0.5, "top_k": 3, "seed": 7, "max_tokens": 5, "model": "model", "stream": True}
    assert json.loads(asked).items() >= expected.items()
    with stream_chat(shared_kernel.url, "far", "tell me", top_k=3, seed=7, max_tokens=5) as stream:
        assert stream.text() == text
    assert chat(shared_kernel.url, "far", "tell me").json()["usage"]["completion_tokens"] == 3
    assert "--max-num-seqs 16 --dtype auto --max-num-batched-tokens 2048" in executor.process.log
    completion = post_json(shared_kernel.url + "/v1/completions", {"model": "far", "prompt": "go on"})
    assert completion.json()["choices"][0]["text"].startswith("go on 海🌊")


def test_what_vllm_refuses_is_said_and_old_turns_are_left_out_where_that_is_the_custom(
    executor: Executor, shared_kernel: Kernel
) -> None:
    refused = chat(shared_kernel.url, "far", "word " * 80)
    assert (refused.status, refused.error["code"]) == (400, "context_length_exceeded")
    assert "maximum context length is 64" in refused.error["message"]
    refused = chat(shared_kernel.url, "far", "hi", typical_p=0.5)
    assert (refused.status, refused.error["param"]) == (400, "typical_p")
    history = [{"msg": "word " * 60, "isbot": False}, {"msg": "yes", "isbot": True}, {"msg": "and now", "isbot": False}]
    with old_chat(shared_kernel.url, "far", "", input=json.dumps(history)) as stream:
        assert stream.read().decode().startswith("and now 海🌊")


def test_a_server_that_dies_is_started_again(executor: Executor, shared_kernel: Kernel) -> None:
    with stream_chat(executor.url, "far", "die") as stream:
        assert "engine_lost" in stream.read().decode()
    until(lambda: chat(executor.url, "far", "again").status == 200, "it was started again", timeout_s=30)
    until(lambda: shared_kernel.ready("far"), "the kernel knows it")
    assert chat_text(shared_kernel.url, "far", "again").startswith("again 海🌊")


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_however_the_executor_ends_its_server_ends_too(stage: Stage, path: str, ending: signal.Signals) -> None:
    executor = start(stage, path, None)
    family = executor.process.family()
    assert len(family) >= 2
    executor.process.send(ending)
    executor.process.wait(20)
    until(lambda: not executor.process.family(), "all of its processes ended", timeout_s=10)


def test_a_model_that_vllm_cannot_load_is_one_clear_line(stage: Stage, path: str) -> None:
    executor = start(stage, path, None, "--model_path", "owner/broken", wait=False)
    executor.process.wait(60)
    assert executor.process.exit_code == 4
    assert "vLLM could not load owner/broken: ValueError: its weights are no weights" in executor.process.log
    assert "Traceback" not in executor.process.log


def test_where_vllm_is_not_installed_the_line_that_installs_it_is_named(stage: Stage, tmp_path: Path) -> None:
    executor = start(stage, str(tmp_path), None, wait=False)
    executor.process.wait(60)
    assert executor.process.exit_code == 4
    assert executor.process.log.count("pip install vllm") == 1
    assert "Traceback" not in executor.process.log
