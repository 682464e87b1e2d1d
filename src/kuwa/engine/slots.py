"""The `slot` backend: all tokens of a step, of whatever requests, as one packed sequence through the model at once.

The weights are read once per step, for prompts and for generating requests together. The model sees one sequence of
tokens with their positions; where its layers would attend, `_Arena.attend` takes over: each request's tokens attend
to that request's slot and to nothing else. transformers offers both doors: a cache object whose layers keep the keys
and values, and an attention function registered under a name of our own (it makes no masks under such a name).

Sliding windows, attention sinks, soft caps and values of another width than the keys are done here. A model that
asks for more, or that mixes tokens outside its attention (state space, convolution, masks of its own), fails
`probe`'s comparison and is served by `turns`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin

from kuwa.engine.scheduler import Limits, Plan, Segment

FIRST_CAPACITY = 256
"""Tokens per slot that an arena begins with; it doubles as longer sequences come."""
_serial = count()


class CannotPack(Exception):
    """The model's attention asks for something that packed batches cannot give."""


@dataclass(frozen=True, slots=True)
class Group:
    """Tokens `first`, … of the packed sequence that are computed together: either one segment with more than one
    token, or the single tokens of requests in neighbouring slots `slot`, …. `ends` are how many positions of its
    slot each row reaches."""

    first: int
    tokens: int
    slot: int
    ends: tuple[int, ...]

    @property
    def rows(self) -> int:
        return len(self.ends)


def grouped(segments: Sequence[Segment]) -> Iterator[Group]:
    """The segments as groups, in their order. Neighbouring slots share a group while none is over twice as long as
    another: the shorter ones pay for the longest."""
    at = 0
    row: list[Segment] = []
    for segment in segments:
        if row and not _joins(row, segment):
            yield _group(at, row)
            at += sum(len(member.ids) for member in row)
            row = []
        row.append(segment)
    if row:
        yield _group(at, row)


def _joins(row: Sequence[Segment], segment: Segment) -> bool:
    if len(segment.ids) > 1 or len(row[0].ids) > 1 or segment.slot != row[-1].slot + 1:
        return False
    ends = [member.end for member in row]
    return max(*ends, segment.end) <= 2 * min(*ends, segment.end) + FIRST_CAPACITY


def _group(first: int, row: Sequence[Segment]) -> Group:
    return Group(first, sum(len(s.ids) for s in row), row[0].slot, tuple(s.end for s in row))


class SlotBackend:
    """A model behind a slot arena. `bytes_per_token` is what one position takes in all layers, known after the
    first step."""

    name = "slot"

    def __init__(self, model: Any, limits: Limits) -> None:
        """Raises CannotPack for a model whose attention cannot be replaced."""
        if not model._can_set_attn_implementation():
            raise CannotPack("its attention cannot be replaced")
        self.limits = limits
        self._model = model
        self._device = model.device
        self._arena = _Arena(model.config.get_text_config().num_hidden_layers, limits)
        self._implementation: str = model.config._attn_implementation
        self._name = f"kuwa_slot_{next(_serial)}"
        functions: Any = AttentionInterface
        functions.register(self._name, self._arena.attend)
        model.set_attn_implementation(self._name)
        if model.config.get_text_config()._attn_implementation != self._name:
            raise CannotPack("its attention cannot be replaced")

    def close(self) -> None:
        """Give the model its own attention back."""
        self._model.set_attn_implementation(self._implementation)
        self.reset()

    @property
    def bytes_per_token(self) -> int:
        return self._arena.bytes_per_token

    def resized(self, limits: Limits) -> None:
        """Go on with other limits and nothing held."""
        self.limits = self._arena.limits = limits
        self.reset()

    def reset(self) -> None:
        self._arena.drop()

    @torch.inference_mode()
    def compute(self, plan: Plan) -> Tensor:
        # Neighbouring slots stand beside each other, and the single tokens before the longer segments.
        order = sorted(plan.segments, key=lambda segment: (len(segment.ids) > 1, segment.slot))
        for copy in plan.copies:
            self._arena.copy(copy.source, copy.target, copy.length)
        self._arena.begin(order, self._device)
        last: dict[int, int] = {}
        at = 0
        for segment in order:
            at += len(segment.ids)
            last[segment.slot] = at - 1
        wanted = torch.tensor([last[segment.slot] for segment in plan.drawing], dtype=torch.long, device=self._device)
        ids = [token for segment in order for token in segment.ids]
        positions = [position for segment in order for position in range(segment.start, segment.end)]
        output = self._model(
            input_ids=torch.tensor([ids], device=self._device),
            position_ids=torch.tensor([positions], device=self._device),
            past_key_values=self._arena.cache,
            use_cache=True,
            logits_to_keep=wanted,
        )
        return output.logits[0]


