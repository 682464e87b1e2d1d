"""Reads the events of llama.cpp's answer as the chunks that executors yield. Pure; the executor feeds it.

One `Answer` per request: with `n` > 1 every choice brings a usage of its own, and their sum is the request's.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from kuwa.builtin.llamacpp.engine import EngineError, engine_error
from kuwa.executor.chunks import Chunk, Finish, FinishReason, Reasoning, Text, ToolCallDelta, Usage
from kuwa.wire.errors import BadUpstream


class FunctionDelta(msgspec.Struct, frozen=True):
    name: str | None = None
    arguments: str | None = None


class CallDelta(msgspec.Struct, frozen=True):
    index: int = 0
    id: str | None = None
    function: FunctionDelta = FunctionDelta()


class Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallDelta] | None = None


class Choice(msgspec.Struct, frozen=True):
    """Of a chat the text is in `delta`, of a plain completion in `text`."""

    index: int = 0
    delta: Delta = Delta()
    text: str = ""
    finish_reason: FinishReason | None = None


class PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int = 0


class UsageCounts(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: PromptDetails = PromptDetails()


class Event(msgspec.Struct, frozen=True):
    choices: list[Choice] = []
    usage: UsageCounts | None = None
    error: EngineError | None = None


_decode = msgspec.json.Decoder(Event).decode


class Answer:
    """Turns the data of one event after the other into chunks."""

    def __init__(self) -> None:
        self._generated = 0

    def chunks(self, data: bytes) -> Iterator[Chunk]:
        """The chunks of one event. Raises what llama.cpp reports as an error, and BadUpstream for no event."""
        try:
            event = _decode(data)
        except msgspec.MsgspecError as error:
            raise BadUpstream(f"The llama.cpp engine sent an event that cannot be read: {error}.") from error
        if event.error is not None:
            raise engine_error(500, event.error)
        for choice in event.choices:
            yield from _of_choice(choice)
        if event.usage is not None:
            self._generated += event.usage.completion_tokens
            yield Usage(
                prompt_tokens=event.usage.prompt_tokens,
                completion_tokens=self._generated,
                cached_tokens=event.usage.prompt_tokens_details.cached_tokens,
            )


def _of_choice(choice: Choice) -> Iterator[Chunk]:
    delta = choice.delta
    if delta.reasoning_content:
        yield Reasoning(delta.reasoning_content, choice.index)
    text = delta.content or choice.text
    if text:
        yield Text(text, choice.index)
    for call in delta.tool_calls or ():
        function = call.function
        # Its id is drawn anew each time; the framework's is the same when the answer is computed again.
        yield ToolCallDelta(call.index, "", function.name or "", function.arguments or "", choice.index)
    if choice.finish_reason is not None:
        yield Finish(choice.finish_reason, choice.index)
