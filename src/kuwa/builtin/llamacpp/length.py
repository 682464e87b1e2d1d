"""Makes conversations fit: counts their tokens with the model's own template and tokenizer, leaves out old turns.

Called by the executor for each request that has a limit; the engine does the counting.
"""

from __future__ import annotations

import asyncio
from typing import Any

from kuwa.builtin.llamacpp.engine import Engine
from kuwa.executor.prompt import Message, text_of, trim_oldest
from kuwa.wire.errors import ContextLengthExceeded

TEMPLATE_TOKENS_PER_MESSAGE = 32


async def check_length(engine: Engine, messages: list[Message], tools: list[dict[str, Any]], limit: int) -> None:
    """Raises ContextLengthExceeded for a prompt of more than `limit` tokens."""
    if _most_tokens(messages, tools) <= limit:
        return
    tokens = await count(engine, messages, tools)
    if tokens > limit:
        raise _too_long(limit, f"The prompt has {tokens} tokens")


async def trim(
    engine: Engine, messages: list[Message], tools: list[dict[str, Any]], limit: int, most_bytes: int
) -> tuple[list[Message], int]:
    """`messages` without the oldest turns that are beyond `limit` tokens, and how many messages were left out.

    `most_bytes`: no context holds more; 0 where that cannot be told.

    Raises ContextLengthExceeded where the last turn alone is too long.
    """
    if _most_tokens(messages, tools) <= limit:
        return messages, 0
    loop = asyncio.get_running_loop()

    def fits(candidate: list[Message]) -> bool:
        if 0 < most_bytes < sum(len(text_of(message).encode("utf-8", "replace")) for message in candidate):
            return False
        return asyncio.run_coroutine_threadsafe(count(engine, candidate, tools), loop).result() <= limit

    # In a thread: `trim_oldest` decides and does not await, and what it asks for takes calls to the engine.
    trimmed = await asyncio.to_thread(trim_oldest, messages, fits)
    if trimmed is None:
        raise _too_long(limit, "The last message alone is longer")
    return trimmed


async def count(engine: Engine, messages: list[Message], tools: list[dict[str, Any]]) -> int:
    """How many tokens the model reads for `messages`."""
    conversation = {"messages": messages, "tools": tools} if tools else {"messages": messages}
    rendered = await engine.call("/apply-template", conversation)
    text = {"content": rendered["prompt"], "add_special": True, "parse_special": True}
    return len((await engine.call("/tokenize", text))["tokens"])


def _most_tokens(messages: list[Message], tools: list[dict[str, Any]]) -> int:
    """A bound that no byte-level vocabulary exceeds: most prompts are short, and counting takes two calls."""
    parts = [*messages, *tools]
    return sum(len(str(part).encode("utf-8", "replace")) + TEMPLATE_TOKENS_PER_MESSAGE for part in parts)


def _too_long(limit: int, fault: str) -> ContextLengthExceeded:
    return ContextLengthExceeded(
        f"{fault}, and this model takes prompts of {limit} tokens. Shorten the conversation, or start the "
        "executor with a larger --limit or --context_window.",
        param="messages",
    )