class _Arena:
    """The keys and values of all slots in all layers, and the attention of the step under way."""

    def __init__(self, layers: int, limits: Limits) -> None:
        self.limits = limits
        self.layers = [_Layer(self) for _ in range(layers)]
        self.cache = Cache(layers=list(self.layers))
        self.groups: list[Group] = []
        self.capacity = 0
        self.rows = torch.empty(0)
        self.positions = torch.empty(0)
        self._masks: dict[tuple[Group, int | None, torch.device], Tensor | None] = {}

    @property
    def bytes_per_token(self) -> int:
        return sum(layer.bytes_per_token for layer in self.layers)

    def begin(self, segments: Sequence[Segment], device: torch.device) -> None:
        """Be ready for a step that computes `segments` as one packed sequence in this order."""
        self.groups = list(grouped(segments))
        self._masks.clear()
        most = max(segment.end for segment in segments)
        while self.capacity < most:
            self.capacity = max(FIRST_CAPACITY, self.capacity * 2)
        self.capacity = min(self.capacity, max(self.limits.length, most))
        singles = [segment for segment in segments if len(segment.ids) == 1]
        self.rows = torch.tensor([segment.slot for segment in singles], device=device)
        self.positions = torch.tensor([segment.start for segment in singles], device=device)

    def drop(self) -> None:
        self.capacity = 0
        for layer in self.layers:
            layer.drop()

    def copy(self, source: int, target: int, length: int) -> None:
        for layer in self.layers:
            layer.kept_keys[target, :, :length] = layer.kept_keys[source, :, :length]
            layer.kept_values[target, :, :length] = layer.kept_values[source, :, :length]

    def attend(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        dropout: float = 0.0,
        **others: Any,
    ) -> tuple[Tensor, None]:
        """The attention of one layer over the packed sequence, `[1, heads, tokens, width]` in and
        `[1, tokens, heads, width]` out. Raises CannotPack for a kind of attention that is not known here."""
        layer = self.layers[int(module.layer_idx)]
        if not layer.took(key, value):
            raise CannotPack("it keeps other keys and values than it attends to")
        if attention_mask is not None or dropout or others.get("position_bias") is not None:
            raise CannotPack("its attention brings masks or biases of its own")
        outputs = [
            self._attend_group(layer, group, query, _Extras(scaling, sliding_window, softcap, s_aux))
            for group in self.groups
        ]
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).unsqueeze(0), None

    def _attend_group(self, layer: _Layer, group: Group, query: Tensor, extras: _Extras) -> Tensor:
        """`[tokens of the group, heads, width]`."""
        window = extras.window
        low, high = 0, max(group.ends)
        if window is not None:
            length = group.tokens if group.rows == 1 else 1
            low = max(0, min(group.ends) - length + 1 - window)
        keys = layer.kept_keys[group.slot : group.slot + group.rows, :, low:high]
        values = layer.kept_values[group.slot : group.slot + group.rows, :, low:high]
        asked = query[0, :, group.first : group.first + group.tokens]
        mask = self._mask(group, low, high, window, query.device)
        if group.rows == group.tokens:
            # One token a row: the query heads of a key head stand in for the length, nothing is repeated.
            rows = asked.transpose(0, 1).reshape(group.rows, keys.shape[1], -1, asked.shape[-1])
            answer = _attention(rows, keys, values, mask, extras)
            return answer.reshape(group.rows, asked.shape[0], -1)
        causal = mask is None
        answer = _attention(asked.unsqueeze(0), keys, values, mask, extras, causal=causal)
        return answer[0].transpose(0, 1)

    def _mask(self, group: Group, low: int, high: int, window: int | None, device: torch.device) -> Tensor | None:
        """Which of the positions `low` to `high` each token of the group sees, `[rows, 1, tokens of a row, high -
        low]`; None where it is all of them, or all up to the token's own of a sequence that begins here."""
        key = (group, window, device)
        if key not in self._masks:
            self._masks[key] = _made_mask(group, low, high, window, device)
        return self._masks[key]


def _made_mask(group: Group, low: int, high: int, window: int | None, device: torch.device) -> Tensor | None:
    if group.rows == group.tokens:
        if all(end == high for end in group.ends) and (window is None or high - low <= window):
            return None
        own = torch.tensor(group.ends, device=device).view(-1, 1, 1, 1) - 1
    else:
        if group.tokens == high and (window is None or high <= window):
            return None
        own = torch.arange(high - group.tokens, high, device=device).view(1, 1, -1, 1)
    positions = torch.arange(low, high, device=device)
    mask = positions <= own
    return mask if window is None else mask & (positions > own - window)


