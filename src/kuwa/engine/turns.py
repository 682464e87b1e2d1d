"""The `interleave` backend: every request has a cache of its own and takes its turn in each step.

It does what the model's own `generate` does, one token at a time: the model prepares its inputs and keeps its state
as it likes. So it serves what cannot be packed: state-space and convolution hybrids, attention with masks of its
own, requests with images. With one slot it is the `single` backend, for models that keep state between steps in
themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kuwa.engine.scheduler import Limits, Plan, Segment


class TurnsBackend:
    """A model that computes one request after the other. `limits` must have `share_prefixes` and `chunks` off."""

    def __init__(self, model: Any, limits: Limits) -> None:
        self.limits = limits
        self.name = "single" if limits.slots == 1 else "interleave"
        self._model = model
        self._device = model.device
        self._keeps_last = model._supports_logits_to_keep()
        self._states: dict[int, dict[str, Any]] = {}

    @torch.inference_mode()
    def compute(self, plan: Plan) -> Tensor:
        for slot in plan.cleared:
            self._states.pop(slot, None)
        return torch.cat([self._logits(segment) for segment in plan.segments])

    def reset(self) -> None:
        self._states.clear()

    def resized(self, limits: Limits) -> None:
        """Go on with other limits and nothing held."""
        self.limits = limits
        self.reset()

    @property
    def bytes_per_token(self) -> int:
        """What one position takes in the caches there are; 0 where no state grows with the length."""
        for state in self._states.values():
            layers = getattr(state.get("past_key_values"), "layers", ())
            tensors = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
            held = [t for t in tensors if isinstance(t, Tensor) and t.dim() == 4 and t.shape[2]]
            return sum(t.numel() * t.element_size() // t.shape[2] for t in held)
        return 0

    def _logits(self, segment: Segment) -> Tensor:
        model = self._model
        ids = torch.tensor([segment.run.ids], device=self._device)
        state = self._states.get(segment.slot)
        first = state is None
        if state is None:
            state = self._first_state(segment, ids)
        inputs = model.prepare_inputs_for_generation(
            ids, next_sequence_length=None if first else 1, is_first_iteration=first, **state
        )
        output = model(**inputs, return_dict=True)
        self._states[segment.slot] = model._update_model_kwargs_for_generation(output, state)
        return output.logits[:, -1]

    def _first_state(self, segment: Segment, ids: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "use_cache": True}
        if self._keeps_last:
            state["logits_to_keep"] = 1
        for name, value in (segment.run.generation.inputs or {}).items():
            state[name] = value.to(self._device) if isinstance(value, Tensor) else value
        state["position_ids"] = self._model._prepare_position_ids_for_generation(ids, state)
        return state
