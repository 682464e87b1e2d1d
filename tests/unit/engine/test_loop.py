"""The engine with its thread, on a backend without a model: delivery, cancel, failures."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager

import pytest
import torch

from kuwa.engine.loop import MOST_FAILURES, Engine, Working
from kuwa.engine.request import Drawn, End, Generation
from kuwa.engine.scheduler import Limits, Plan
from kuwa.wire.errors import EngineLost, QueueFull, UpstreamTimeout

pytestmark = pytest.mark.anyio

VOCABULARY = 100


class CountingBackend:
    """Each sequence's next token is one more than its last. `before` is called at each step."""

    name = "counting"

    def __init__(self, before: Callable[[Plan], None] | None = None, slots: int = 4) -> None:
        self.limits = Limits(slots=slots, length=64, step_tokens=16)
        self.before = before
        self.resets = 0

    def compute(self, plan: Plan) -> torch.Tensor:
        if self.before is not None:
            self.before(plan)
        logits = torch.zeros(len(list(plan.drawing)), VOCABULARY)
        for row, segment in enumerate(plan.drawing):
            logits[row, (segment.run.ids[-1] + 1) % VOCABULARY] = 1.0
        return logits

    def reset(self) -> None:
        self.resets += 1


@asynccontextmanager
async def running(backend: CountingBackend) -> AsyncGenerator[Engine]:
    engine = Engine(backend)
    engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def answer(engine: Engine, start: int, most: int = 5) -> list[int]:
    ids: list[int] = []
    async for token in engine.generate(Generation(prompt=[start], max_tokens=most)):
        if isinstance(token, Drawn):
            ids.append(token.id)
        else:
            assert token.reason == "length"
    return ids


async def settled(engine: Engine) -> None:
    async with asyncio.timeout(5):
        while engine.stats().owned or engine.stats().waiting:  # noqa: ASYNC110 - the thread is polled, at a deadline
            await asyncio.sleep(0.001)


async def test_each_request_gets_its_own_tokens_and_its_end() -> None:
    async with running(CountingBackend()) as engine:
        answers = await asyncio.gather(*[answer(engine, start) for start in range(20)])
        assert answers == [[start + i for i in range(1, 6)] for start in range(20)]
        assert engine.stats().generated == 100
        await settled(engine)


class Gate:
    """Lets the engine's steps through one by one, and notes how many segments each had."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self._let_through = 0
        self._permits = threading.Semaphore(0)

    def __call__(self, plan: Plan) -> None:
        self.steps.append(len(plan.segments))
        self._permits.acquire()

    @property
    def waiting(self) -> bool:
        """Whether a step waits here now, rather than being computed or not yet begun."""
        return self._let_through < len(self.steps)

    async def open_until(self, condition: Callable[[], bool]) -> None:
        """Let steps through, none ahead of its time, until `condition`; at most for 5 s."""
        async with asyncio.timeout(5):
            while not condition():
                if self.waiting:
                    self._let_through += 1
                    self._permits.release()
                await asyncio.sleep(0.001)

    def open(self) -> None:
        self._permits.release(1_000_000)


async def test_a_closed_iterator_frees_its_slot_before_the_next_step() -> None:
    gate = Gate()
    async with running(CountingBackend(gate)) as engine:
        try:
            tokens = engine.generate(Generation(prompt=[1], max_tokens=50))
            kept = engine.generate(Generation(prompt=[50], max_tokens=50))
            begun = asyncio.gather(anext(tokens), anext(kept))
            await gate.open_until(lambda: begun.done() and gate.waiting and gate.steps[-1] == 2)
            await tokens.aclose()
            seen = len(gate.steps)
            await gate.open_until(lambda: len(gate.steps) > seen)
            assert gate.steps[seen:] == [1]
            assert engine.stats().owned == 1
            await kept.aclose()
        finally:
            gate.open()
        await settled(engine)


async def test_a_thousand_cancelled_requests_leave_nothing_behind() -> None:
    async with running(CountingBackend()) as engine:

        async def abandoned(index: int) -> None:
            async with aclosing(engine.generate(Generation(prompt=[index % 50] * 30, max_tokens=30))) as tokens:
                for _ in range(index % 5):
                    await anext(tokens)

        for start in range(0, 1000, 50):
            await asyncio.gather(*[abandoned(start + i) for i in range(50)])
        await settled(engine)
        assert await answer(engine, 3) == [4, 5, 6, 7, 8]
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.owned, stats.tokens) == (0, 0, 0, 0)


async def test_a_failed_step_fails_the_requests_under_way_and_the_engine_begins_anew() -> None:
    fail = threading.Event()

    def trouble(_: Plan) -> None:
        if fail.is_set():
            fail.clear()
            raise RuntimeError("the device is gone")

    backend = CountingBackend(trouble)
    async with running(backend) as engine:
        fail.set()
        with pytest.raises(EngineLost, match="log says why"):
            await answer(engine, 1)
        assert await answer(engine, 1, 2) == [2, 3]
        assert (backend.resets, engine.trouble) == (1, "")


async def test_memory_that_does_not_suffice_is_said_and_survived() -> None:
    fail = threading.Event()

    def trouble(_: Plan) -> None:
        if fail.is_set():
            fail.clear()
            raise torch.OutOfMemoryError("CUDA out of memory")

    async with running(CountingBackend(trouble)) as engine:
        fail.set()
        with pytest.raises(QueueFull, match="--max_batch_tokens"):
            await answer(engine, 1)
        assert await answer(engine, 1, 2) == [2, 3]


async def test_an_engine_that_fails_again_and_again_is_given_up() -> None:
    def trouble(_: Plan) -> None:
        raise RuntimeError("broken")

    async with running(CountingBackend(trouble)) as engine:
        for _ in range(MOST_FAILURES):
            with pytest.raises(EngineLost):
                await answer(engine, 1)
        assert "several times" in engine.trouble
        with pytest.raises(EngineLost, match="several times"):
            await answer(engine, 1)


async def test_a_step_that_hangs_is_a_timeout() -> None:
    go_on = threading.Event()
    async with running(CountingBackend(lambda _: go_on.wait(10) and None)) as engine:
        with pytest.raises(UpstreamTimeout):
            async for _ in engine.generate(Generation(prompt=[1], max_tokens=3), patience_s=0.05):
                pass
        go_on.set()


async def test_while_a_step_takes_long_the_request_hears_that_the_engine_computes() -> None:
    go_on = threading.Event()
    engine = Engine(CountingBackend(lambda _: go_on.wait(10) and None), clock=lambda: 0.0)
    engine.start()
    kinds: list[type] = []
    try:
        async for news in engine.generate(Generation(prompt=[1], max_tokens=1), patience_s=0.05):
            kinds.append(type(news))
            if len(kinds) == 3:
                go_on.set()
    finally:
        go_on.set()
        await engine.close()
    assert kinds[:3] == [Working] * 3
    assert kinds[-2:] == [Drawn, End]


async def test_closing_ends_what_is_under_way_with_an_error() -> None:
    gate = Gate()
    engine = Engine(CountingBackend(gate))
    engine.start()
    try:
        tokens = engine.generate(Generation(prompt=[1], max_tokens=50))
        begun = asyncio.ensure_future(anext(tokens))
        await gate.open_until(begun.done)
        closing = asyncio.create_task(engine.close())
        await asyncio.sleep(0)
    finally:
        gate.open()
    with pytest.raises(EngineLost):
        async for _ in tokens:
            pass
    await closing
