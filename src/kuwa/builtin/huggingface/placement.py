"""Where a model's weights go and in what numbers: the arguments that transformers is given. Pure; `loading` asks.

Free memory is looked at by the caller, so that all of this can be tested without a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

WEIGHT_SHARE = 0.8
"""How much of each of several GPUs the weights may fill; the rest is for keys, values and what is computed."""

Bits = Literal[0, 4, 8]


def placement(free: Sequence[int]) -> dict[str, Any]:
    """Where the weights go, given the free bytes of each visible GPU.

    Several GPUs share the layers. Main memory is no place for what does not fit: each token would wait for it.
    """
    if not free:
        return {}
    if len(free) == 1:
        return {"device_map": {"": 0}}
    return {"device_map": "auto", "max_memory": {gpu: int(size * WEIGHT_SHARE) for gpu, size in enumerate(free)}}


def quantisation(bits: Bits) -> dict[str, Any]:
    """The arguments of BitsAndBytesConfig; empty where the weights stay as they are."""
    if bits == 8:
        return {"load_in_8bit": True}
    if bits == 4:
        return {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": "bfloat16",
        }
    return {}


def why_not_quantised(bits: Bits, *, installed: bool, gpus: int) -> str:
    """Why the weights cannot be loaded in so many bits; empty where they can."""
    if not bits:
        return ""
    if not installed:
        return f"--load_{bits}bits needs bitsandbytes; install it with: pip install bitsandbytes"
    if not gpus:
        return f"--load_{bits}bits needs a GPU, and none is to be seen here (see --visible_gpu)"
    return ""
