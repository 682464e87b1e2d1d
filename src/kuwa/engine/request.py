"""What goes into the engine and what comes out of it: a request's token ids and parameters, its tokens, its end.

Plain values without torch: the executor makes `Generation`s, `scheduler` keeps them, `sampler` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

EndReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a request's tokens are drawn. The values must be in range: the engine does not check them again.

    `temperature` 0 takes the likeliest token. `top_k` 0, `top_p` 1, `min_p` 0, `typical_p` 1 and the penalties 1, 0
    and 0 change nothing. With `seed` the tokens depend on the request alone, whatever else is computed beside it.
    `logprobs` is how many alternatives to report beside each token's own log probability; None: report none.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    seed: int = 0
    logprobs: int | None = None

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def plain(self) -> bool:
        """Whether the likeliest token of the bare logits is the answer."""
        return self.greedy and not self.logit_bias and not self.penalises

    @property
    def penalises(self) -> bool:
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


class Constraint(Protocol):
    """Which tokens a grammar allows next. One object per request; only the engine's thread calls it. It never raises:
    other requests are computed in the same step. `fault` says why it gave up, and then it has ended."""

    fault: str

    def allowed(self) -> Any:
        """The allowed tokens as an int32 bitmask of torch, one bit per id, or None where all are allowed."""
        ...

    def accept(self, token: int) -> None:
        """The token was drawn."""
        ...

    def ended(self) -> bool:
        """Whether nothing may follow any more."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One request: `prompt` is read, then up to `max_tokens` tokens are generated.

    `done` are tokens that were generated before (elsewhere, before an interruption): they count as generated, are
    not reported again, and generation goes on behind them. Any of `stops` ends it; it is reported, too.
    `inputs` are further inputs of the model's first step, such as `pixel_values`; requests with them share no cache.
    """

    prompt: Sequence[int]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stops: frozenset[int] = frozenset()
    done: Sequence[int] = ()
    constraint: Constraint | None = None
    inputs: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Drawn:
    """A generated token. `logprob` and `top` (ids with their log probabilities) only where they were asked for."""

    id: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class End:
    """The last that is heard of a request. `cached` of its prompt's tokens were not computed anew."""

    reason: EndReason
    cached: int = 0
