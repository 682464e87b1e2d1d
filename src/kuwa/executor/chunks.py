"""What `llm_compute` may yield: plain `str`, or one of these where text alone does not say enough."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from kuwa.wire.openai import FinishReason, Usage


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


class RawAnswer(msgspec.Struct, frozen=True):
    """A whole `chat.completion` (or its like) as JSON, for a request that is not streamed: it is passed on with what
    a raw event has replaced."""

    data: bytes


class RawStream:
    """The raw events of an answer that come by themselves: its source hands them over as they arrive, and no task
    runs for each. Yield one where a provider's stream is passed on."""

    async def run(self, give: Callable[[list[bytes]], bool]) -> None:
        """Call `give` with the events of each read, without `[DONE]`, until the answer has ended or `give` says that
        it has enough. Raises the KuwaError that an answer which breaks off is for the client."""
        raise NotImplementedError

    def pause(self) -> None:
        """Hand over nothing more for now: the client reads more slowly. What was read already may still come."""

    def resume(self) -> None:
        """Go on."""


Chunk = str | Text | Reasoning | ToolCallDelta | Usage | Finish | Progress | RawEvent | RawAnswer | RawStream
