"""What `llm_compute` may yield: plain `str`, or one of these where text alone does not say enough."""

from __future__ import annotations

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class Text(msgspec.Struct, frozen=True):
    """A piece of the answer. `choice` is the index of the alternative it belongs to (0 but for `n` > 1).

    `ids` are the tokens that were consumed since the piece before, for executors that can go on with a stream by
    `Request.resume.ids`; the text may be empty where a token gave none yet.
    """

    text: str
    choice: int = 0
    ids: tuple[int, ...] = ()


class Reasoning(msgspec.Struct, frozen=True):
    """A piece of the model's reasoning, sent as `reasoning_content`."""

    text: str
    choice: int = 0


class ToolCallDelta(msgspec.Struct, frozen=True):
    """A piece of a tool call. `id` and `name` come with the first piece of each `index`, `arguments` in pieces."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""
    choice: int = 0


class Usage(msgspec.Struct, frozen=True):
    """Token counts of the whole request. The last one yielded counts."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class Finish(msgspec.Struct, frozen=True):
    """Why a choice ended. Without one the framework says `stop`."""

    reason: FinishReason
    choice: int = 0


class Progress(msgspec.Struct, frozen=True):
    """Still computing, without anything to show yet: a long prompt is being read. `done` of `total` tokens, where
    that is known. It becomes a comment in a stream, by which the kernel tells a slow executor from one that hangs;
    yield it as often as you like.
    """

    done: int = 0
    total: int = 0


class RawEvent(msgspec.Struct, frozen=True):
    """A whole `chat.completion.chunk` (or its like) as JSON, passed on as it is; for executors in front of
    another OpenAI server, so that fields this framework does not know survive. The server replaces its
    `id`, `created` and `model`."""

    data: bytes


class RawEvents(msgspec.Struct, frozen=True):
    """Several raw events that came in one read, to be sent on in one write."""

    datas: list[bytes]


Chunk = str | Text | Reasoning | ToolCallDelta | Usage | Finish | Progress | RawEvent | RawEvents
