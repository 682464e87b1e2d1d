"""Streams of GGUF models outlive the engine that computes them: computed again by another one, to the byte. Row C3."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from calls import chat, fetch, stream_chat
from chaos.conftest import Row, Scale
from kuwa.builtin.llamacpp.maker import make_half_billion, make_scripted, make_tiny
from processes import Executor, Kernel, Stage, until

pytestmark = pytest.mark.xdist_group("chaos-gguf")
LONG = "".join(f"第{i}句：the quick brown fox 🦊 jumps over the lazy dog {i}.\n" for i in range(100))


def gguf(stage: Stage, kernel: Kernel, model: Path) -> Executor:
    flags = ("--model_path", str(model), "--concurrency", "2", "--threads", "1", "--context_window", "8192")
    return stage.executor("llamacpp", *flags, kernel=kernel, access_code="m")


class Streams:
    """Streams that run side by side and are cut together: the first to come to its place has an engine killed, on
    which it or others are computed.

    A scripted model says the same whatever is computed beside it. With random weights numbers that are added up in
    another order may fall the other way near a tie, cut or not: there each stream runs alone.
    """

    def __init__(self, kernel: Kernel, executors: list[Executor], parameters: dict[str, object]) -> None:
        self.kernel = kernel
        self.executors = executors
        self.parameters = parameters
        self.kills = 0
        self.whole: list[tuple[str, str]] = []
        """What came of each stream that was cut or ran beside one, and what it says when it is left alone."""

    def round(self, questions: list[str], places: list[int]) -> None:
        self._all_well()
        expected = self._each(lambda index: self._read(questions[index], 0, threading.Event()), len(questions))
        cut = threading.Event()
        came = self._each(lambda index: self._read(questions[index], places[index], cut), len(questions))
        self.whole += zip(came, expected, strict=True)

    def _each(self, work: Callable[[int], str], count: int) -> list[str]:
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(work, range(count)))

    def _read(self, question: str, place: int, cut: threading.Event) -> str:
        """The text of one stream; an error at its end shows as such."""
        text, pieces = "", 0
        with stream_chat(self.kernel.url, "m", question, **self.parameters) as stream:
            for event in stream.events():
                if "error" in event:
                    return f"{text}<{event['error']['code']}>"
                piece = "".join(choice["delta"].get("content") or "" for choice in event["choices"])
                text += piece
                pieces += bool(piece)
                if place and pieces >= place and not cut.is_set():
                    cut.set()
                    self._kill()
        return text

    def _kill(self) -> None:
        busy = [replica["endpoint"] for replica in self.kernel.replicas("m") if replica["running"]]
        if not busy:
            return  # computed already, and only not read yet
        executor = next(one for one in self.executors if f":{one.port}/" in busy[self.kills % len(busy)])
        engine = psutil.Process(executor.process.pid).children()[0]
        engine.kill()
        self.kills += 1

    def _all_well(self) -> None:
        for executor in self.executors:
            until(lambda one=executor: fetch(one.url + "/health").status == 204, "its engine is back", timeout_s=60)
        until(lambda: self.kernel.ready("m", len(self.executors)), "both are ready", timeout_s=60)
        for _ in range(10):  # a fifth of all requests may be sent again: these are the others
            assert chat(self.kernel.url, "m", "hi", max_tokens=1).status == 200


def cut_streams(streams: Streams, wanted: int, at_once: int, last_place: int, at_most: int) -> float:
    """Cut streams at random places, round after round, until so many have been gone on with; how many were cut."""
    chance = random.Random(3)  # noqa: S311 - seeded
    cut = 0.0
    for number in range(at_most):
        if cut >= wanted:
            break
        questions = [f"Tell me {number}.{i}" for i in range(at_once)]
        streams.round(questions, [chance.randrange(1, last_place) for _ in range(at_once)])
        cut = streams.kernel.metric("kuwa_resumes_total")
    return cut


def differing(whole: list[tuple[str, str]]) -> list[int]:
    """Where each stream that is not what it should be differs first."""
    return [
        next((i for i, (a, b) in enumerate(zip(came, expected, strict=False)) if a != b), min(len(came), len(expected)))
        for came, expected in whole
        if came != expected
    ]


@pytest.mark.parametrize("kind", ["scripted, greedy", "scripted, seeded", "tiny, greedy", "tiny, seeded"])
def test_c3_a_ggufs_streams_outlive_its_engine(stage: Stage, kernel: Kernel, row: Row, scale: Scale, kind: str) -> None:
    model, scripted = stage.folder / "model.gguf", kind.startswith("scripted")
    wanted = scale.of(3, 500) if scripted else scale.of(2, 100)
    if scripted:
        make_scripted(model, LONG)
    else:
        make_tiny(model)
    executors = [gguf(stage, kernel, model) for _ in range(2)]
    temperature = 0.0 if kind.endswith("greedy") else 0.9
    streams = Streams(kernel, executors, {"seed": 11, "temperature": temperature, "max_tokens": 800})
    cut = cut_streams(streams, wanted, *((4, 300) if scripted else (1, 30)), 10 * wanted)
    others = differing(streams.whole)
    row(
        f"C3 GGUF, {kind}",
        f"{len(streams.whole)} streams, {cut:g} of them cut by {streams.kills} kills of the engine",
        f"{len(streams.whole) - len(others)} byte-identical{f', others differ at {others}' if others else ''}",
    )
    assert cut >= wanted
    assert not others


def test_c3_half_a_billion_parameters_in_q8_0(stage: Stage, kernel: Kernel, row: Row, scale: Scale) -> None:
    if not scale.full:
        pytest.skip("minutes of computing: part of make chaos")
    model = stage.folder / "model.gguf"
    make_half_billion(model)
    executors = [gguf(stage, kernel, model) for _ in range(2)]
    streams = Streams(kernel, executors, {"seed": 11, "temperature": 0.7, "max_tokens": 24})
    cut = cut_streams(streams, scale.q8_streams, 1, 16, 3 * scale.q8_streams)
    others = differing(streams.whole)
    row(
        "C3 GGUF, 0.5 B Q8_0",
        f"{len(streams.whole)} streams, {cut:g} of them cut by {streams.kills} kills of the engine",
        f"{len(streams.whole) - len(others)} byte-identical, others differ at {others}",
    )
    assert cut >= scale.q8_streams
    assert len(others) <= 0.01 * cut