@dataclass(frozen=True, slots=True)
class _Extras:
    scaling: float | None
    window: int | None
    softcap: float | None
    sinks: Tensor | None


def _attention(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, extras: _Extras, *, causal: bool = False
) -> Tensor:
    """Attention over `[rows, heads, length, width]`; there may be fewer key heads than query heads."""
    if extras.softcap is None and extras.sinks is None:
        grouped_heads = query.shape[1] != keys.shape[1]
        return scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, scale=extras.scaling, is_causal=causal, enable_gqa=grouped_heads
        )
    return _written_out(query, keys, values, mask, extras, causal=causal)


def _written_out(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, extras: _Extras, *, causal: bool
) -> Tensor:
    """The same with soft caps and sinks, which the fused kernels do not know."""
    rows, heads, length, width = query.shape
    key_heads = keys.shape[1]
    share = heads // key_heads
    folded = query.reshape(rows, key_heads, share * length, width)
    scores = (folded @ keys.transpose(2, 3)) * (width**-0.5 if extras.scaling is None else extras.scaling)
    scores = scores.view(rows, key_heads, share, length, -1)
    if extras.softcap is not None:
        scores = torch.tanh(scores / extras.softcap) * extras.softcap
    if causal:
        mask = torch.ones(length, scores.shape[-1], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~(mask.unsqueeze(2) if mask.dim() == 4 else mask), float("-inf"))
    if extras.sinks is None:
        weights = scores.softmax(-1, dtype=torch.float32)
    else:
        # With single tokens the query heads of a key head were folded into the length.
        sinks = extras.sinks.view(1, key_heads, -1, 1, 1)
        sinks = sinks.transpose(2, 3) if share == 1 else sinks
        column = sinks.expand(rows, key_heads, share, length, 1).to(scores.dtype)
        weights = torch.cat((scores, column), -1).softmax(-1, dtype=torch.float32)[..., :-1]
    weights = weights.to(values.dtype).view(rows, key_heads, share * length, -1)
    return (weights @ values).view(rows, heads, length, -1)


class _Layer(CacheLayerMixin):
    """One layer's part of the arena: keys and values `[slots, key heads, capacity, width]`.

    What a step brings is remembered until its attention has asked for it.
    """

    is_sliding = False

    def __init__(self, arena: _Arena) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType] - untyped there
        self._arena = arena
        self.kept_keys = torch.empty(0)
        self.kept_values = torch.empty(0)
        self._came: tuple[Tensor, Tensor] | None = None

    def took(self, key: Tensor, value: Tensor) -> bool:
        """Whether the step's `key` and `value` are those that were kept, once."""
        came, self._came = self._came, None
        return came is not None and all(
            a.data_ptr() == b.data_ptr() and a.shape == b.shape for a, b in zip(came, (key, value), strict=True)
        )

    @property
    def bytes_per_token(self) -> int:
        if self.kept_keys.numel() == 0:
            return 0
        return sum(t.shape[1] * t.shape[3] * t.element_size() for t in (self.kept_keys, self.kept_values))

    def drop(self) -> None:
        self.kept_keys = torch.empty(0)
        self.kept_values = torch.empty(0)
        self._came = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise NotImplementedError("slots are filled by update alone")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keep the step's keys and values, `[1, key heads, tokens, width]`, where its segments belong."""
        self.kept_keys = self._room(self.kept_keys, key_states)
        self.kept_values = self._room(self.kept_values, value_states)
        arena = self._arena
        singles = arena.rows.numel()
        if singles:
            where = (arena.rows.to(key_states.device), slice(None), arena.positions.to(key_states.device))
            self.kept_keys[where] = key_states[0, :, :singles].transpose(0, 1)
            self.kept_values[where] = value_states[0, :, :singles].transpose(0, 1)
        for group in arena.groups:
            if group.tokens > group.rows:
                (end,) = group.ends
                into = slice(end - group.tokens, end)
                from_ = slice(group.first, group.first + group.tokens)
                self.kept_keys[group.slot, :, into] = key_states[0, :, from_]
                self.kept_values[group.slot, :, into] = value_states[0, :, from_]
        self._came = (key_states, value_states)
        return key_states, value_states

    def _room(self, had: Tensor, states: Tensor) -> Tensor:
        """`had` with the arena's capacity. Zeros where nothing is: a masked NaN would still spoil a sum."""
        arena = self._arena
        if had.numel() and had.shape[2] == arena.capacity:
            return had
        shape = (arena.limits.slots, states.shape[1], arena.capacity, states.shape[3])
        grown = torch.zeros(shape, dtype=states.dtype, device=states.device)
        if had.numel():
            grown[:, :, : had.shape[2]] = had
        return grown

    def get_seq_length(self) -> int:
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_max_length(self) -> int:
        return self._arena.limits.length
