"""llamacpp with real GGUFs that llama.cpp runs: what arrives, what is given up, and what dies."""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil
import pytest

from calls import chat, chat_text, fetch, old_chat, post_json, stream_chat
from kuwa.builtin.llamacpp.child import Adapter, ChildConfig, server_arguments
from kuwa.builtin.llamacpp.engine import Engine
from kuwa.builtin.llamacpp.maker import GUIDE_FILE, make_scripted, make_tiny, make_welcome
from kuwa.executor.supervision import LoadFailed
from kuwa.wire.errors import EngineLost
from processes import REPOSITORY, Executor, Kernel, Process, Stage, until

pytestmark = pytest.mark.anyio

POEM = "春眠不覺曉，處處聞啼鳥。🐦 夜來風雨聲，花落知多少？🌸\n「台灣黑熊」👨‍👩‍👧‍👦 與 𠮷野家、ㄅㄆㄇ、Ａ１：\t結束。\n"
LONG = "".join(f"第{i}句：the quick brown fox 🦊 jumps over the lazy dog.\n" for i in range(400))
CLIENTS = 8
SLOT_FREE_S = 0.200
LOAD_FAILED = 4


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_scripted(folder / "poem.gguf", POEM)
    make_scripted(folder / "long.gguf", LONG, context=16384)
    make_tiny(folder / "tiny.gguf")
    return folder


def start(stage: Stage, model: Path, *flags: str, kernel: Kernel | None = None, **how: Any) -> Executor:
    return stage.executor("llamacpp", "--model_path", str(model), *flags, kernel=kernel, access_code="m", **how)


@pytest.fixture(scope="module")
def poem(shared_stage: Stage, models: Path) -> Executor:
    return start(shared_stage, models / "poem.gguf")


@pytest.fixture
def long(stage: Stage, models: Path) -> Executor:
    return start(stage, models / "long.gguf", "--context_window", "16384")


def child_of(executor: Executor) -> psutil.Process:
    """The engine's process; waits until there is one."""
    parent = psutil.Process(executor.process.pid)
    (child,) = until(parent.children, "the executor had a child")
    return child


def usage(url: str, text: str, **parameters: Any) -> dict[str, Any]:
    return chat(url, "m", text, max_tokens=1, **parameters).json()["usage"]


# What arrives


def test_a_scripted_answer_arrives_byte_for_byte_streamed_and_not(poem: Executor) -> None:
    assert chat_text(poem.url, "m", "hi") == POEM
    with stream_chat(poem.url, "m", "hi") as stream:
        assert stream.text() == POEM


def test_eight_clients_at_once_through_a_kernel_each_get_the_whole_answer(
    shared_stage: Stage, shared_kernel: Kernel, models: Path
) -> None:
    start(shared_stage, models / "poem.gguf", kernel=shared_kernel)

    def ask(index: int) -> str:
        if index % 2:
            return chat_text(shared_kernel.url, "m", f"question {index}")
        with stream_chat(shared_kernel.url, "m", f"question {index}") as stream:
            return stream.text()

    with ThreadPoolExecutor(CLIENTS) as clients:
        assert list(clients.map(ask, range(CLIENTS))) == [POEM] * CLIENTS


def test_the_welcome_model_answers_with_its_guide(stage: Stage, tmp_path: Path) -> None:
    make_welcome(tmp_path / "welcome.gguf")
    executor = stage.executor("llamacpp", "--model_path", str(tmp_path / "welcome.gguf"), kernel=None)
    assert chat_text(executor.url, "gguf", "What now?", temperature=1.5) == GUIDE_FILE.read_text(encoding="utf-8")


def test_usage_stop_and_max_tokens_are_llama_cpps_own(poem: Executor) -> None:
    whole = chat(poem.url, "m", "hi").json()
    assert whole["choices"][0]["finish_reason"] == "stop"
    assert whole["usage"]["completion_tokens"] > 10
    cut = chat(poem.url, "m", "hi", max_tokens=4).json()
    assert cut["choices"][0]["finish_reason"] == "length"
    assert cut["usage"]["completion_tokens"] == 4
    assert POEM.startswith(cut["choices"][0]["message"]["content"])
    assert chat_text(poem.url, "m", "hi", stop=["聞啼"]) == POEM.partition("聞啼")[0]


def test_an_option_that_does_not_fit_is_named(poem: Executor) -> None:
    answer = chat(poem.url, "m", "hi", temperature="hot")
    assert answer.status == 400
    assert answer.error["param"] == "temperature"


def test_a_plain_completion_is_answered(poem: Executor) -> None:
    answer = post_json(poem.url + "/v1/completions", {"model": "m", "prompt": "Once", "temperature": 0})
    assert answer.status == 200, answer
    assert answer.json()["choices"][0]["text"] == POEM


