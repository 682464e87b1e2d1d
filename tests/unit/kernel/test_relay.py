"""What a relay lets through, holds back, withholds and refuses, whatever the reads look like."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuwa.http.connection import ServerConnection
from kuwa.http.exchange import Exchange
from kuwa.http.framing import ChunkDecoder, ResponseHead, whole_chunks
from kuwa.http.server import Server
from kuwa.kernel.dialects.v1.render import TextRenderer
from kuwa.kernel.relay import EventRelay, Refusal, Relay, WholeRelay
from kuwa.kernel.wires.v1 import TextReader
from kuwa.wire.errors import BadUpstream, OpenAIErrors, UpstreamLost
from kuwa.wire.sse import SseReader
from unit.http.transport import Transport

POST = b"POST /hot HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
EVENTS = ResponseHead(200, ((b"content-type", b"text/event-stream; charset=utf-8"),), False, True, True)
JSON = ResponseHead(200, ((b"content-type", b"application/json"),), True, False, True)


class Clock:
    now = 0.0

    def time(self) -> float:
        return 0.0


class Client:
    """The client's side of a relay: an exchange on a transport of the test's own."""

    def __init__(self) -> None:
        exchanges: list[Exchange] = []
        self.transport = Transport()
        connection = ServerConnection(Server(hot={"/hot": exchanges.append}, errors=OpenAIErrors()))
        connection.connection_made(self.transport)
        connection.data_received(POST)
        self.exchange = exchanges[0]

    @property
    def body(self) -> bytes:
        """The body received so far, framing taken off; nothing while no head has been sent."""
        head, _, rest = self.transport.written.partition(b"\r\n\r\n")
        if b"content-length" in head:
            return rest
        return ChunkDecoder().feed(rest)

    @property
    def complete(self) -> bool:
        return self.exchange.ended

    def data(self) -> list[bytes]:
        return [event.data for event in SseReader().feed(self.body)]


def event(delta: dict[str, Any] | None, finish: str | None = None, **more: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
    message = {"id": "x", "object": "chat.completion.chunk", "choices": choices, **more}
    return b"data: " + json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


ROLE = event({"role": "assistant", "content": ""})
WORDS = [event({"content": word}) for word in ("Hello", " 世界", " 😀", ' "finish_reason":null', " usage\n\n")]
STOP = event({}, "stop")
USAGE = event(None, usage={"prompt_tokens": 3, "completion_tokens": 5})
DONE = b"data: [DONE]\n\n"
ANSWER = [ROLE, *WORDS, STOP, USAGE, DONE]


def relay_to(client: Client, *, include_usage: bool = False) -> EventRelay:
    relay = EventRelay(client.exchange, b"x-a: b\r\n", Clock(), include_usage=include_usage)
    relay.on_head(EVENTS)
    return relay


def feed(relay: Relay, reads: list[bytes], *, end: bool = True) -> None:
    """Give reads of a chunked body as the upstream connection does."""
    chunks = ChunkDecoder()
    for index, read in enumerate(reads):
        framed = b"%x\r\n%b\r\n" % (len(read), read) if read else b""
        if end and index == len(reads) - 1:
            framed += b"0\r\n\r\n"
        kind = whole_chunks(framed)
        if kind:
            relay.on_frames(framed, kind == 2)
        elif framed:
            payload = chunks.feed(framed)
            relay.on_data(payload, chunks.ended)


def texts(client: Client) -> str:
    messages = [json.loads(data) for data in client.data() if data != b"[DONE]"]
    return "".join(choice["delta"].get("content") or "" for message in messages for choice in message["choices"])


@given(st.lists(st.integers(1, sum(map(len, ANSWER)) - 1), max_size=12), st.booleans())
def test_an_answer_arrives_byte_for_byte_however_it_is_read(cuts: list[int], include_usage: bool) -> None:
    whole = b"".join(ANSWER)
    edges = sorted({0, len(whole), *cuts})
    client = Client()
    relay = relay_to(client, include_usage=include_usage)
    feed(relay, [whole[a:b] for a, b in itertools.pairwise(edges)])
    expected = ANSWER if include_usage else [one for one in ANSWER if one is not USAGE]
    assert client.body == b"".join(expected)
    assert client.complete
    assert relay.over
    assert relay.error is None
    assert relay.usage is not None
    assert (relay.usage.prompt_tokens, relay.usage.completion_tokens) == (3, 5)


def test_nothing_is_sent_before_the_first_content() -> None:
    client = Client()
    relay = relay_to(client)
    feed(relay, [ROLE], end=False)
    assert client.transport.written == b""
    feed(relay, [WORDS[0]], end=False)
    assert client.body == ROLE + WORDS[0]


def test_comments_before_the_first_content_are_signs_of_life_and_nothing_to_keep() -> None:
    client = Client()
    relay = relay_to(client)
    feed(relay, [ROLE, *([b": computing 1/2\n\n"] * 10_000)], end=False)
    assert client.transport.written == b""
    feed(relay, [WORDS[0]], end=False)
    assert client.body == ROLE + WORDS[0]


@pytest.mark.parametrize(
    "first",
    [
        event({"role": "assistant", "content": None, "reasoning_content": "hm"}),
        event({"tool_calls": [{"index": 0, "function": {"name": "f"}}]}),
        event({}, "length"),
        b'data: {"choices": [{"text": "hi", "index": 0}]}\n\n',
    ],
    ids=["reasoning", "tool call", "finish", "plain completion"],
)
def test_whatever_is_more_than_a_role_is_content(first: bytes) -> None:
    client = Client()
    feed(relay_to(client), [first], end=False)
    assert client.body == first


@pytest.mark.parametrize("reads", [[], [ROLE], [ROLE, b": ping\n\n"], [DONE]])
def test_an_answer_that_ends_without_content_has_failed_and_nothing_was_sent(reads: list[bytes]) -> None:
    client = Client()
    relay = relay_to(client)
    feed(relay, [*reads, b""])
    assert relay.over
    assert isinstance(relay.error, UpstreamLost)
    assert not relay.begun
    assert client.transport.written == b""


@pytest.mark.parametrize("end", [b"", b'data: {"choices":[{"ind'])
def test_a_clean_end_without_a_finish_is_never_a_success(end: bytes) -> None:
    client = Client()
    relay = relay_to(client)
    feed(relay, [ROLE, WORDS[0], end])
    assert relay.over
    assert isinstance(relay.error, UpstreamLost)
    assert relay.begun
    assert not client.complete
    client.exchange.fail(relay.error)
    assert json.loads(client.data()[-2])["error"]["code"] == "upstream_lost"
    assert client.data()[-1] == b"[DONE]"


def test_a_lost_connection_ends_the_attempt_and_says_whether_content_was_sent() -> None:
    for reads, delivered in (([ROLE], False), ([ROLE, WORDS[0]], True)):
        client = Client()
        relay = relay_to(client)
        feed(relay, reads, end=False)
        relay.on_lost(UpstreamLost("gone"))
        assert relay.begun is delivered
        assert isinstance(relay.error, UpstreamLost)


def test_an_answer_that_finished_without_saying_done_is_completed() -> None:
    client = Client()
    relay = relay_to(client)
    feed(relay, [ROLE, WORDS[0], STOP, b""])
    assert client.data()[-1] == b"[DONE]"
    assert relay.error is None


def test_an_answer_is_complete_with_done_whatever_becomes_of_the_connection() -> None:
    client = Client()
    relay = relay_to(client)
    feed(relay, [ROLE, WORDS[0], STOP, DONE], end=False)
    assert not client.complete  # a client that leaves at [DONE] has had the end of the body, too
    assert client.data()[-1] == STOP[6:-2]
    relay.on_lost(UpstreamLost("gone"))
    assert client.complete
    assert client.data()[-1] == b"[DONE]"
    assert relay.error is None


def test_an_error_event_fails_the_attempt_whether_or_not_content_came_before_it() -> None:
    error = b'data: {"error":{"message":"no memory","code":500}}\n\n'
    early = Client()
    relay = relay_to(early)
    feed(relay, [ROLE, error], end=False)
    assert "no memory" in str(relay.error)
    assert early.transport.written == b""
    late = Client()
    relay = relay_to(late)
    feed(relay, [ROLE, WORDS[0], error, DONE, b""])
    assert relay.begun
    assert "no memory" in str(relay.error)
    assert late.data() == [ROLE[6:-2], WORDS[0][6:-2]]


def test_what_is_no_event_stream_is_refused() -> None:
    client = Client()
    relay = EventRelay(client.exchange, b"", Clock(), include_usage=False)
    relay.on_head(ResponseHead(200, ((b"content-type", b"text/html"),), False, True, True))
    relay.on_data(b"<html>", ended=True)
    assert isinstance(relay.error, BadUpstream)
    assert client.transport.written == b""


def test_an_endless_event_is_cut_off() -> None:
    client = Client()
    relay = relay_to(client)
    feed(relay, [ROLE, WORDS[0]], end=False)
    for _ in range(40):
        if not relay.over:
            relay.on_data(b"x" * 65536, ended=False)
    assert isinstance(relay.error, BadUpstream)


def test_events_with_carriage_returns_pass_too() -> None:
    client = Client()
    relay = relay_to(client)
    feed(relay, [one.replace(b"\n\n", b"\r\n\r\n") for one in (ROLE, WORDS[0], STOP, USAGE, DONE)])
    assert texts(client) == "Hello"
    assert client.data()[-1] == b"[DONE]"
    assert b"prompt_tokens" not in client.body


def test_a_refusal_is_collected_and_told_whole() -> None:
    client = Client()
    relay = relay_to(client)
    relay.on_head(ResponseHead(429, ((b"retry-after", b"7"),), True, False, True))
    relay.on_data(b"bu", ended=False)
    relay.on_data(b"sy", ended=True)
    assert relay.refusal == Refusal(429, bytearray(b"busy"), b"7")
    assert client.transport.written == b""


def test_a_whole_answer_is_sent_when_it_is_complete_and_json() -> None:
    client = Client()
    relay = WholeRelay(client.exchange, b"", Clock())
    relay.on_head(JSON)
    relay.on_data(b'{"usage":{"prompt_tokens":1,', ended=False)
    assert client.transport.written == b""
    relay.on_data(b'"completion_tokens":2}}', ended=True)
    assert json.loads(client.body)["usage"]["completion_tokens"] == 2
    usage = relay.usage
    assert usage is not None
    assert usage.prompt_tokens == 1


@pytest.mark.parametrize("body", [b"<html>ok</html>", b"", b"[1]", b'{"usage"', b'{"a":"\xff"}x'])
def test_a_whole_answer_that_is_no_json_object_is_never_passed_on(body: bytes) -> None:
    client = Client()
    relay = WholeRelay(client.exchange, b"", Clock())
    relay.on_head(JSON)
    relay.on_data(body, ended=True)
    assert isinstance(relay.error, BadUpstream)
    assert client.transport.written == b""


def test_a_whole_answer_that_says_that_it_failed_is_no_answer() -> None:
    client = Client()
    relay = WholeRelay(client.exchange, b"", Clock())
    relay.on_head(JSON)
    relay.on_data(b'{"error":{"message":"out of memory","code":"oom"}}', ended=True)
    assert relay.error is not None
    assert (relay.error.status, relay.error.code, relay.error.message) == (502, "oom", "out of memory")
    assert client.transport.written == b""


def test_events_become_the_raw_text_of_the_old_wire() -> None:
    client = Client()
    relay = EventRelay(client.exchange, b"", Clock(), renderer=TextRenderer())
    relay.on_head(EVENTS)
    feed(relay, ANSWER)
    assert client.body.decode() == 'Hello 世界 😀 "finish_reason":null usage\n\n'
    assert client.complete


def test_a_cut_stream_of_events_is_no_complete_text() -> None:
    client = Client()
    relay = EventRelay(client.exchange, b"", Clock(), renderer=TextRenderer())
    relay.on_head(EVENTS)
    feed(relay, [ROLE, WORDS[0], b""])
    assert isinstance(relay.error, UpstreamLost)
    assert not client.complete


@given(st.lists(st.integers(0, 30), max_size=6))
def test_raw_text_becomes_events_and_no_character_is_split(cuts: list[int]) -> None:
    text = "你好😀 old wire"
    data = text.encode()
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    client = Client()
    reader = TextReader("chatcmpl-1", "old")
    relay = EventRelay(client.exchange, b"", Clock(), reader, include_usage=True)
    relay.on_head(ResponseHead(200, (), False, True, True))
    feed(relay, [data[a:b] for a, b in itertools.pairwise(edges)])
    assert texts(client) == text
    messages = [json.loads(one) for one in client.data()[:-1]]
    assert messages[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [choice["finish_reason"] for one in messages for choice in one["choices"]][-1] == "stop"
    assert messages[-1]["usage"]["total_tokens"] == 0
    assert client.data()[-1] == b"[DONE]"


def test_raw_text_becomes_one_completion() -> None:
    client = Client()
    relay = WholeRelay(client.exchange, b"", Clock(), TextReader("chatcmpl-1", "old"))
    relay.on_head(ResponseHead(200, (), False, True, True))
    feed(relay, ["你".encode(), "好".encode()])
    assert json.loads(client.body)["choices"][0]["message"]["content"] == "你好"
