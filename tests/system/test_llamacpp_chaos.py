"""llamacpp while everything dies: its child killed under load, and files that were damaged.

Short in the gate; `make chaos` runs them at full length, by the environment variables `KILLS` and `MUTANTS`.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from pathlib import Path
from random import Random

import psutil
import pytest

from calls import chat, fetch, stream_chat
from kuwa.builtin.llamacpp.maker import make_scripted, make_tiny
from mutation import mutated
from processes import Executor, Kernel, Stage, until

KILLS = int(os.environ.get("KILLS", "8"))
MUTANTS = int(os.environ.get("MUTANTS", "8"))
TEXT = "".join(f"第{i}句：the quick brown fox 🦊 jumps over the lazy dog.\n" for i in range(120))
CLIENTS = 4
ANSWER_TIMEOUT_S = 60.0
LOAD_FAILED = 4
TYPED = {"engine_lost", "upstream_lost", "no_replica", "bad_upstream", "queue_full"}
TYPED |= {"request_quarantined"}  # of a request whose second engine was killed too

pytestmark = pytest.mark.timeout(60 + 6 * KILLS + 10 * MUTANTS)


class Client(threading.Thread):
    """Asks without end, every other time for a stream, and writes down how each answer ended."""

    def __init__(self, url: str, seed: int, enough: threading.Event) -> None:
        super().__init__()
        self.url, self.enough = url, enough
        self.random = Random(seed)  # noqa: S311 - no secret
        self.ended: dict[str, int] = {}
        self.wrong: list[str] = []
        self.longest_s = 0.0
        self.asked = 0

    def run(self) -> None:
        while not self.enough.is_set():
            began = time.monotonic()
            self.asked += 1
            try:
                how = self._stream() if self.random.random() < 0.7 else self._whole()
            except (OSError, http.client.HTTPException, AssertionError, ValueError) as error:
                how = "wrong"
                self.wrong.append(repr(error))
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            self.ended[how] = self.ended.get(how, 0) + 1
            if how != "whole":
                self.enough.wait(0.05)

    def _stream(self) -> str:
        tokens = self.random.choice([20, 4000])
        with stream_chat(self.url, "m", self._question(), max_tokens=tokens) as stream:
            if stream.status != 200:
                return self._refused(json.loads(stream.read()))
            text, reason = "", ""
            for event in stream.events():
                if "error" in event:
                    return self._refused(event)
                for choice in event["choices"]:
                    text += choice["delta"].get("content") or ""
                    reason = choice["finish_reason"] or reason
        assert reason in ("stop", "length"), "a stream ended without a finish"
        assert TEXT.startswith(text.rstrip("\ufffd")), f"a stream held {text[-80:]!r}"
        assert reason == "length" or text == TEXT, "a stream said stop before its end"
        return "whole"

    def _whole(self) -> str:
        answer = chat(self.url, "m", self._question(), max_tokens=20)
        if answer.status != 200:
            return self._refused(answer.json())
        assert TEXT.startswith(answer.json()["choices"][0]["message"]["content"].rstrip("\ufffd"))
        return "whole"

    def _question(self) -> str:
        """Each one is new: a question that two engines died of is refused for a while."""
        return f"{self.name}: {self.asked}"

    def _refused(self, body: dict[str, dict[str, str]]) -> str:
        assert body["error"]["code"] in TYPED, body
        return body["error"]["code"]


@pytest.mark.parametrize("replicas", [1, 2])
def test_random_kills_of_the_engine_under_load_leave_no_client_hanging(
    stage: Stage, kernel: Kernel, tmp_path: Path, replicas: int
) -> None:
    """With a second replica most streams are gone on with there."""
    make_scripted(tmp_path / "m.gguf", TEXT)
    flags = ("--model_path", str(tmp_path / "m.gguf"), "--context_window", "8192", "--seed", "1")
    executors = [stage.executor("llamacpp", *flags, kernel=kernel, access_code="m") for _ in range(replicas)]
    until(lambda: kernel.ready("m", replicas=replicas), "all replicas were ready")
    enough = threading.Event()
    clients = [Client(kernel.url, seed, enough) for seed in range(CLIENTS)]
    for client in clients:
        client.start()
    random = Random(11)  # noqa: S311 - no secret
    try:
        for _ in range(KILLS):
            _kill_one_engine(kernel, executors, random)
    finally:
        enough.set()
        for client in clients:
            client.join(ANSWER_TIMEOUT_S)
    assert not any(client.is_alive() for client in clients), "a client hangs"
    assert [fault for client in clients for fault in client.wrong] == []
    total: dict[str, int] = {}
    for client in clients:
        for how, count in client.ended.items():
            total[how] = total.get(how, 0) + count
    resumed = kernel.metric("kuwa_resumes_total", outcome="resumed")
    longest_s = max(client.longest_s for client in clients)
    print(f"{KILLS} kills, {replicas} replicas, longest answer {longest_s:.1f} s, {resumed:g} resumed: {total}")  # noqa: T201
    assert total["whole"] > 0
    assert resumed > 0 if replicas > 1 else total.get("engine_lost", 0) > 0
    until(lambda: chat(kernel.url, "m", "hi", max_tokens=3).status == 200, "it serves again", timeout_s=60)
    assert kernel.idle("m")


def _kill_one_engine(kernel: Kernel, executors: list[Executor], random: Random) -> None:
    """Kill one child: mostly while all of them are given requests, sometimes while it or another one loads."""
    executor = random.choice(executors)
    pid = until(lambda: _child(executor), "the engine ran", timeout_s=60)
    if random.random() < 0.8:
        until(lambda: kernel.ready("m", replicas=len(executors)), "all replicas were ready", timeout_s=60)
    time.sleep(random.uniform(0, 0.8))  # the moment of the kill, not a wait for anything
    os.kill(pid, signal.SIGKILL)
    until(lambda: _child(executor) != pid, "the engine was gone")


def _child(executor: Executor) -> int | None:
    try:
        alive = [c for c in psutil.Process(executor.process.pid).children() if c.status() != psutil.STATUS_ZOMBIE]
    except psutil.NoSuchProcess:  # it went while it was looked at
        return None
    return alive[0].pid if alive else None


def test_damaged_files_end_in_an_answer_or_in_one_clear_error_and_the_kernel_never_notices(
    stage: Stage, kernel: Kernel, tmp_path: Path
) -> None:
    make_tiny(tmp_path / "sound.gguf")
    sound = (tmp_path / "sound.gguf").read_bytes()
    random = Random(5)  # noqa: S311 - no secret
    ends = {"served": 0, "refused": 0, "engine fault": 0}
    for number in range(MUTANTS):
        path = tmp_path / f"mutant-{number}.gguf"
        path.write_bytes(mutated(sound, random, most_hits=1))
        ends[_served_or_not(stage, kernel, path)] += 1
        path.unlink()
        assert fetch(kernel.url + "/health").status in (200, 204)
    print(f"{MUTANTS} damaged files: {ends}")  # noqa: T201
    assert ends["refused"] > 0


def _served_or_not(stage: Stage, kernel: Kernel, path: Path) -> str:
    executor = stage.executor(
        "llamacpp", "--model_path", str(path), "--context_window", "256", kernel=kernel, access_code="m", wait=False
    )
    process = executor.process
    until(lambda: process.exit_code is not None or kernel.ready("m"), "it served or ended", timeout_s=30)
    try:
        if process.exit_code is not None:
            assert process.exit_code == LOAD_FAILED, process.log
            assert len([line for line in process.log.splitlines() if line.startswith("kuwa-executor llamacpp: ")]) == 1
            return "refused"
        answer = chat(kernel.url, "m", "hi", max_tokens=4)
        if answer.status == 200:
            return "served"
        assert answer.error["code"] in TYPED, answer
        return "engine fault"
    finally:
        process.kill()
        until(lambda: not kernel.ready("m"), "the kernel let it go", timeout_s=20)