def test_system_prompt_and_template_of_the_command_line_are_in_the_models_prompt(stage: Stage, models: Path) -> None:
    """Seen by its length: of these characters every byte is a token of its own."""
    template = "§{{ messages[0].content }}§{{ messages[-1].content }}"
    executor = start(stage, models / "poem.gguf", "--system_prompt", "¶¶¶¶¶", "--override_chat_template", template)
    prompt = "§¶¶¶¶¶§÷÷÷".encode()
    assert usage(executor.url, "÷÷÷")["prompt_tokens"] == len(prompt)
    own = {"messages": [{"role": "system", "content": "¶"}, {"role": "user", "content": "÷"}]}
    answer = post_json(executor.url + "/v1/chat/completions", {"model": "m", "max_tokens": 1, **own}).json()
    assert answer["usage"]["prompt_tokens"] == len("§¶§÷".encode())


# A llama-server of the machine's


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """A program that understands llama-server's command line; the engine in it is the real one."""
    path = tmp_path / "bin" / "llama-server"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {REPOSITORY / "tests" / "fakes" / "llama_server.py"} "$@"\n')
    path.chmod(0o755)
    return path


def test_a_llama_server_of_the_machines_does_the_same(stage: Stage, models: Path, server: Path) -> None:
    executor = start(stage, models / "poem.gguf", "--llama_server", str(server))
    assert f"llama.cpp is {server}" in executor.process.log
    assert chat_text(executor.url, "m", "hi") == POEM
    with stream_chat(executor.url, "m", "hi") as stream:
        assert stream.text() == POEM
    (engine,) = child_of(executor).children()
    assert not any("api" in word and "key" in word for word in engine.cmdline())
    engine.kill()
    until(lambda: _failure(executor.url), "a request was refused")
    (engine,) = until(lambda: _below_child(executor), "the engine was started again", timeout_s=30)
    until(lambda: chat(executor.url, "m", "hi", max_tokens=1).status == 200, "the engine was back", timeout_s=30)
    executor.process.kill()
    until(lambda: not psutil.pid_exists(engine.pid) or engine.status() == psutil.STATUS_ZOMBIE, "it was gone too")


def _below_child(executor: Executor) -> list[psutil.Process]:
    """The llama-server processes; none while they come and go."""
    try:
        return child_of(executor).children()
    except psutil.NoSuchProcess:
        return []


def test_a_llama_server_that_is_installed_is_only_mentioned_unless_asked_for(
    stage: Stage, models: Path, server: Path
) -> None:
    path = {"PATH": f"{server.parent}:{os.environ['PATH']}"}
    unasked = start(stage, models / "poem.gguf", **path)
    assert "--llama_server auto would use it" in unasked.process.log
    asked = start(stage, models / "poem.gguf", "--llama_server", "auto", **path)
    assert f"llama.cpp is {server}" in asked.process.log
    assert chat_text(asked.url, "m", "hi") == POEM


def test_a_llama_server_that_refuses_the_model_ends_the_start(stage: Stage, models: Path, server: Path) -> None:
    server.write_text("#!/bin/sh\necho '0.1 E this build knows no such model' >&2\nexit 1\n")
    process = ended(stage, "--model_path", str(models / "tiny.gguf"), "--llama_server", str(server))
    assert process.exit_code == LOAD_FAILED, process.log
    assert "this build knows no such model" in process.log


def test_the_command_line_of_a_llama_server_says_everything() -> None:
    config = ChildConfig(
        model_path="m.gguf",
        context=100,
        slots=3,
        threads=2,
        gpu_layers=-1,
        draft_model="d.gguf",
        adapters=[Adapter("a.gguf", 0.5)],
        projector="p.gguf",
        pooling="mean",
        embedding=True,
        tensor_split=[3, 1],
    )
    line = " ".join(server_arguments(config, 1234))
    for part in ("--ctx-size 300", "--parallel 3", "--lora-scaled a.gguf:0.5", "--spec-draft-model d.gguf"):
        assert part in line
    for part in ("--mmproj p.gguf", "--embeddings", "--pooling mean", "--tensor-split 3,1", "--port 1234"):
        assert part in line
    assert "--n-gpu-layers" not in line  # llama-server's own default: what fits


# What is too long


def test_a_prompt_beyond_the_context_is_refused_in_the_openai_dialect(poem: Executor) -> None:
    answer = chat(poem.url, "m", "÷" * 3000)
    assert answer.status == 400
    assert answer.error["code"] == "context_length_exceeded"


