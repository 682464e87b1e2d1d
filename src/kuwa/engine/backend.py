"""What the engine's loop asks of whatever computes: the logits behind the segments of a step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from kuwa.engine.scheduler import Limits, Plan

if TYPE_CHECKING:
    from torch import Tensor


class Backend(Protocol):
    """Computes steps. Only the engine's thread calls it."""

    name: str

    @property
    def limits(self) -> Limits: ...

    def compute(self, plan: Plan) -> Tensor:
        """The logits behind each segment that draws, `[segments that draw, vocabulary]`."""
        ...

    def reset(self) -> None:
        """Forget what every slot holds and free its memory."""
        ...
