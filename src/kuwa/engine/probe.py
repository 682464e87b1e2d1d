"""Chooses the backend for a model, by trying: a backend serves it if it computes what the model itself computes.

Called once at load. The candidates compute a few made-up sequences side by side, in pieces; the model computes them
one after the other with its own cache. Where the logits agree, packed batches are safe for this architecture.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from kuwa.engine import sizing
from kuwa.engine.loop import Door, Engine
from kuwa.engine.paged import PagedBackend, PagedEngine
from kuwa.engine.request import Generation
from kuwa.engine.scheduler import Limits, Scheduler
from kuwa.engine.slots import CannotPack, SlotBackend
from kuwa.engine.turns import TurnsBackend

log = logging.getLogger(__name__)

Choice = Literal["auto", "slot", "paged", "interleave", "single"]
Stepping = SlotBackend | TurnsBackend
AnyBackend = Stepping | PagedBackend

_LENGTHS = (13, 5)
_NEW = 3
_PACKABLE_LAYERS = {"full_attention", "sliding_attention"}


class CannotServe(Exception):
    """No backend, or not the one that was wanted, computes what the model computes; the message says why."""


def backend_for(
    model: Any, wanted: Choice, *, slots: int, context: int, step_tokens: int | None, budget: int | None
) -> AnyBackend:
    """The backend for `model`, tried out and sized; `budget` is in bytes. Raises CannotServe, sizing.DoesNotFit."""
    on_gpu = model.device.type == "cuda"
    step = step_tokens or (sizing.STEP_TOKENS_GPU if on_gpu else sizing.STEP_TOKENS_CPU)
    limits = Limits(slots=slots, length=context, step_tokens=step)
    backend = _tried(model, wanted, limits)
    free = budget if budget is not None else sizing.cache_bytes(_free_memory(model.device), on_gpu=on_gpu)
    length = sizing.sequence_length(context, backend.limits.slots, backend.bytes_per_token, free)
    log.info(
        "engine %s: %d requests at once, %d tokens each (%.2f GiB of keys and values at most), %d tokens a step",
        backend.name,
        backend.limits.slots,
        length,
        backend.bytes_per_token * backend.limits.slots * length / sizing.GIB,
        step,
    )
    if length < context:
        log.warning("the model could read %d tokens; give more --kv_cache_gb or a lower --concurrency", context)
    backend.resized(replace(backend.limits, length=length))
    return backend


def engine_of(backend: AnyBackend, on_trouble: Callable[[str], None]) -> Door:
    """The engine that computes on `backend`; `on_trouble` is told when it no longer can."""
    if isinstance(backend, PagedBackend):
        return PagedEngine(backend, on_trouble=on_trouble)
    return Engine(backend, on_trouble=on_trouble)


def _tried(model: Any, wanted: Choice, limits: Limits) -> AnyBackend:
    if wanted == "paged":
        return _paged(model, limits)
    turns = replace(limits, share_prefixes=False, chunks=False)
    alone = TurnsBackend(model, replace(turns, slots=1))
    expected = [logits for ids in _probes(model) for logits in _logits(alone, [ids])]
    if wanted == "single":
        return alone
    if wanted in ("auto", "slot"):
        try:
            slot = SlotBackend(model, limits)
        except CannotPack as error:
            why = str(error)
        else:
            why = _fault(slot, model, expected)
            if not why:
                return slot
            slot.close()
        if wanted == "slot":
            raise CannotServe(f"--engine slot cannot serve this model: {why}; use --engine auto")
        log.info("this model's requests take turns instead of sharing batches: %s", why)
    together = TurnsBackend(model, turns)
    why = _fault(together, model, expected)
    if not why:
        return together
    if wanted == "interleave":
        raise CannotServe(f"--engine interleave cannot serve this model: {why}; use --engine auto")
    log.info("this model's requests are computed one at a time: %s", why)
    return alone


def _paged(model: Any, limits: Limits) -> PagedBackend:
    """For models of ordinary attention. Not chosen by itself: it pays with flash attention on a GPU alone."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if kinds - _PACKABLE_LAYERS:
        odd = ", ".join(sorted(kinds - _PACKABLE_LAYERS))
        raise CannotServe(f"--engine paged cannot serve this model: it has layers of the kind {odd}; use --engine auto")
    return PagedBackend(model, limits)


def _fault(backend: Stepping, model: Any, expected: Sequence[Tensor]) -> str:
    """Why the backend does not serve the model; empty where it does. `expected` are the logits of one probe after
    the other."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if isinstance(backend, SlotBackend) and kinds - _PACKABLE_LAYERS:
        return f"it has layers of the kind {', '.join(sorted(kinds - _PACKABLE_LAYERS))}"
    try:
        found = _logits(backend, _probes(model))
    except Exception as error:  # noqa: BLE001 - a model may fail in any way; then it is not served so
        return str(error) or type(error).__name__
    if not all(_agree(a, b) for a, b in zip(found, expected, strict=True)):
        return "it computes something else in shared batches"
    return ""


def _agree(found: Tensor, expected: Tensor) -> bool:
    """Equal but for rounding: 32-bit logits to a thousandth of their range, others to a tenth."""
    expected, exact = expected.float(), expected.dtype == torch.float32
    allowed = (1e-3 if exact else 1e-1) * float(expected.max() - expected.min())
    return bool((found.float() - expected).abs().max() <= allowed)


def _probes(model: Any) -> list[list[int]]:
    """Made-up prompts with the tokens that are to follow them, far apart in the vocabulary."""
    size = model.config.get_text_config().vocab_size
    return [[(7919 * (place + 31 * length)) % size for place in range(length + _NEW)] for length in _LENGTHS]


def _logits(backend: Stepping, probes: Sequence[Sequence[int]]) -> list[Tensor]:
    """The logits behind each probe's prompt and the tokens that follow it, computed in pieces, probe by probe."""
    scheduler = Scheduler(replace(backend.limits, step_tokens=8))
    for key, ids in enumerate(probes):
        scheduler.add(key, Generation(prompt=ids[:-_NEW], max_tokens=_NEW + 1))
    found: list[list[Tensor]] = [[] for _ in probes]
    while not scheduler.idle:
        plan = scheduler.plan()
        logits = backend.compute(plan)
        forced: list[int] = []
        for row, segment in enumerate(plan.drawing):
            key = segment.run.key
            found[key].append(logits[row].clone())
            following = probes[key][len(probes[key]) - _NEW :]
            forced.append(following[min(len(found[key]) - 1, _NEW - 1)])
        scheduler.advance(plan, forced)
    return [logits for probe in found for logits in probe]


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available
