"""Draws the next token of every request of a step, each by its own parameters. Called by `loop` with the logits.

Exact: a request's token is drawn from its own processed distribution with a number that depends on its seed and the
token's position alone (`randomness`), by inverting the cumulated probabilities in the order of token ids. In that
order a difference in the last bits of the logits, as another batch shape makes, moves the borders between tokens by
as little, and does not reorder them.

The order of processing is that of transformers: bias, penalties, grammar, temperature, then top_k, top_p, min_p and
typical_p, each on what the one before it left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from kuwa.engine.randomness import uniform
from kuwa.engine.request import Drawn, Sampling
from kuwa.engine.scheduler import Run

NEVER = float("-inf")


def draw(logits: Tensor, runs: Sequence[Run]) -> list[Drawn]:
    """The next token of each run; `logits` is `[len(runs), vocabulary]`."""
    likeliest = _likeliest(logits)
    return [
        Drawn(likeliest[row]) if _is_plain(run) else _draw_one(logits[row], run, likeliest[row])
        for row, run in enumerate(runs)
    ]


def _likeliest(logits: Tensor) -> list[int]:
    """On the CPU by numpy, whose search is ten times as fast."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        return cast("list[int]", logits.numpy().argmax(-1).tolist())
    return _numbers(logits.argmax(dim=-1))


def _is_plain(run: Run) -> bool:
    sampling = run.generation.sampling
    return sampling.plain and sampling.logprobs is None and run.generation.constraint is None


def _draw_one(logits: Tensor, run: Run, likeliest: int) -> Drawn:
    sampling, constraint = run.generation.sampling, run.generation.constraint
    token = likeliest
    if not (sampling.plain and constraint is None):
        scores = _biased(logits, run)
        if constraint is not None and (mask := constraint.allowed()) is not None:
            scores.masked_fill_(~_unpacked(mask, scores), NEVER)
        token = int(scores.argmax()) if sampling.greedy else _drawn(scores, sampling, run.generated)
    if constraint is not None:
        constraint.accept(token)
    if sampling.logprobs is None:
        return Drawn(token)
    return _with_logprobs(logits, token, sampling.logprobs)


def _biased(logits: Tensor, run: Run) -> Tensor:
    """The logits in 32 bits, a copy, with the request's bias and penalties."""
    sampling = run.generation.sampling
    scores = logits.to(torch.float32, copy=True)
    if sampling.logit_bias:
        ids = torch.tensor(list(sampling.logit_bias.keys()), device=scores.device)
        scores[ids] += torch.tensor(list(sampling.logit_bias.values()), device=scores.device)
    if sampling.penalises:
        _penalise(scores, sampling, run)
    return scores


def _penalise(scores: Tensor, sampling: Sampling, run: Run) -> None:
    if sampling.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(run.ids)), device=scores.device)
        known = scores[seen]
        penalty = sampling.repetition_penalty
        scores[seen] = torch.where(known < 0, known * penalty, known / penalty)
    generated = run.ids[len(run.generation.prompt) :]
    if generated and (sampling.presence_penalty or sampling.frequency_penalty):
        counts = Counter(generated)
        ids = torch.tensor(list(counts.keys()), device=scores.device)
        times = torch.tensor(list(counts.values()), device=scores.device)
        scores[ids] -= sampling.presence_penalty + sampling.frequency_penalty * times


def _drawn(scores: Tensor, sampling: Sampling, position: int) -> int:
    """A token drawn from the distribution that `scores` and the parameters give."""
    scores = scores / sampling.temperature
    ids: Tensor | None = None
    if 0 < sampling.top_k < scores.numel():
        ids = scores.topk(sampling.top_k).indices.sort().values
        scores = scores[ids]
    if sampling.top_p < 1.0:
        scores = scores.masked_fill(_beyond(scores.softmax(-1), -scores, sampling.top_p), NEVER)
    if sampling.min_p > 0.0:
        chances = scores.softmax(-1)
        scores = scores.masked_fill(chances < sampling.min_p * chances.max(), NEVER)
    if sampling.typical_p < 1.0:
        scores = scores.masked_fill(_untypical(scores, sampling.typical_p), NEVER)
    borders = scores.double().softmax(-1).cumsum(-1)
    target = uniform(sampling.seed, position) * borders[-1]
    # right: a token of probability 0 has no width, so that it is never hit, not even at its border.
    index = int(torch.searchsorted(borders, target, right=True))
    index = min(index, borders.numel() - 1)
    return int(ids[index]) if ids is not None else index


def _beyond(chances: Tensor, order: Tensor, share: float) -> Tensor:
    """Which tokens are left out where the first ones by `order` that together have `share` are kept."""
    ranked = order.argsort(stable=True)
    ordered = chances[ranked]
    before = ordered.cumsum(-1) - ordered
    out = torch.empty_like(before, dtype=torch.bool)
    out[ranked] = before >= share
    out[ranked[0]] = False
    return out


def _untypical(scores: Tensor, share: float) -> Tensor:
    """Which tokens are less typical than those that together have `share`: their surprise is far from the mean."""
    logs = scores.log_softmax(-1)
    chances = logs.exp()
    entropy = -(chances * logs).nansum()
    return _beyond(chances, (-logs - entropy).abs(), share)


def _unpacked(mask: Tensor, like: Tensor) -> Tensor:
    """A bitmask of int32 words as one bool per token; ids beyond the mask's end are not allowed."""
    bits = torch.arange(32, dtype=torch.int32)
    flags = ((mask.reshape(-1, 1).cpu() >> bits) & 1).bool().flatten()
    allowed = torch.zeros(like.numel(), dtype=torch.bool)
    size = min(flags.numel(), like.numel())
    allowed[:size] = flags[:size]
    return allowed.to(like.device)


def _with_logprobs(logits: Tensor, token: int, count: int) -> Drawn:
    """Log probabilities by the model itself, before any parameter of the request."""
    logs = logits.float().log_softmax(-1)
    top = logs.topk(count)
    pairs = zip(_numbers(top.indices), _numbers(top.values), strict=True)
    return Drawn(token, float(logs[token]), tuple(pairs))


def _numbers(tensor: Tensor) -> list[Any]:
    """The numbers of a tensor of one dimension."""
    return cast("list[Any]", tensor.tolist())  # pyright: ignore[reportUnknownMemberType] - torch does not say
