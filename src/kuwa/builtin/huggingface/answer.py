"""Turns the tokens of one choice into the chunks that executors yield: text, reasoning, tool calls, log probabilities.

Pure: the executor feeds it what the engine says. A token goes through the detokenizer, the stop strings, and the
reader of reasoning and tool calls, each of which may hold text back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import msgspec

from kuwa.builtin.huggingface.detokenizer import BROKEN, Detokenizer
from kuwa.builtin.huggingface.parts import Part, PartReader
from kuwa.engine.request import Drawn, EndReason
from kuwa.executor.chunks import Chunk, Finish, FinishReason, RawEvent, Reasoning, Text, ToolCallDelta
from kuwa.executor.request import Kind
from kuwa.executor.stop import StopCutter
from kuwa.wire.json import Fields

Decode = Callable[[Sequence[int]], str]


class ChoiceAnswer:
    """One choice. `stopped`: a stop string has ended it, the rest need not be computed."""

    def __init__(
        self,
        index: int,
        decode: Decode,
        *,
        kind: Kind = "chat",
        stops: Sequence[str] = (),
        silent: Collection[int] = (),
        parts: PartReader | None = None,
        logprobs: bool = False,
    ) -> None:
        """Tokens in `silent` end the answer and have no text."""
        self._index = index
        self._decode = decode
        self._kind = kind
        self._silent = silent
        self._detokenizer = Detokenizer(decode)
        self._cutter = StopCutter(stops) if stops else None
        self._parts = parts
        self._logprobs = logprobs
        self._calls = 0
        self._characters = 0

    @property
    def stopped(self) -> bool:
        return self._cutter is not None and self._cutter.stopped

    def take(self, drawn: Drawn) -> list[Chunk]:
        """What has become certain with this token."""
        text = "" if drawn.id in self._silent else self._detokenizer.push(drawn.id)
        chunks = list(self._shown(text)) if text else []
        if self._logprobs:
            return self._with_logprobs(chunks, drawn) if drawn.id not in self._silent else chunks
        return _with_id(chunks, drawn.id, self._index)

    def finish(self, reason: EndReason) -> list[Chunk]:
        """The last chunks of the choice, its finish at the end."""
        if self.stopped:
            return [*self._rest(""), Finish("stop", self._index)]
        text = self._detokenizer.finish()
        if self._cutter is not None:
            text = self._cutter.feed(text) + self._cutter.finish()
        chunks = list(self._rest(text))
        said: FinishReason = "stop" if self.stopped else reason
        return [*chunks, Finish("tool_calls" if self._calls and said == "stop" else said, self._index)]

    def _shown(self, text: str) -> Iterator[Chunk]:
        if self._cutter is not None:
            text = self._cutter.feed(text)
        if self._parts is None:
            yield from self._of_text(text)
            return
        for part in self._parts.feed(text):
            yield from self._of_part(part)

    def _rest(self, text: str) -> Iterator[Chunk]:
        if self._parts is None:
            yield from self._of_text(text)
            return
        for part in (*self._parts.feed(text), *self._parts.finish()):
            yield from self._of_part(part)

    def _of_text(self, text: str) -> Iterator[Chunk]:
        if text:
            yield Text(text, self._index)

    def _of_part(self, part: Part) -> Iterator[Chunk]:
        if part.kind == "text":
            yield Text(part.text, self._index)
        elif part.kind == "reasoning":
            yield Reasoning(part.text, self._index)
        else:
            yield ToolCallDelta(self._calls, name=part.name, arguments=part.text, choice=self._index)
            self._calls += 1

    # ---- log probabilities ---------------------------------------------------------------------------------

    def _with_logprobs(self, chunks: list[Chunk], drawn: Drawn) -> list[Chunk]:
        """The same with the token's log probabilities, in one event with its text where that is one chunk."""
        fields: Fields = {"index": self._index, "logprobs": self._logprob_fields(drawn)}
        content = ""
        if len(chunks) == 1 and isinstance(chunks[0], Text):
            content = chunks[0].text
            chunks = []
        fields |= {"delta": {"content": content}} if self._kind == "chat" else {"text": content}
        return [*chunks, RawEvent(msgspec.json.encode({"choices": [fields]}))]

    def _logprob_fields(self, drawn: Drawn) -> Fields:
        if self._kind == "chat":
            top = [self._token(id_, logprob) for id_, logprob in drawn.top]
            return {"content": [{**self._token(drawn.id, drawn.logprob), "top_logprobs": top}], "refusal": None}
        text = self._decode([drawn.id])
        offset, self._characters = self._characters, self._characters + len(text)
        return {
            "tokens": [text],
            "token_logprobs": [_finite(drawn.logprob)],
            "top_logprobs": [{self._decode([id_]): _finite(logprob) for id_, logprob in drawn.top}],
            "text_offset": [offset],
        }

    def _token(self, token: int, logprob: float) -> Fields:
        text = self._decode([token])
        # A token that is a part of a character: its bytes are not in the text any more.
        known = None if BROKEN in text else list(text.encode("utf-8", "replace"))
        return {"token": text, "logprob": _finite(logprob), "bytes": known}


def _with_id(chunks: list[Chunk], token: int, choice: int) -> list[Chunk]:
    """The chunks with the token beside them: by their ids another executor goes on where this one was lost."""
    if len(chunks) == 1 and isinstance(chunks[0], Text):
        return [Text(chunks[0].text, choice, (token,))]
    return [Text("", choice, (token,)), *chunks]


def _finite(logprob: float) -> float:
    """JSON knows no infinity; this is what OpenAI says for a token that cannot be."""
    return max(logprob, -9999.0)
