"""Reads the events of llama.cpp's answer as the chunks that executors yield. Pure; the executor feeds it.

One `Answer` per request: with `n` > 1 every choice brings a usage of its own, and their sum is the request's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from kuwa.builtin.llamacpp.calls import CallReader, Enforced
from kuwa.builtin.llamacpp.engine import UNREADABLE, EngineError, engine_error
from kuwa.executor.chunks import Chunk, Finish, Progress, RawEvent, Reasoning, Text, ToolCallDelta, Usage
from kuwa.wire.errors import BadUpstream
from kuwa.wire.json import BadJson, decoder
from kuwa.wire.openai import Choice, FunctionDelta, known_reason, mend
from kuwa.wire.openai import Chunk as OpenAIChunk

_MARKS = re.compile("\ufffd{2,4}")
"""The marks that llama.cpp sets for bytes that spell no character: one for each byte of two to four."""


class Timings(msgspec.Struct, frozen=True):
    """Tokens so far: of the prompt from the cache and anew, and of the answer."""

    cache_n: int = 0
    prompt_n: int = 0
    predicted_n: int = 0


class PromptProgress(msgspec.Struct, frozen=True):
    """How many of the prompt's tokens have been read."""

    processed: int = 0
    total: int = 0


class Event(OpenAIChunk, frozen=True):
    """An event in the OpenAI shape; of `/infill` in llama.cpp's own."""

    content: str = ""
    stop: bool = False
    stop_type: str = ""
    tokens_evaluated: int = 0
    tokens_predicted: int = 0
    timings: Timings | None = None
    prompt_progress: PromptProgress | None = None


_decode = decoder(Event, mend)


class Answer:
    """Turns the data of one event after the other into chunks.

    `calls` enforced, the text of each choice is read as tool calls. Only the first call of a choice is passed on
    where the client wants no parallel ones.

    llama.cpp reads a chat's whole answer once more at its end and reports an error where it does not fit: so always
    where a format was asked for (`formatted`) and the answer was cut before its end. That is an end like any other.

    What the format says of a text's length, llama.cpp keeps in characters, and takes every two to four bytes for one
    that look like it, though no such character exists (a half of a pair, say). One mark then stands for it.
    """

    def __init__(
        self,
        calls: Enforced | None = None,
        *,
        parallel_calls: bool = True,
        formatted: bool = False,
        most_tokens: int = -1,
    ) -> None:
        self._formatted = formatted
        self._most_tokens = most_tokens
        self._timings: Timings | None = None
        self._generated = 0
        self._calls = calls
        self._parallel = parallel_calls
        self._readers: dict[int, CallReader] = {}

    def chunks(self, data: bytes) -> Iterator[Chunk]:
        """The chunks of one event. Raises what llama.cpp reports as an error, and BadUpstream for no event."""
        try:
            event = _decode(data)
        except BadJson as error:
            raise BadUpstream(f"The llama.cpp engine sent an event that cannot be read: {error}.") from error
        if event.error is not None:
            yield from self._cut(EngineError.of(event.fault))
            return
        self._timings = event.timings or self._timings
        if event.prompt_progress is not None:
            yield Progress(event.prompt_progress.processed, event.prompt_progress.total)
            return
        for choice in event.choices or ():
            if choice.logprobs is not None and self._calls is None:
                yield RawEvent(data)  # nothing of ours could carry them
                return
            yield from self._of_choice(choice)
        if event.content:
            yield Text(event.content)
        if event.stop:
            yield Finish("length" if event.stop_type == "limit" else "stop")
            yield Usage(event.tokens_evaluated, event.tokens_predicted, event.timings.cache_n if event.timings else 0)
        if event.usage is not None:
            self._generated += event.usage.completion_tokens
            yield Usage(
                prompt_tokens=event.usage.prompt_tokens,
                completion_tokens=self._generated,
                cached_tokens=event.usage.cached,
            )

    def _cut(self, error: EngineError) -> Iterator[Chunk]:
        """The end of an answer that was cut where llama.cpp cannot read it. Raises `error` where it was not."""
        counts = self._timings
        cut = self._formatted or (counts is not None and 0 < self._most_tokens <= counts.predicted_n + 1)
        if UNREADABLE not in error.message or not cut:
            raise engine_error(500, error)
        yield Finish("length")
        if counts is not None:
            # What was generated last was held back: an answer that is cut has as many tokens as it may.
            generated = max(self._most_tokens, counts.predicted_n)
            yield Usage(counts.cache_n + counts.prompt_n, generated, counts.cache_n)

    def _of_choice(self, choice: Choice) -> Iterator[Chunk]:
        delta, index = choice.delta, choice.index or 0
        if delta is not None and delta.reasoning_content:
            yield Reasoning(delta.reasoning_content, index)
        text = choice.said
        if self._formatted and "\ufffd" in text:
            text = _MARKS.sub("\ufffd", text)
        if text and self._calls is None:
            yield Text(text, index)
        elif text:
            yield from self._enforced(text, index)
        for call in (delta.tool_calls if delta is not None else None) or ():
            number, function = call.index or 0, call.function or FunctionDelta()
            if number == 0 or self._parallel:
                # Its id is drawn anew each time; the framework's is the same when the answer is computed again.
                yield ToolCallDelta(number, "", function.name or "", function.arguments or "", index)
        if choice.ended is not None:
            reason = known_reason(choice.ended)
            yield Finish("tool_calls" if self._calls is not None and reason == "stop" else reason, index)

    def _enforced(self, text: str, choice: int) -> Iterator[Chunk]:
        assert self._calls is not None  # noqa: S101 - the caller has looked
        reader = self._readers.get(choice)
        if reader is None:
            reader = self._readers[choice] = CallReader(self._calls.name)
        for piece in reader.feed(text):
            yield ToolCallDelta(piece.index, name=piece.name, arguments=piece.arguments, choice=choice)
