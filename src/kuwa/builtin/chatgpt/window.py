"""How long a conversation may be for one model, and what is known of how its provider counts.

`ChatGPTExecutor` keeps one `Window` per model. It begins with the operator's `--context_window` and an estimate from
above, or exact counts where there is a local tokenizer; a provider's own refusal, which names its figures, corrects
both. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kuwa.executor.prompt import Message
from kuwa.executor.provider.context import prompt_tokens, trim
from kuwa.executor.provider.failures import context_figures
from kuwa.wire.errors import ContextLengthExceeded

Count = Callable[[Sequence[Message]], int]

# A provider's figure corrects the estimate within these bounds; beyond them it counts something else.
_LEAST, _MOST = 0.25, 4.0
# Where a refusal names no figures, the conversation is cut to this part of what it was.
_BLIND_PART = 0.5


@dataclass(frozen=True, slots=True)
class Window:
    """`tokens` is the context window, 0 while nobody has said it. `ratio` is the provider's count over ours.

    `certain` is False where a refusal named no figures: then it holds for the request at hand alone.
    """

    tokens: int
    tally: Count = prompt_tokens
    ratio: float = 1.0
    certain: bool = True

    def fit(self, messages: Sequence[Message], body: Mapping[str, Any]) -> tuple[list[Message], int]:
        """`messages` as far as they fit, and how many were left out. Raises ContextLengthExceeded."""
        if not self.tokens:
            return list(messages), 0
        return trim(messages, self.tokens, body, self.count)

    def count(self, messages: Sequence[Message]) -> int:
        return math.ceil(self.tally(messages) * self.ratio)

    def corrected(self, refusal: ContextLengthExceeded, messages: Sequence[Message]) -> Window:
        """What is known once the provider has found `messages` too long."""
        figures = context_figures(refusal.message)
        if figures is None:
            return replace(self, tokens=int(self.count(messages) * _BLIND_PART), certain=False)
        window, used = figures
        ratio = min(max(used / max(self.tally(messages), 1), _LEAST), _MOST)
        return replace(self, tokens=window, ratio=ratio, certain=True)