def test_a_limit_holds_for_prompts(stage: Stage, models: Path) -> None:
    executor = start(stage, models / "poem.gguf", "--limit", "100")
    assert chat(executor.url, "m", "÷" * 20).status == 200
    answer = chat(executor.url, "m", "÷" * 60)
    assert answer.error["code"] == "context_length_exceeded"
    assert "100" in answer.error["message"]


def test_a_long_v1_0_conversation_loses_its_oldest_turns(
    shared_stage: Stage, shared_kernel: Kernel, models: Path
) -> None:
    model = str(models / "poem.gguf")
    shared_stage.executor("llamacpp", "--model_path", model, kernel=shared_kernel, access_code="trims")
    turns = [{"msg": f"{i} " + "÷" * 200, "isbot": bool(i % 2)} for i in range(41)]
    with old_chat(shared_kernel.url, "trims", "", input=json.dumps(turns)) as stream:
        assert stream.read().decode() == POEM


# What is given up


def test_a_closed_connection_frees_the_only_slot_within_200_ms(stage: Stage, models: Path) -> None:
    """The child has one slot: the next answer cannot begin before it is free."""
    executor = start(stage, models / "long.gguf", "--concurrency", "1", "--context_window", "16384")
    times: list[float] = []
    for _ in range(5):
        with stream_chat(executor.url, "m", "hi") as given_up:
            given_up.first_text()
        begun = time.monotonic()
        until(lambda: _first_text(executor.url), "the next answer began", timeout_s=5, every_s=0.002)
        times.append(time.monotonic() - begun)
    sys.stdout.write(f"next answer began after {[round(t * 1000) for t in times]} ms\n")
    assert statistics.median(times) <= SLOT_FREE_S


def _first_text(url: str) -> str:
    with stream_chat(url, "m", "hi") as stream:
        return stream.first_text() if stream.status == 200 else ""


async def test_closing_the_events_frees_the_childs_slot_within_200_ms(models: Path) -> None:
    async with _Running(models / "long.gguf") as engine:
        times: list[float] = []
        for _ in range(5):
            async with aclosing(engine.events("/v1/chat/completions", _ask("hi"))) as events:
                await anext(events)
                assert await _busy(engine) == 1
            begun = time.monotonic()
            while await _busy(engine):
                assert time.monotonic() - begun < 5
            times.append(time.monotonic() - begun)
        sys.stdout.write(f"the child's slot was free after {[round(t * 1000, 1) for t in times]} ms\n")
        assert statistics.median(times) <= SLOT_FREE_S


class _Running:
    """An engine for the time of a block."""

    def __init__(self, model: Path, slots: int = 2) -> None:
        self._engine = Engine(ChildConfig(model_path=str(model), context=8192, slots=slots, threads=1))

    async def __aenter__(self) -> Engine:
        await self._engine.start()
        return self._engine

    async def __aexit__(self, *_: object) -> None:
        pid = self._engine.pid
        await self._engine.stop()
        assert pid is not None
        assert not psutil.pid_exists(pid)


def _ask(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "stream": True}


async def _busy(engine: Engine) -> int:
    return sum(slot["is_processing"] for slot in await engine.get("/slots"))


