"""What comes back from Gemini, as the framework's chunks: text, thoughts, tool calls, log probabilities, the end. Pure.

One `Reading` per request; it is given each response of the SDK in turn.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from kuwa.executor.chunks import Chunk, Finish, FinishReason, RawEvent, Reasoning, Text
from kuwa.executor.provider.failures import Origin
from kuwa.wire.errors import BadUpstream, ContentFiltered, UpstreamLost
from kuwa.wire.json import Fields

if TYPE_CHECKING:
    from google.genai.types import Candidate, FunctionCall, GenerateContentResponse, LogprobsResult, Part

_REASONS: dict[str, FinishReason] = {"STOP": "stop", "MAX_TOKENS": "length", "OTHER": "stop"}
# Gemini made something that is no answer; the same request may well succeed.
_BROKEN = {"MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "MALFORMED_RESPONSE", "TOO_MANY_TOOL_CALLS"}


class Reading:
    """What has come of one answer. `usage` is the last count that was sent, in OpenAI's form."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._calls: dict[int, int] = {}
        self._finished = False
        self.usage: Fields | None = None

    def chunks(self, response: GenerateContentResponse) -> Iterator[Chunk]:
        """The chunks of one response. Raises ContentFiltered for a prompt that was blocked, BadUpstream."""
        if response.usage_metadata is not None:
            self.usage = _usage(response)
        feedback = response.prompt_feedback
        if feedback is not None and feedback.block_reason is not None and not response.candidates:
            said = self._origin.quote(feedback.block_reason_message or "")
            raise ContentFiltered(f"Gemini blocked the prompt ({feedback.block_reason.name}). {said}".strip())
        for candidate in response.candidates or []:
            yield from self._candidate(candidate)

    def end(self) -> Iterator[Chunk]:
        """The answer is over. Raises UpstreamLost where it ended in the middle."""
        if not self._finished:
            raise UpstreamLost(f"{self._origin.base_url} ended its answer in the middle.")
        if self.usage is not None:
            yield _event({"choices": [], "usage": self.usage})

    def _candidate(self, candidate: Candidate) -> Iterator[Chunk]:
        choice = candidate.index or 0
        parts = (candidate.content.parts if candidate.content else None) or []
        for part in parts:
            yield from self._part(part, choice)
        if candidate.logprobs_result is not None:
            logprobs = {"content": _logprobs(candidate.logprobs_result), "refusal": None}
            yield _event({"choices": [{"index": choice, "delta": {}, "logprobs": logprobs}]})
        if candidate.finish_reason is not None and candidate.finish_reason.name != "FINISH_REASON_UNSPECIFIED":
            self._finished = True
            yield Finish(self._reason(candidate.finish_reason.name, candidate.finish_message or "", choice), choice)

    def _part(self, part: Part, choice: int) -> Iterator[Chunk]:
        if part.function_call is not None:
            yield self._call(part.function_call, part.thought_signature, choice)
        elif part.text:
            yield Reasoning(part.text, choice) if part.thought else Text(part.text, choice)
        elif part.inline_data is not None and part.inline_data.data:
            data = base64.b64encode(part.inline_data.data).decode()
            url = f"data:{part.inline_data.mime_type or 'application/octet-stream'};base64,{data}"
            image = {"type": "image_url", "image_url": {"url": url}}
            yield _event({"choices": [{"index": choice, "delta": {"images": [image]}}]})

    def _call(self, call: FunctionCall, signature: bytes | None, choice: int) -> Chunk:
        """A whole tool call. The signature of the thought behind it goes along, since Gemini wants it back."""
        index = self._calls.get(choice, 0)
        self._calls[choice] = index + 1
        arguments = msgspec.json.encode(call.args or {}).decode()
        fields: Fields = {
            "index": index,
            "id": call.id or f"call_{choice}_{index}",
            "type": "function",
            "function": {"name": call.name or "", "arguments": arguments},
        }
        if signature:
            fields["extra_content"] = {"google": {"thought_signature": base64.b64encode(signature).decode()}}
        return _event({"choices": [{"index": choice, "delta": {"tool_calls": [fields]}}]})

    def _reason(self, name: str, message: str, choice: int) -> FinishReason:
        if name in _BROKEN:
            said = self._origin.quote(message)
            raise BadUpstream(f"{self._origin.base_url}: the model's answer is broken ({name}). {said}".strip())
        if name == "STOP" and self._calls.get(choice):
            return "tool_calls"
        return _REASONS.get(name, "content_filter")


def _event(fields: Fields) -> RawEvent:
    return RawEvent(msgspec.json.encode(fields))


def _usage(response: GenerateContentResponse) -> Fields:
    counted = response.usage_metadata
    assert counted is not None  # noqa: S101 - the caller has looked
    thoughts = counted.thoughts_token_count or 0
    prompt = (counted.prompt_token_count or 0) + (counted.tool_use_prompt_token_count or 0)
    completion = (counted.candidates_token_count or 0) + thoughts
    usage: Fields = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    if counted.cached_content_token_count:
        usage["prompt_tokens_details"] = {"cached_tokens": counted.cached_content_token_count}
    if thoughts:
        usage["completion_tokens_details"] = {"reasoning_tokens": thoughts}
    return usage


def _logprobs(found: LogprobsResult) -> list[Fields]:
    """OpenAI's list: each token with its log probability and those of the likeliest at its place."""
    tops = found.top_candidates or []
    entries: list[Fields] = []
    for place, chosen in enumerate(found.chosen_candidates or []):
        likeliest = (tops[place].candidates or []) if place < len(tops) else []
        entry = _logprob(chosen.token, chosen.log_probability)
        entries.append(entry | {"top_logprobs": [_logprob(top.token, top.log_probability) for top in likeliest]})
    return entries


def _logprob(token: str | None, probability: float | None) -> Fields:
    text = token or ""
    return {"token": text, "logprob": probability or 0.0, "bytes": list(text.encode("utf-8", "replace"))}
