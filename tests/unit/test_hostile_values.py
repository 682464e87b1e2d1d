"""What replicas and clients must not send, given to everything that reads what they send: an error of ours or an
answer, never an exception of another kind; and what a client sent is never held against a replica."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from kuwa.builtin.chatgpt.upstream import ChunkStream, checked, embeddings
from kuwa.builtin.geminipro.contents import contents
from kuwa.builtin.huggingface import vllm
from kuwa.builtin.huggingface.parts import read_call
from kuwa.builtin.llamacpp import engine
from kuwa.builtin.llamacpp.answer import Answer as LlamaAnswer
from kuwa.client.client import Client as KernelClient
from kuwa.client.client import _deltas
from kuwa.executor import RawAnswer, RawEvent, Request
from kuwa.executor.answer import RawText, Whole
from kuwa.executor.events import Events
from kuwa.executor.intake import Intake
from kuwa.executor.modelfile import Modelfile
from kuwa.executor.provider.failures import Origin
from kuwa.http.events import EventStream
from kuwa.http.framing import ResponseHead
from kuwa.kernel import trail
from kuwa.kernel.dialects.openai import read_body
from kuwa.kernel.dialects.v1.render import TextRenderer
from kuwa.kernel.refusals import error_from_answer
from kuwa.kernel.relay import EventRelay, Relay, WholeRelay
from kuwa.kernel.resume import Journal, Journals
from kuwa.kernel.wires.openai import body_for_upstream, fields_of
from kuwa.kernel.wires.v1 import form_from_openai
from kuwa.wire import form, lease, openai
from kuwa.wire.errors import InvalidRequest, KuwaError
from kuwa.wire.json import BadJson, decode
from kuwa.wire.report import decode_report
from kuwa.wire.resume import Announcement
from unit.kernel.test_relay import DONE, EVENTS, JSON, ROLE, STOP, WORDS, Client, Clock

ORIGIN = Origin("http://h/v1", "m", "sk-secret", "--api_key")
DEEP = b"[" * 50_000 + b"]" * 50_000


def chunk(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "choices": [{"index": 0, "delta": {"content": "a"}}], **fields}).encode()


HOSTILE = {
    "nothing": b"",
    "half": b'{"model":"m","choices":[{"index":0,"delta":{"content":"a',
    "more than one": b'{"model":"m"}{"model":"m"}',
    "a byte order mark": b"\xef\xbb\xbf" + chunk(),
    "open lists": b"[" * 100_000,
    "open objects": b'{"choices":' * 100_000,
    "a deep member that nobody reads": b'{"model":"m","vendor":' + DEEP + b"}",
    "a deep content": b'{"model":"m","choices":[{"delta":{"content":' + DEEP + b"}}]}",
    "a deep error": b'{"model":"m","error":' + DEEP + b',"choices":' + DEEP + b"}",
    "bad UTF-8": b'{"model":"m\xff","choices":[{"delta":{"content":"\xff\xfe"}}],"error":{"message":"\xff"}}',
    "half a surrogate pair": b'{"model":"m","choices":[{"delta":{"content":"\\ud800"}}]}',
    "an encoded surrogate": b'{"model":"m","choices":[{"delta":{"content":"\xed\xa0\x80"}}]}',
    "NaN": b'{"model":"m","choices":[{"index":NaN}],"usage":{"prompt_tokens":NaN}}',
    "numbers without end": b'{"model":"m","created":' + b"9" * 6000 + b',"usage":{"prompt_tokens":1e999}}',
    "counts that cannot be": chunk(usage={"prompt_tokens": -1, "completion_tokens": 10**30, "total_tokens": 0.5}),
    "null": b"null",
    "null everywhere": json.dumps(
        dict.fromkeys(("model", "messages", "choices", "usage", "error", "data", "results", "stream", "id"))
    ).encode(),
    "null within": chunk(
        choices=[dict.fromkeys(("index", "delta", "text", "message", "finish_reason", "logprobs"))],
        messages=[None, {"role": None, "content": None}],
        usage=dict.fromkeys(("prompt_tokens", "completion_tokens", "prompt_tokens_details")),
    ),
    "text for all": chunk(choices="x", usage="x", error="x", messages="x", data="x", results="x", id=7, created="x"),
    "numbers for all": chunk(
        choices=[{"index": [], "delta": 7, "finish_reason": 7, "message": 7, "text": 7}],
        messages=[7],
        usage=7,
        error=7,
        data=[7],
        results=[7],
    ),
    "odd deltas": chunk(
        choices=[
            {"index": {}, "delta": {"content": [7, "a", {"text": 7}], "tool_calls": 7, "role": []}},
            {"index": -1, "delta": {"content": {}, "tool_calls": [7, {"index": [], "function": 7}]}},
        ],
        messages=[{"role": [], "content": [7, None, {"type": []}, {"type": "image_url", "image_url": 7}]}],
    ),
    "a list": b"[1,2]",
    "a zero byte": b'{"model":"m\x00"}\x00',
}

hostile = pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())


def fault_of(read: Callable[[Any], Any], data: Any) -> KuwaError | BadJson | None:
    """What reading raises; only what is ours to raise."""
    try:
        read(data)
    except (KuwaError, BadJson) as error:
        return error
    return None


def executor_answers(kind: type[Events | Whole | RawText]) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        request = Request(id="req_1", access_code="m", body={"stream": True, "stream_options": {"include_usage": True}})
        for raw in (RawEvent(data), RawAnswer(data)):
            answer = kind(request, created=7, cuts_stops=False)
            answer.take(RawEvent(chunk()))
            answer.take(raw)
            answer.take(RawEvent(chunk()))
            answer.finish()
            assert openai.Usage.of(answer.counts()) is not None

    return read


def stream(make: Callable[[], EventStream]) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        reader = make()
        reader.feed(b"data: " + data + b"\n\n")
        reader.end()

    return read


def replayed(data: bytes) -> None:
    """Delivered and sought again, and come in place of what was delivered."""
    announced = Announcement("f", "h", 0, 7)
    for delivered, come in ((b"data: " + data + b"\n\n", WORDS[0]), (WORDS[0], b"data: " + data + b"\n\n")):
        journal = Journal(Journals())
        journal.begin(announced).extend(b"%x\r\n%b\r\n" % (len(delivered), delivered))
        replay = journal.replay()
        if replay is not None:
            replay.request(b"{}")
            replay.take(come)


READS_A_REPLICA: dict[str, Callable[[bytes], Any]] = {
    "kernel: refusal": lambda data: [error_from_answer(status, data, "x")[0].body() for status in (302, 400, 503)],
    "kernel: replay": replayed,
    "kernel: late usage": lease.decode_registration,
    "executor: lease": lease.decode_lease,
    "executor: events": executor_answers(Events),
    "executor: whole": executor_answers(Whole),
    "executor: text": executor_answers(RawText),
    "http: events": stream(lambda: EventStream("x")),
    "chatgpt: events": stream(lambda: ChunkStream(ORIGIN)),
    "chatgpt: whole": lambda data: checked(data, ORIGIN),
    "chatgpt: embeddings": lambda data: embeddings(data, ORIGIN),
    "llamacpp: events": lambda data: list(LlamaAnswer().chunks(data)),
    "llamacpp: refusal": lambda data: engine.refusal(400, data).body(),
    "llamacpp: scores": openai.scores_in,
    "vllm: refusal": lambda data: vllm.refusal(400, data).body(),
    "huggingface: call": lambda data: read_call(data.decode("utf-8", "surrogateescape")),
    "client: events": _deltas,
    "client: refusal": lambda data: str(KernelClient()._refused(400, data)),
    "client: report": decode_report,
}


@hostile
@pytest.mark.parametrize("read", READS_A_REPLICA.values(), ids=READS_A_REPLICA.keys())
def test_what_a_replica_sends_is_read_or_is_an_error_of_ours(read: Callable[[bytes], Any], data: bytes) -> None:
    fault = fault_of(read, data)
    assert fault is None or str(fault)


def in_one_read(relay: Relay, data: bytes) -> None:
    relay.on_data(ROLE + WORDS[0] + b"data: " + data + b"\n\n", ended=True)


def in_two_reads(relay: Relay, data: bytes) -> None:
    relay.on_data(b"data: " + data + b"\n\n", ended=False)
    relay.on_data(STOP + DONE, ended=True)


@hostile
@pytest.mark.parametrize("renderer", [None, TextRenderer], ids=["openai", "v1.0"])
@pytest.mark.parametrize("come", [in_one_read, in_two_reads])
def test_every_stream_comes_to_an_end(
    come: Callable[[Relay, bytes], None], renderer: type[TextRenderer] | None, data: bytes
) -> None:
    client = Client()
    relay = EventRelay(client.exchange, b"", Clock(), renderer=renderer() if renderer is not None else None)
    relay.on_head(EVENTS)
    come(relay, data)
    assert relay.over
    assert client.complete or isinstance(relay.error, KuwaError)


@hostile
@pytest.mark.parametrize("status", [200, 400, 500])
def test_every_whole_answer_comes_to_an_end(status: int, data: bytes) -> None:
    client = Client()
    relay = WholeRelay(client.exchange, b"", Clock())
    relay.on_whole(ResponseHead(status, JSON.headers, True, False, True), data)
    assert relay.over
    assert client.complete or isinstance(relay.error, KuwaError) or relay.refusal is not None


def modelfile_of(text: str) -> Any:
    return Modelfile.from_json(text)


INTAKE = Intake(["m"], ["tools", "images", "n"], trim_history=False)
READS_A_CLIENT: dict[str, Callable[[bytes], Any]] = {
    "kernel: body": read_body,
    "kernel: members": fields_of,
    "kernel: body for an upstream": lambda data: body_for_upstream(data, "theirs"),
    "kernel: form for an old executor": lambda data: form_from_openai(data, "m", "-1", "0"),
    "kernel: trail": trail.of_conversation,
    "kernel: session": trail.session_in,
    "form: history": lambda data: form.parse_history(data.decode("utf-8", "replace")),
    "form: ids": lambda data: form.parse_history_ids(data.decode("utf-8", "replace")),
    "form: modelfile": lambda data: modelfile_of(data.decode("utf-8", "replace")),
    "intake: chat": lambda data: INTAKE.chat("r", data),
    "intake: completion": lambda data: INTAKE.completion("r", data),
    "intake: embeddings": lambda data: INTAKE.embedding("r", data, ""),
    "intake: ranking": lambda data: INTAKE.ranking("r", data, ""),
}


@hostile
@pytest.mark.parametrize("read", READS_A_CLIENT.values(), ids=READS_A_CLIENT.keys())
def test_what_a_client_sends_is_read_or_is_its_own_mistake(read: Callable[[bytes], Any], data: bytes) -> None:
    fault = fault_of(read, data)
    assert fault is None or (isinstance(fault, KuwaError) and 400 <= fault.status < 500)


@pytest.mark.parametrize("data", [chunk(choices=[]), HOSTILE["odd deltas"], HOSTILE["null within"]])
def test_gemini_reads_the_messages_or_refuses_them(data: bytes) -> None:
    messages = decode(data).get("messages") or []
    fault = fault_of(contents, [message for message in messages if isinstance(message, dict)])
    assert fault is None or isinstance(fault, InvalidRequest)