def test_nobody_else_on_the_machine_can_use_the_child(poem: Executor) -> None:
    (listening,) = [c.laddr for c in child_of(poem).net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert listening.ip == "127.0.0.1"
    for path in ("/slots", "/props", "/v1/chat/completions"):
        assert fetch(f"http://127.0.0.1:{listening.port}{path}").status == 401


# What dies


def test_a_killed_engine_is_a_typed_error_and_the_next_request_works(long: Executor) -> None:
    with stream_chat(long.url, "m", "hi") as stream:
        stream.first_text()
        child_of(long).kill()
        (error,) = [event["error"] for event in stream.events() if "error" in event]
    assert error["code"] == "engine_lost"
    assert error["type"] == "upstream_error"
    until(lambda: chat(long.url, "m", "hi", max_tokens=3).status == 200, "the engine was back", every_s=0.05)


def test_a_killed_engine_is_a_502_for_a_request_that_is_not_streamed(long: Executor) -> None:
    child = child_of(long)
    idle = child.cpu_times().user
    with ThreadPoolExecutor(1) as client:
        asked = client.submit(chat, long.url, "m", "hi")
        until(lambda: child.cpu_times().user > idle + 0.05, "the engine was at work")
        child.kill()
        answer = asked.result(timeout=10)
    assert answer.status == 502
    assert answer.error["code"] == "engine_lost"


def test_while_the_engine_is_down_requests_fail_at_once_and_health_says_so(long: Executor) -> None:
    child_of(long).kill()
    refused = until(lambda: _failure(long.url), "a request was refused")
    assert refused["code"] == "engine_lost"
    until(lambda: fetch(long.url + "/health").status == 204, "the engine was back")


def _failure(url: str) -> dict[str, Any] | None:
    answer = chat(url, "m", "hi", max_tokens=1)
    return None if answer.status == 200 else answer.error


def test_through_a_kernel_a_killed_engine_is_a_typed_error_too(stage: Stage, kernel: Kernel, models: Path) -> None:
    executor = start(stage, models / "long.gguf", "--context_window", "16384", kernel=kernel)
    with stream_chat(kernel.url, "m", "hi") as stream:
        stream.first_text()
        child_of(executor).kill()
        (error,) = [event["error"] for event in stream.events() if "error" in event]
    assert error["code"] == "engine_lost"
    until(lambda: chat(kernel.url, "m", "hi", max_tokens=3).status == 200, "the engine was back", every_s=0.1)


def test_the_child_dies_with_a_parent_that_is_killed(stage: Stage, models: Path) -> None:
    executor = start(stage, models / "tiny.gguf")
    child = child_of(executor)
    executor.process.kill()
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the child was gone", timeout_s=2)


def test_an_engine_that_cannot_be_loaded_again_is_given_up_with_its_reason(stage: Stage, tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    make_tiny(model)
    executor = start(stage, model)
    child = child_of(executor)
    model.unlink()
    child.kill()
    refused = until(lambda: _failure(executor.url), "a request was refused")
    assert refused["code"] == "engine_lost"
    assert executor.process.wait(60) == LOAD_FAILED
    (line,) = [line for line in executor.process.log.splitlines() if line.startswith("kuwa-executor llamacpp: ")]
    assert "given up after 8 starts" in line
    assert "No such file" in line or "failed to open" in line


async def test_an_engine_that_cannot_be_started_again_says_why(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    make_tiny(model)
    async with _Running(model) as engine:
        model.unlink()
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineLost):
            async for _ in engine.events("/v1/chat/completions", _ask("hi")):
                pass


# What cannot be served


def garbage(path: Path, sound: bytes) -> None:
    path.write_bytes(b"\x93\x07" * 5000)


def empty(path: Path, sound: bytes) -> None:
    path.touch()


def truncated(path: Path, sound: bytes) -> None:
    path.write_bytes(sound[: len(sound) * 2 // 3])


def missing(path: Path, sound: bytes) -> None:
    pass


def unknown_architecture(path: Path, sound: bytes) -> None:
    path.write_bytes(sound.replace(b"llama.", b"zebra.").replace(b"llama", b"zebra", 1))


def without_a_tensor(path: Path, sound: bytes) -> None:
    path.write_bytes(sound.replace(b"blk.1.attn_q.weight", b"blk.1.attn_x.weight"))


BAD = {
    garbage: "no GGUF file",
    empty: "is empty",
    truncated: "cut off",
    missing: "There is no file",
    unknown_architecture: "unknown model architecture: 'zebra'",
    without_a_tensor: "'blk.1.attn_q.weight' not found",
}


def ended(stage: Stage, *flags: str) -> Process:
    executor = stage.executor("llamacpp", *flags, kernel=None, wait=False)
    executor.process.wait()
    return executor.process


@pytest.mark.parametrize("damage", BAD, ids=lambda damage: damage.__name__)
def test_a_file_that_cannot_be_served_ends_the_start_with_one_clear_line(
    stage: Stage, models: Path, tmp_path: Path, damage: Callable[[Path, bytes], None]
) -> None:
    path = tmp_path / "model.gguf"
    damage(path, (models / "tiny.gguf").read_bytes())
    process = ended(stage, "--model_path", str(path))
    assert process.exit_code == LOAD_FAILED, process.log
    (line,) = [line for line in process.log.splitlines() if BAD[damage] in line]
    assert str(path) in line


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--override_chat_template", "chatml2"], "no template"),
        (["--override_chat_template", "{{ 'hello' }}"], "leaves out what the user says"),
        (["--override_chat_template", "{% for"], "Unexpected EOF"),
        (["--context_window", "0"], "--context_window is 0"),
    ],
)
def test_an_option_that_cannot_be_meant_ends_the_start(
    stage: Stage, models: Path, flags: list[str], words: str
) -> None:
    process = ended(stage, "--model_path", str(models / "tiny.gguf"), *flags)
    assert process.exit_code == LOAD_FAILED, process.log
    assert words in process.log


async def test_a_model_that_llama_cpp_refuses_is_a_load_failure_with_its_reason(models: Path, tmp_path: Path) -> None:
    unknown_architecture(tmp_path / "zebra.gguf", (models / "tiny.gguf").read_bytes())
    with pytest.raises(LoadFailed, match="unknown model architecture: 'zebra'"):
        async with _Running(tmp_path / "zebra.gguf"):
            pass
