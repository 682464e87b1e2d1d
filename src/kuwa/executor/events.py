"""The answer as a stream of OpenAI events: those of the executor's own chunks, and those of a provider passed on.

Pure. The streamed text chunk is the hot path: its event is a prebuilt head and tail around one JSON string.
"""

from __future__ import annotations

import re

import msgspec

from kuwa.executor.answer import Answer, json_string, response_id, split_choice
from kuwa.executor.intake import include_usage
from kuwa.executor.request import Request
from kuwa.wire import openai, resume, sse
from kuwa.wire.json import FAULTS, Fields, bare_decoder, decoder, fields_in

_encode = msgspec.json.Encoder().encode
_decode = decoder(Fields)
_decode_text = bare_decoder(str)  # for each chunk
# A text in a raw event. Inside another text its quotation marks would be escaped.
_TEXT = re.compile(rb'"(?:content|text)": ?("(?:[^"\\]|\\.)*")')
_PLACEHOLDER = "<the text of the event>"


class _Ordinary(msgspec.Struct, frozen=True, gc=False):
    """What stands around the text in a provider's events of ordinary text, and what stands around it in ours.

    `before` ends and `after` begins with the text's quotation marks; they stand in ours, too.
    """

    before: bytes
    after: bytes
    our_before: bytes
    our_after: bytes


class Events(Answer):
    """An OpenAI stream: one event per chunk, the finish of each choice, the usage if asked for, `[DONE]`.

    A provider's events of ordinary text differ in nothing but the text: once one of them has been read, the others
    pass with their text as it is, between what the first one has become.

    `shows_ids`: the kernel wants the tokens beside the events.
    """

    def __init__(self, request: Request, *, created: int, cuts_stops: bool, shows_ids: bool = False) -> None:
        super().__init__(request, created=created, cuts_stops=cuts_stops)
        self._shows_ids = shows_ids
        self._chat = request.kind == "chat"
        self._id = response_id(request)
        top: Fields = {
            "id": self._id,
            "object": "chat.completion.chunk" if self._chat else "text_completion",
            "created": created,
            "model": request.access_code,
        }
        self._top = _encode(top)[:-1]
        self._more = b""
        self._heads: dict[int, bytes] = {}
        self._ordinary: _Ordinary | None = None
        self._tail = b'},"logprobs":null,"finish_reason":null}]}\n\n'
        if not self._chat:
            self._tail = self._tail[1:]

    def _with_ids(self, data: bytes) -> bytes:
        if not (data and self._ids and self._shows_ids):
            return data
        line = resume.ids_line(self._ids)
        self._ids.clear()
        return line + data

    def _progress(self, done: int, total: int) -> bytes:
        return sse.comment(f"computing {done}/{total}" if total else "computing")

    def _keep(self, top: Fields) -> None:
        if top and not self._more:
            self._more = b"," + _encode(top)[1:-1]

    def _raw(self, data: bytes) -> bytes:
        known = self._ordinary
        if known is None or not (data.startswith(known.before) and data.endswith(known.after)):
            return self._raw_read(data)
        # The text with its quotation marks: whatever else it may be is no JSON string and is read as a whole.
        quoted = data[len(known.before) - 1 : 1 - len(known.after)]
        try:
            text = _decode_text(quoted)
        except FAULTS:
            text = ""
        if not text:
            return self._raw_read(data)
        self._count(text)
        return known.our_before + quoted + known.our_after

    def _raw_read(self, data: bytes) -> bytes:
        out = super()._raw(data)
        if not self._stops:
            self._ordinary = self._learn(data) or self._ordinary
        return out

    def _learn(self, data: bytes) -> _Ordinary | None:
        """What is ordinary about `data`, where it is one choice's text and nothing else; it has been read already."""
        found = _TEXT.search(data)
        if found is None or _TEXT.search(data, found.end()) is not None:
            return None
        event = _decode(data)
        choices = openai.choices_in(event)
        if len(choices) != 1 or event.get("usage") or openai.reason_of(choices[0].get("finish_reason")):
            return None
        text = choices[0].get("text") if "text" in choices[0] else fields_in(choices[0].get("delta")).get("content")
        if not text or text != _decode_text(found[1]):
            return None
        # The same event without its text is what ours is made of.
        ours = self._event_of(choices[0], _PLACEHOLDER).split(_encode(_PLACEHOLDER))
        if len(ours) != 2:
            return None
        return _Ordinary(data[: found.start(1) + 1], data[found.end(1) - 1 :], ours[0], ours[1])

    def _event_of(self, fields: Fields, text: str) -> bytes:
        choice, delta, beside = split_choice(fields)
        return self._event(choice, {**delta, "content": text}, beside)

    def _emit_text(self, text: str, choice: int) -> bytes:
        head = self._heads.get(choice)
        return (head or self._begin(choice)) + json_string(text) + self._tail

    def _begin(self, choice: int) -> bytes:
        """The head of the first event of a choice: the event with the role before it."""
        before = self._role(choice)
        field = b'"delta":{"content":' if self._chat else b'"text":'
        head = self._heads[choice] = b'data: %b,"choices":[{"index":%d,%b' % (self._top, choice, field)
        return before + head

    def _role(self, choice: int) -> bytes:
        if choice in self._begun:
            return b""
        self._begun.add(choice)
        return self._event(choice, {"role": "assistant", "content": ""}, {}) if self._chat else b""

    def _emit(self, choice: int, delta: Fields, beside: Fields) -> bytes:
        return self._role(choice) + self._event(choice, delta, beside)

    def _event(self, choice: int, delta: Fields, beside: Fields) -> bytes:
        fields: Fields = {"index": choice}
        if self._chat:
            fields["delta"] = delta
        else:
            fields["text"] = delta.get("content") or ""
        fields |= {"logprobs": None, "finish_reason": None, **beside}
        return b'data: %b%b,"choices":[%b]}\n\n' % (self._top, self._more, _encode(fields))

    def _close(self) -> bytes:
        out = [
            self._role(choice) + self._event(choice, {}, {"finish_reason": self.reason(choice)})
            for choice in sorted(self._begun | self._reasons.keys() | {0})
        ]
        if include_usage(self.request):
            out.append(b'data: %b,"choices":[],"usage":%b}\n\n' % (self._top, _encode(self.counts())))
        return b"".join(out) + sse.DONE_EVENT
