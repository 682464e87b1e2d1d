"""`--engine paged`: transformers' own manager computes, and what comes is what the other engines give."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest
import torch

from kuwa.engine.loop import Engine
from kuwa.engine.paged import PagedBackend, PagedEngine
from kuwa.engine.probe import backend_for
from kuwa.engine.request import Drawn, Generation, Sampling
from kuwa.wire.errors import EngineLost
from tiny_models import make_model

pytestmark = pytest.mark.anyio

NEW = 10


def asked() -> list[Generation]:
    """Sixteen requests that differ in length and in how they are drawn."""
    drawn = Sampling(temperature=1.1, top_p=0.9, repetition_penalty=1.1)
    generations: list[Generation] = []
    for number in range(16):
        prompt = [(7 * number + place * place) % 500 + 5 for place in range(1 + 9 * number)]
        sampling = Sampling() if number % 2 else Sampling(temperature=1.1, top_p=0.9, top_k=50, seed=number)
        sampling = drawn if number == 5 else sampling
        generations.append(Generation(prompt=prompt, max_tokens=NEW, sampling=sampling))
    return generations


async def answer(engine: Any, generation: Generation) -> list[int]:
    return [t.id async for t in engine.generate(generation, patience_s=60) if isinstance(t, Drawn)]


@pytest.fixture
async def paged() -> AsyncGenerator[PagedEngine]:
    backend = backend_for(make_model("tiny-llama"), "paged", slots=16, context=512, step_tokens=128, budget=1 << 28)
    assert isinstance(backend, PagedBackend)
    engine = PagedEngine(backend)
    engine.start()
    yield engine
    await engine.close()


async def settled(engine: PagedEngine) -> None:
    scheduler = engine._manager.batch_processor.scheduler
    async with asyncio.timeout(30):
        while engine.stats().owned or scheduler.active_requests or scheduler.waiting_requests:
            # Cancelled requests leave at the manager's next step.
            await answer(engine, asked()[0])


async def test_every_request_gets_what_the_slot_engine_gives_it(paged: PagedEngine) -> None:
    slots = Engine(
        backend_for(make_model("tiny-llama"), "slot", slots=16, context=512, step_tokens=128, budget=1 << 28)
    )
    slots.start()
    expected = await asyncio.gather(*[answer(slots, generation) for generation in asked()])
    await slots.close()
    found = await asyncio.gather(*[answer(paged, generation) for generation in asked()])
    assert found == expected
    assert await answer(paged, asked()[7]) == expected[7]


async def test_cancelled_requests_leave_no_page_behind(paged: PagedEngine) -> None:
    async def given_up(index: int) -> None:
        generation = Generation(prompt=[index + 5] * (index + 1), max_tokens=300)
        async with aclosing(paged.generate(generation)) as tokens:
            for _ in range(index % 4):
                await anext(tokens)

    await asyncio.gather(*[given_up(index) for index in range(40)])
    await settled(paged)
    assert paged._manager.output_router.result_handlers == {}
    assert paged._manager.output_router.output_queue.qsize() <= 1
    assert len(await answer(paged, asked()[3])) == NEW


async def test_a_manager_that_dies_is_told_of_and_replaced(paged: PagedEngine) -> None:
    model, died = paged.backend.model, torch.zeros(())
    hook = model.register_forward_pre_hook(lambda *_: died + torch.zeros(2, 3) @ torch.zeros(2, 3))
    with pytest.raises(EngineLost):
        await answer(paged, asked()[1])
    hook.remove()
    assert len(await answer(paged, asked()[1])) == NEW
    assert paged.trouble == ""
