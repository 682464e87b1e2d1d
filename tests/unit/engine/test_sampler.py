"""How tokens are drawn: the parameters against transformers' own, the frequencies against the distribution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from kuwa.engine.request import Generation, Sampling
from kuwa.engine.sampler import draw
from kuwa.engine.scheduler import Run

VOCABULARY = 40
DRAWS = 3_000


def logits(seed: int = 0, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 2


def run(sampling: Sampling, generated: list[int] | None = None, prompt: list[int] | None = None, **more: Any) -> Run:
    prompt = prompt or [1]
    return Run(0, Generation(prompt=prompt, max_tokens=9, sampling=sampling, **more), [*prompt, *(generated or [])])


def one(scores: torch.Tensor, sampling: Sampling, generated: list[int] | None = None, **more: Any) -> int:
    return draw(scores, [run(sampling, generated, **more)])[0].id


def frequencies(scores: torch.Tensor, sampling: Callable[[int], Sampling], count: int = DRAWS) -> Counter[int]:
    return Counter(one(scores, sampling(seed)) for seed in range(count))


def agrees(counts: Counter[int], chances: torch.Tensor) -> bool:
    """A chi-square test over the tokens expected at least five times; the others must not be frequent."""
    total = sum(counts.values())
    expected = chances * total
    assert all(chances[token] > 0 for token in counts), "a token was drawn that cannot be"
    common = [t for t in range(VOCABULARY) if expected[t] >= 5]
    chi_square = sum((counts[t] - float(expected[t])) ** 2 / float(expected[t]) for t in common)
    return chi_square < 2 * len(common) + 30


@pytest.mark.parametrize(
    ("given", "warpers"),
    [
        ({"temperature": 1.0}, []),
        ({"temperature": 0.6}, [TemperatureLogitsWarper(0.6)]),
        ({"temperature": 1.0, "top_k": 5}, [TopKLogitsWarper(5)]),
        ({"temperature": 1.3, "top_p": 0.8}, [TemperatureLogitsWarper(1.3), TopPLogitsWarper(0.8)]),
        ({"temperature": 1.0, "min_p": 0.1}, [MinPLogitsWarper(0.1)]),
        ({"temperature": 1.0, "typical_p": 0.7}, [TypicalLogitsWarper(0.7)]),
        (
            {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
            [TemperatureLogitsWarper(0.9), TopKLogitsWarper(20), TopPLogitsWarper(0.9), MinPLogitsWarper(0.02)],
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_tokens_are_drawn_from_the_distribution_that_transformers_makes(
    given: dict[str, Any], warpers: list[Any]
) -> None:
    scores = logits()
    chances = LogitsProcessorList(warpers)(torch.tensor([[1]]), scores.clone()).softmax(-1)[0]
    assert agrees(frequencies(scores, lambda seed: Sampling(seed=seed, **given)), chances)


def test_positions_of_one_seed_are_drawn_independently() -> None:
    scores = logits()
    counts: Counter[int] = Counter()
    for position in range(DRAWS):
        counts[one(scores, Sampling(temperature=1.0, seed=5), [2] * position)] += 1
    assert agrees(counts, scores.softmax(-1)[0])


def test_a_seed_draws_the_same_whatever_is_drawn_beside_it() -> None:
    scores = logits(rows=8)
    mine = run(Sampling(temperature=1.0, top_p=0.9, seed=42), [3, 4])
    alone = draw(scores[5:6], [mine])[0]
    others = [run(Sampling(temperature=1.0, seed=i)) if i % 2 else run(Sampling()) for i in range(8)]
    others[5] = mine
    assert draw(scores, others)[5] == alone


def test_temperature_zero_takes_the_likeliest() -> None:
    scores = logits(rows=3)
    assert [d.id for d in draw(scores, [run(Sampling())] * 3)] == scores.argmax(-1).tolist()


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    scores = logits()
    seen = [1, 4, int(scores.argmax())]
    penalised = RepetitionPenaltyLogitsProcessor(3.0)(torch.tensor([seen]), scores.clone())
    assert one(scores, Sampling(repetition_penalty=3.0), seen[1:]) == int(penalised.argmax())


def test_presence_and_frequency_penalties_count_the_answer_and_not_the_prompt() -> None:
    scores = torch.zeros(1, VOCABULARY)
    scores[0, 7], scores[0, 8], scores[0, 9] = 3.0, 2.5, 2.0
    assert one(scores, Sampling(presence_penalty=1.0), prompt=[7, 8]) == 7
    assert one(scores, Sampling(presence_penalty=1.0), [7]) == 8
    assert one(scores, Sampling(frequency_penalty=0.6), [7, 7, 8]) == 9


def test_a_bias_makes_a_token_certain_or_impossible() -> None:
    scores = logits()
    likeliest = int(scores.argmax())
    assert one(scores, Sampling(logit_bias={3: 100.0})) == 3
    assert one(scores, Sampling(logit_bias={likeliest: -100.0})) != likeliest


def test_log_probabilities_are_the_models_own() -> None:
    scores = logits()
    logs = scores.log_softmax(-1)[0]
    (drawn,) = draw(scores, [run(Sampling(temperature=0.5, seed=1, logprobs=3, top_k=2))])
    assert drawn.logprob == pytest.approx(float(logs[drawn.id]), abs=1e-5)
    assert [token for token, _ in drawn.top] == logs.topk(3).indices.tolist()
    (plain,) = draw(scores, [run(Sampling(logprobs=0))])
    assert (plain.id, plain.top) == (int(scores.argmax()), ())


class OnlyEven:
    def __init__(self) -> None:
        self.taken: list[int] = []

    def allowed(self) -> torch.Tensor:
        bits = sum(1 << token for token in range(0, 32, 2))
        return torch.tensor([bits, 0x55], dtype=torch.int64).to(torch.int32)

    def accept(self, token: int) -> None:
        self.taken.append(token)

    def ended(self) -> bool:
        return False


def test_a_constraint_leaves_only_what_it_allows_and_hears_what_was_drawn() -> None:
    constraint = OnlyEven()
    tokens = [
        one(logits(seed), Sampling(temperature=t, seed=seed), constraint=constraint)
        for seed in range(40)
        for t in (0.0, 2.0)
    ]
    assert all(token % 2 == 0 and token < 40 for token in tokens)
    assert constraint.taken == tokens
