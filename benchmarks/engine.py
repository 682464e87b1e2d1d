"""The engine beside plain `model.generate`, on the CPU: tokens per second of one thread's CPU time.

    python benchmarks/engine.py            a model of about 125 million parameters, random weights, 32 bits
    python benchmarks/engine.py --quick    fewer repetitions

All run in this process, alternating, so that a busy machine disturbs them alike; the best of the repetitions counts.
`static` is one batch of `generate` over prompts of the same length that begin and end together: what batching gives
at most on this machine. CPU time is what is compared, since other programs' share of the machine is not in it. The
model is made on the spot; its tokens mean nothing, which changes no timing.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from kuwa.engine.probe import backend_for
from kuwa.engine.request import Generation
from kuwa.engine.sampler import draw
from kuwa.engine.scheduler import Scheduler
from tiny_models import make_model

SLOTS = 16
CELLS = [(1, 48, 24), (4, 48, 24), (8, 48, 24), (16, 48, 24), (1, 448, 16), (16, 448, 16)]
CACHED = (400, 16)


class Bench:
    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.model = make_model("medium-llama")
        self.own_attention = self.model.config._attn_implementation
        self.backend = backend_for(self.model, "slot", slots=SLOTS, context=1024, step_tokens=None, budget=4 << 30)
        self.packed_attention = self.model.config._attn_implementation
        self.random = random.Random(1)  # noqa: S311 - prompts

    def prompts(self, count: int, length: int) -> list[list[int]]:
        return [[self.random.randrange(10, 32000) for _ in range(length)] for _ in range(count)]

    def plain(self, prompts: list[list[int]], new: int) -> float:
        """CPU seconds of one `generate` after the other."""
        self.model.set_attn_implementation(self.own_attention)
        began = time.process_time()
        for prompt in prompts:
            ids = torch.tensor([prompt])
            with torch.inference_mode():
                self.model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, eos_token_id=None
                )
        return time.process_time() - began

    def engine(self, prompts: list[list[int]], new: int) -> float:
        """CPU seconds of all of them together, on an engine that knows none of them."""
        self.model.set_attn_implementation(self.packed_attention)
        scheduler = Scheduler(self.backend.limits)
        for key, prompt in enumerate(prompts):
            scheduler.add(key, Generation(prompt=prompt, max_tokens=new))
        began = time.process_time()
        while not scheduler.idle:
            self.step(scheduler)
        return time.process_time() - began

    def static(self, prompts: list[list[int]], new: int) -> float:
        """CPU seconds of all of them as one batch of `generate`: what batching could give at most."""
        self.model.set_attn_implementation(self.own_attention)
        ids = torch.tensor(prompts)
        began = time.process_time()
        with torch.inference_mode():
            self.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, eos_token_id=None
            )
        return time.process_time() - began

    def first_token(self, scheduler: Scheduler, key: int, prompt: list[int]) -> float:
        """CPU seconds until the first token."""
        scheduler.add(key, Generation(prompt=prompt, max_tokens=1))
        began = time.process_time()
        while not scheduler.idle:
            self.step(scheduler)
        return time.process_time() - began

    def step(self, scheduler: Scheduler) -> None:
        plan = scheduler.plan()
        drawn = draw(self.backend.compute(plan), [segment.run for segment in plan.drawing])
        scheduler.advance(plan, [token.id for token in drawn])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    repeats = 2 if parser.parse_args().quick else 5
    bench = Bench()
    bench.plain(bench.prompts(1, 8), 2)
    print(f"{'n':>3} {'prompt':>6} {'new':>4} {'plain':>8} {'engine':>8} {'static':>8}   tokens per CPU second")
    for count, length, new in CELLS:
        prompts = bench.prompts(count, length)
        alone = prompts[: 1 if count == 1 else 2]
        times: dict[str, list[float]] = {"plain": [], "engine": [], "static": []}
        for _ in range(repeats):
            times["plain"].append(bench.plain(alone, new) / len(alone))
            times["engine"].append(bench.engine(prompts, new) / count)
            times["static"].append(bench.static(prompts, new) / count)
        plain, engine, static = (new / min(times[name]) for name in times)
        print(
            f"{count:>3} {length:>6} {new:>4} {plain:>8.1f} {engine:>8.1f} {static:>8.1f}   "
            f"engine {engine / plain:.2f} x plain; one static batch {static / plain:.2f} x",
            flush=True,
        )
    cached(bench, repeats)


def cached(bench: Bench, repeats: int) -> None:
    """The time to the first token of a prompt whose beginning the engine holds already."""
    known, new = CACHED
    bench.model.set_attn_implementation(bench.packed_attention)
    cold: list[float] = []
    warm: list[float] = []
    for _ in range(repeats):
        bench.backend.reset()
        scheduler = Scheduler(bench.backend.limits)
        (beginning,) = bench.prompts(1, known)
        ends: list[list[int]] = bench.prompts(2, new)
        cold.append(bench.first_token(scheduler, 1, beginning + ends[0]))
        warm.append(bench.first_token(scheduler, 2, beginning + ends[1]))
    print(
        f"first token of {known} + {new} tokens: {min(cold):.3f} s, with {known} known {min(warm):.3f} s: "
        f"{min(cold) / min(warm):.1f} x sooner"
    )


if __name__ == "__main__":
    main()
