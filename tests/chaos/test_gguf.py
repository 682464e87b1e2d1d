"""Streams of GGUF models outlive their executor: computed again by another one, to the byte. Row C3."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from calls import stream_chat
from chaos.conftest import Row, Scale
from kuwa.builtin.llamacpp.maker import make_scripted, make_tiny
from processes import Executor, Kernel, Stage

pytestmark = pytest.mark.xdist_group("chaos-gguf")
LONG = "".join(f"第{i}句：the quick brown fox 🦊 jumps over the lazy dog {i}.\n" for i in range(100))


def gguf(stage: Stage, kernel: Kernel, model: Path, port: int | None = None) -> Executor:
    flags = ("--model_path", str(model), "--concurrency", "2", "--threads", "1", "--context_window", "16384")
    return stage.executor("llamacpp", *flags, kernel=kernel, access_code="m", port=port)


@pytest.mark.parametrize("kind", ["scripted", "greedy", "seeded"])
def test_c3_a_ggufs_stream_outlives_its_executor(
    stage: Stage, kernel: Kernel, row: Row, scale: Scale, kind: str
) -> None:
    model = stage.folder / "model.gguf"
    if kind == "scripted":
        make_scripted(model, LONG, context=16384)
    else:
        make_tiny(model)
    executors = [gguf(stage, kernel, model) for _ in range(2)]
    parameters = {"seed": 11, "temperature": 0.0 if kind == "greedy" else 0.9, "max_tokens": 1500}
    chance = random.Random(3)  # noqa: S311 - seeded
    rounds = scale.of(3, 500)
    same = resumed = 0
    gaps: list[float] = []
    different: list[int] = []
    for number in range(rounds):
        question = f"Tell me {number}"
        with stream_chat(kernel.url, "m", question, **parameters) as stream:
            expected = stream.text()
        place = chance.randrange(1, max(2, len(expected) // 5))
        text, last, gap, killed = "", time.monotonic(), 0.0, False
        with stream_chat(kernel.url, "m", question, **parameters) as stream:
            busy = [r["endpoint"] for r in kernel.replicas("m") if r["running"]]
            for event in stream.events():
                if "error" in event:
                    break
                text += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
                gap, last = max(gap, time.monotonic() - last), time.monotonic()
                if len(text) >= place and busy and not killed:
                    killed = True
                    index = next(i for i, executor in enumerate(executors) if f":{executor.port}/" in busy[0])
                    executors[index].process.kill()
                    last = time.monotonic()
        if text == expected:
            same += 1
        else:
            different.append(
                next((i for i, (a, b) in enumerate(zip(text, expected, strict=False)) if a != b), len(text))
            )
        gaps.append(gap)
        if killed:
            resumed += 1
            executors[index] = gguf(stage, kernel, model, executors[index].port)
    survived = kernel.metric("kuwa_resumes_total", outcome="resumed")
    row(
        f"C3 GGUF, {kind}",
        f"{rounds} streams, {resumed} executors killed, {survived:g} with the stream unfinished",
        f"{same} byte-identical, longest gap {max(gaps):.2f} s{f', others differ at {different}' if different else ''}",
    )
    assert survived >= rounds * 0.3
    assert same == rounds
