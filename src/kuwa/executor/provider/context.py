"""How many tokens a request takes, estimated from above, and which old turns go where that is too many.

Used where the oldest turns may be left out; otherwise the provider counts for itself and says so. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kuwa.executor.prompt import Message, trim_oldest
from kuwa.wire.errors import ContextLengthExceeded
from kuwa.wire.json import is_list, is_object

# Characters (outside ASCII: bytes of UTF-8) that one token holds, chosen low. Byte-pair tokenizers give a common
# word a token, a punctuation mark often one of its own, and a rare character up to one per byte.
_PER_TOKEN = (
    (re.compile(r"[A-Za-z\t\n\r ]+"), 3.0),
    (re.compile(r"[0-9]+"), 2.0),
    (re.compile(r"[!-/:-@\[-`{-~]+"), 1.0),
)
OTHER_BYTES_PER_TOKEN = 1.5
TOKENS_PER_MESSAGE = 6
TOKENS_PER_MEDIUM = 1600
# What is kept free for an answer whose length nobody limited.
ANSWER_PART = 4
ANSWER_MOST = 1024


def text_tokens(text: str) -> int:
    counted = 0
    tokens = 0.0
    for pattern, per_token in _PER_TOKEN:
        length = sum(map(len, pattern.findall(text)))
        counted += length
        tokens += length / per_token
    # Every ASCII character but the control ones has been counted, and counts for one byte here.
    other_bytes = len(text.encode("utf-8", "replace")) - counted
    return int(tokens + other_bytes / OTHER_BYTES_PER_TOKEN) + 1


def message_tokens(message: Message) -> int:
    """One message with all that belongs to it: parts, images (a flat estimate each), tool calls."""
    tokens = TOKENS_PER_MESSAGE
    for name, value in message.items():
        if name == "content" and is_list(value):
            tokens += sum(_part_tokens(part) for part in value)
        elif isinstance(value, str):
            tokens += text_tokens(value)
        elif value is not None:
            tokens += text_tokens(json.dumps(value, ensure_ascii=False))
    return tokens


def _part_tokens(part: Any) -> int:
    if not is_object(part):
        return text_tokens(str(part))
    text: object = part.get("text")
    return text_tokens(text) if isinstance(text, str) else TOKENS_PER_MEDIUM


def prompt_tokens(messages: Sequence[Message]) -> int:
    """What `messages` take, estimated from above."""
    return sum(map(message_tokens, messages))


def trim(
    messages: Sequence[Message],
    window: int,
    body: Mapping[str, Any],
    count: Callable[[Sequence[Message]], int] = prompt_tokens,
) -> tuple[list[Message], int]:
    """`messages` without the oldest turns that do not fit into `window` tokens, and how many messages went.

    `body` is the rest of the request: its tools take room, and its token limit is kept free for the answer. `count`
    tells how many tokens some messages take. Raises ContextLengthExceeded where not even the last turn fits.
    """
    room = window - _answer_tokens(window, body)
    if tools := body.get("tools"):
        room -= text_tokens(json.dumps(tools, ensure_ascii=False))
    trimmed = trim_oldest(messages, lambda kept: count(kept) <= room)
    if trimmed is None:
        raise ContextLengthExceeded(
            f"The last message is too long: about {count(messages)} tokens were sent, and of the context window of "
            f"{window} tokens {max(room, 0)} are left for them (see --context_window).",
            param="messages",
        )
    return trimmed


def _answer_tokens(window: int, body: Mapping[str, Any]) -> int:
    asked = body.get("max_completion_tokens") or body.get("max_tokens")
    return asked if isinstance(asked, int) else min(window // ANSWER_PART, ANSWER_MOST)
