"""How long the engine's sequences may be, given what memory there is. Pure; `probe` measures and asks."""

from __future__ import annotations

GIB = 1 << 30
STEP_TOKENS_CPU = 512
STEP_TOKENS_GPU = 4096
LEAST_LENGTH = 64
ROUND = 16


class DoesNotFit(Exception):
    """The memory given does not suffice for sequences of a useful length; the message says for which it would."""


def cache_bytes(free: int, *, on_gpu: bool) -> int:
    """The memory to use for keys and values where nobody said: on a GPU most of what the weights left, in main
    memory a quarter of what is free, since other programs live there, too."""
    return free * 8 // 10 if on_gpu else free // 4


def sequence_length(context: int, slots: int, bytes_per_token: int, budget: int) -> int:
    """The most tokens a sequence may have, so that `slots` of them fit into `budget` bytes. Raises DoesNotFit."""
    if bytes_per_token == 0:
        return context
    fitting = budget // (slots * bytes_per_token) // ROUND * ROUND
    if fitting < min(LEAST_LENGTH, context):
        needed = slots * bytes_per_token * LEAST_LENGTH / GIB
        raise DoesNotFit(
            f"{budget / GIB:.2f} GiB for the attention cache leave {fitting} tokens to each of {slots} requests at "
            f"once; give --kv_cache_gb {needed:.2f} or more, or a lower --concurrency"
        )
    return min(context, fitting)
