"""What the engine computes is what `model.generate` computes, token for token, whatever is computed beside it.

Tiny models of every kind of attention, in 32 bits, greedy. Requests come and are cancelled at random; a token may
differ only where the model's two likeliest are closer than rounding, and the rest of that request is not compared.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kuwa.engine.backend import Backend
from kuwa.engine.probe import backend_for
from kuwa.engine.request import Generation
from kuwa.engine.sampler import draw
from kuwa.engine.scheduler import Scheduler
from tiny_models import make_model

PACKED = ["tiny-llama", "tiny-qwen3", "tiny-gemma3", "tiny-gemma2", "tiny-mistral-swa", "tiny-gpt2", "tiny-gpt-oss"]
IN_TURNS = ["tiny-hybrid", "tiny-mamba", "tiny-latent", "tiny-alibi"]
PACKED_MOE = ["tiny-moe"]
NEW = 12
CLOSE = 1e-4
SLOTS = 4
STOP = -1


@dataclass
class Reference:
    """A prompt, what the model itself makes of it, and how far apart the two likeliest tokens are at each step."""

    prompt: list[int]
    tokens: list[int]
    gaps: list[float]


@dataclass
class Subject:
    model: Any
    backend: Backend
    references: list[Reference]
    compared: int = 0
    close: int = 0
    counts: dict[str, int] = field(default_factory=dict[str, int])


@cache
def subject(name: str, engine: str = "auto", slots: int = SLOTS) -> Subject:
    model = make_model(name)
    draw_ = random.Random(3)  # noqa: S311 - the same prompts each time are what is wanted
    vocabulary = model.config.get_text_config().vocab_size
    common = [draw_.randrange(5, vocabulary) for _ in range(50)]
    prompts = [[draw_.randrange(5, vocabulary) for _ in range(n)] for n in (1, 2, 9, 30, 64, 130)]
    prompts += [[*common[:n], draw_.randrange(5, vocabulary), 7] for n in (20, 40, 50)]
    references = [_reference(model, prompt) for prompt in prompts]
    # After the references: a backend puts its own attention into the model.
    return Subject(
        model, backend_for(model, engine, slots=slots, context=256, step_tokens=24, budget=1 << 28), references
    )


def _reference(model: Any, prompt: list[int]) -> Reference:
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    likeliest = [logits.topk(2).values[0] for logits in output.logits]
    gaps = [float(first - second) for first, second in likeliest]
    return Reference(prompt, output.sequences[0, len(prompt) :].tolist(), gaps)


class Driver:
    """The engine's step without its thread."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.backend = subject.backend
        self.backend.reset()
        self.scheduler = Scheduler(self.backend.limits)
        self.asked: dict[int, Reference] = {}
        self.keys = 0
        self.most = 0  # requests that were computed in one step

    def add(self, which: int, most: int = NEW, done: int = 0) -> int:
        reference = self.subject.references[which]
        self.keys += 1
        self.asked[self.keys] = reference
        generation = Generation(prompt=reference.prompt, max_tokens=most, done=reference.tokens[:done])
        self.scheduler.add(self.keys, generation)
        return self.keys

    def cancel(self, key: int) -> None:
        if self.scheduler.cancel(key):
            del self.asked[key]

    def step(self) -> None:
        plan = self.scheduler.plan()
        self.most = max(self.most, self.scheduler.running)
        drawn = draw(self.backend.compute(plan), [segment.run for segment in plan.drawing])
        for run, end in self.scheduler.advance(plan, [token.id for token in drawn]):
            if end is not None:
                self.check(run.ids[len(run.generation.prompt) :], self.asked.pop(run.key))

    def check(self, tokens: list[int], reference: Reference) -> None:
        for place, token in enumerate(tokens):
            self.subject.compared += 1
            if token != reference.tokens[place]:
                assert reference.gaps[place] < CLOSE, (place, token, reference.tokens)
                self.subject.close += 1
                return

    def finish(self) -> None:
        while not self.scheduler.idle:
            self.step()
        assert self.scheduler.owned == 0


@pytest.mark.parametrize("name", [*PACKED, *PACKED_MOE])
def test_a_model_with_ordinary_attention_is_served_in_packed_batches(name: str) -> None:
    assert subject(name).backend.name == "slot"


@pytest.mark.parametrize("name", IN_TURNS)
def test_a_model_that_cannot_be_packed_is_found_out_and_takes_turns(name: str) -> None:
    assert subject(name).backend.name == "interleave"


@pytest.mark.parametrize("at_once", [1, 3, 16])
@pytest.mark.parametrize("name", [*PACKED, *PACKED_MOE, *IN_TURNS])
def test_greedy_output_is_what_generate_gives(name: str, at_once: int) -> None:
    driver = Driver(subject(name, slots=max(at_once, SLOTS)))
    for index in range(max(at_once, len(driver.subject.references))):
        driver.add(index % len(driver.subject.references))
        if (index + 1) % at_once == 0:
            driver.finish()
    driver.finish()
    assert driver.most == at_once
    assert driver.subject.close <= max(1, driver.subject.compared / 1000)


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 8), st.integers(1, NEW)),
        st.tuples(st.just("go on"), st.integers(0, 8), st.integers(1, NEW - 1)),
        st.tuples(st.just("cancel"), st.integers(0, 30), st.just(0)),
        st.tuples(st.just("step"), st.integers(1, 4), st.just(0)),
    ),
    min_size=5,
    max_size=40,
)


@pytest.mark.parametrize("name", [*PACKED, *PACKED_MOE, "tiny-hybrid"])
def test_requests_that_come_and_are_cancelled_at_random_change_nothing(name: str) -> None:
    tried = subject(name)

    @settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(ACTIONS)
    def check(actions: list[tuple[str, int, int]]) -> None:
        driver = Driver(tried)
        for action, number, tokens in actions:
            if action == "add":
                driver.add(number, tokens)
            elif action == "go on":
                driver.add(number, NEW, done=tokens)
            elif action == "cancel" and driver.keys:
                driver.cancel(1 + number % driver.keys)
            else:
                for _ in range(number):
                    if not driver.scheduler.idle:
                        driver.step()
        driver.finish()

    check()
    assert tried.compared > 200
    assert tried.close <= tried.compared / 1000


def test_an_engine_that_was_asked_for_and_cannot_serve_is_refused() -> None:
    from kuwa.engine.probe import CannotServe

    with pytest.raises(CannotServe, match="--engine auto"):
        backend_for(make_model("tiny-alibi"), "slot", slots=2, context=64, step_tokens=None, budget=1 << 28)


def test_single_and_interleave_serve_what_slot_serves() -> None:
    for engine, slots in (("single", 1), ("interleave", SLOTS)):
        tried = subject("tiny-llama", engine)
        assert (tried.backend.name, tried.backend.limits.slots) == (engine, slots)
        driver = Driver(tried)
        for index in range(6):
            driver.add(index)
        driver.finish()
