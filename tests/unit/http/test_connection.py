"""The server connection over a transport of the test's own: no sockets, every byte and every moment in hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kuwa.http.connection import MAX_REFUSED, Limits, ServerConnection
from kuwa.http.exchange import Exchange, Head
from kuwa.http.server import Server
from kuwa.wire.errors import OpenAIErrors
from unit.http.transport import Transport

pytestmark = pytest.mark.anyio


class Client:
    """A connection under test with its transport; `exchanges` are those that reached the handler."""

    def __init__(self, answer: Callable[[Exchange], None] | None = None, limits: Limits | None = None) -> None:
        self.exchanges: list[Exchange] = []

        def handler(exchange: Exchange) -> None:
            self.exchanges.append(exchange)
            if answer is not None:
                answer(exchange)

        self.server = Server(hot={"/hot": handler}, errors=OpenAIErrors(), limits=limits)
        self.transport = Transport()
        self.connection = ServerConnection(self.server)
        self.connection.connection_made(self.transport)

    def send(self, data: bytes) -> bytes:
        """Feed bytes; what was written since."""
        before = len(self.transport.written)
        self.connection.data_received(data)
        return self.transport.written[before:]

    def wait(self, seconds: float) -> None:
        self.server.now += seconds
        self.connection.check(self.server.now)


def post(body: bytes, *headers: bytes) -> bytes:
    lines = [b"POST /hot HTTP/1.1", b"Host: localhost", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def echo(exchange: Exchange) -> None:
    exchange.respond(200, exchange.body)


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_pipelined_requests_are_answered_one_after_another_in_order() -> None:
    client = Client()
    client.send(post(b"one") + post(b"two") + post(b"three"))
    assert [exchange.body for exchange in client.exchanges] == [b"one"]
    client.exchanges[0].respond(200, b"first")
    await turn()
    client.exchanges[1].start(200, b"")
    client.exchanges[1].write(b"second")
    client.exchanges[1].end()
    await turn()
    client.exchanges[2].respond(200, b"third")
    written = client.transport.written
    assert written.index(b"first") < written.index(b"6\r\nsecond\r\n0\r\n\r\n") < written.index(b"third")


@settings(max_examples=50)
@given(body=st.binary(max_size=60), cuts=st.lists(st.integers(1, 150), max_size=6), again=st.booleans())
async def test_a_request_is_the_same_however_its_bytes_arrive(body: bytes, cuts: list[int], again: bool) -> None:
    client = Client(echo)
    request = post(body, b"X-A: b")
    for _ in range(2 if again else 1):  # the second time its head is in the memo
        edges = sorted({0, len(request), *(cut for cut in cuts if cut < len(request))})
        for start, end in pairwise(edges):
            client.send(request[start:end])
    assert all(exchange.body == body and exchange.headers.get(b"x-a") == b"b" for exchange in client.exchanges)
    assert len(client.exchanges) == (2 if again else 1)


async def test_a_head_seen_before_is_not_confused_with_another_bodys_length() -> None:
    client = Client(echo)
    for body in (b"abc", b"abcdef", b"", b"x" * 1000):
        assert client.send(post(body)).endswith(b"\r\n\r\n" + body)
    # A memorised head whose body comes later, or together with the next request, goes the long way.
    assert client.send(post(b"abc")[:-1]) == b""
    assert client.send(b"c").endswith(b"abc")
    client.send(post(b"one") + post(b"two"))
    await turn()
    assert [exchange.body for exchange in client.exchanges[-2:]] == [b"one", b"two"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GARBAGE\r\n\r\n",
        post(b"hello", b"Transfer-Encoding: chunked"),
        b"POST /hot HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST /hot HTTP/1.1\r\nHost: localhost\r\nContent-Length: +1\r\n\r\nx",
        b"POST /hot HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"POST /hot HTTP/1.1\nHost: localhost\n\n",
        post(b"", b"X: a\r\n b"),
        b"POST /hot HTTP/1.1\r\n\r\n",
        post(b"", b"Host: evil.test"),
        b"POST http://localhost/hot HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /hot HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_a_request_that_can_be_read_in_two_ways_is_answered_400_and_the_connection_closed(
    request_bytes: bytes,
) -> None:
    client = Client(echo)
    answer = client.send(request_bytes + post(b"smuggled"))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in answer
    assert b"invalid_request_error" in answer
    assert not client.exchanges
    assert client.transport.eof
    assert client.send(post(b"smuggled")) == b""


async def test_limits_are_answered_with_their_own_status() -> None:
    assert b" 431 " in Client(echo).send(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 40_000)
    assert b" 431 " in Client(echo).send(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 200 + b"\r\n")
    small = Limits(body_bytes=10)
    assert b" 413 " in Client(echo, small).send(post(b"x" * 11))
    chunked = b"POST /hot HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n" + b"x" * 11
    assert b" 413 " in Client(echo, small).send(chunked)
    known = Client(echo, small)
    known.send(post(b"x"))
    assert b" 413 " in known.send(post(b"x" * 11))


async def test_a_foreign_host_is_refused_and_the_connection_goes_on() -> None:
    client = Client(echo)
    assert b"forbidden_host" in client.send(post(b"").replace(b"localhost", b"evil.test"))
    assert b"forbidden_origin" in client.send(post(b"", b"Origin: http://evil.test"))
    assert b"forbidden_host" in client.send(post(b"").replace(b"localhost", b"evil.test"))
    assert client.send(post(b"fine")).endswith(b"fine")


async def test_silence_is_closed_and_half_requests_are_told_what_is_missing() -> None:
    silent = Client(echo)
    silent.wait(11)
    assert silent.transport.aborted
    slow = Client(echo)
    slow.send(b"POST /hot HT")
    slow.wait(11)
    assert b" 408 " in slow.transport.written
    body = Client(echo)
    body.send(post(b"hello")[:-1])
    body.wait(29)
    assert not body.transport.written
    body.wait(2)
    assert b" 408 " in body.transport.written
    idle = Client(echo)
    idle.send(post(b""))
    idle.wait(74)
    assert not idle.transport.aborted
    idle.wait(2)
    assert idle.transport.aborted


async def test_a_request_under_way_is_never_timed_out_by_the_connection() -> None:
    client = Client()
    client.send(post(b""))
    client.wait(3600)
    assert not client.transport.aborted
    client.exchanges[0].respond(200, b"late")
    assert client.transport.written.endswith(b"late")


async def test_a_client_that_goes_away_is_told_to_the_handler_at_once_and_to_nobody_else() -> None:
    client = Client()
    client.send(post(b"one") + post(b"two"))
    gone: list[bool] = []
    client.exchanges[0].on_gone = lambda: gone.append(True)
    client.connection.connection_lost(None)
    assert gone == [True]
    client.exchanges[0].respond(200, b"nobody hears")
    client.exchanges[0].write(b"nobody hears")
    await turn()
    assert client.transport.written == b""
    assert len(client.exchanges) == 1


async def test_a_slow_reader_pauses_the_source_and_is_cut_when_it_takes_nothing() -> None:
    calls: list[str] = []

    class Source:
        def pause(self) -> None:
            calls.append("pause")

        def resume(self) -> None:
            calls.append("resume")

    client = Client()
    client.send(post(b""))
    exchange = client.exchanges[0]
    exchange.source = Source()
    exchange.start(200, b"")
    exchange.write(b"x")
    client.transport.buffered = 300_000
    client.connection.pause_writing()
    waiting = asyncio.ensure_future(exchange.drain())
    await turn()
    assert calls == ["pause"]
    assert not waiting.done()
    client.connection.resume_writing()
    await waiting
    assert calls == ["pause", "resume"]
    client.connection.pause_writing()
    client.wait(20)
    client.transport.buffered -= 2000
    client.wait(20)
    assert not client.transport.aborted
    client.wait(31)
    assert client.transport.aborted


async def test_a_stream_to_an_http_1_0_client_ends_with_its_connection() -> None:
    client = Client()
    client.send(b"POST /hot HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
    exchange = client.exchanges[0]
    exchange.start(200, b"")
    exchange.write(b"a")
    exchange.end(b"b")
    assert client.transport.written.endswith(b"\r\n\r\nab")
    assert b"chunked" not in client.transport.written
    assert client.transport.closed


async def test_an_error_in_a_stream_that_has_begun_is_its_closing_events() -> None:
    from kuwa.wire.errors import UpstreamLost

    client = Client()
    client.send(post(b""))
    exchange = client.exchanges[0]
    exchange.start(200, b"")
    exchange.write(b"data: 1\n\n")
    exchange.fail(UpstreamLost("gone"))
    assert b'\n\ndata: {"error":' in client.transport.written
    assert client.transport.written.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


async def test_a_body_longer_than_its_announced_length_never_looks_complete() -> None:
    client = Client()
    client.send(post(b""))
    exchange = client.exchanges[0]
    exchange.start(200, b"content-length: 10\r\n", sized=True)
    exchange.write(b"half")
    from kuwa.wire.errors import UpstreamLost

    exchange.fail(UpstreamLost("gone"))
    assert client.transport.aborted


async def test_a_draining_server_lets_requests_end_and_closes_after_them() -> None:
    client = Client()
    client.send(post(b""))
    client.connection.close_if_idle()
    assert client.connection.busy
    assert not client.transport.closed
    client.server.draining = True
    client.exchanges[0].respond(200, b"done")
    assert b"connection: close" in client.transport.written
    assert client.transport.closed
    idle = Client()
    idle.connection.close_if_idle()
    assert cast("Transport", idle.transport).closed


def test_one_connection_too_many_is_told_so_and_many_too_many_are_cut() -> None:
    server = Server(hot={"/hot": echo}, errors=OpenAIErrors(), limits=Limits(connections=1))
    answers: list[tuple[bytes, bool]] = []
    for _ in range(2 + MAX_REFUSED):
        transport = Transport()
        ServerConnection(server).connection_made(transport)
        answers.append((transport.written, transport.aborted))
    assert answers[0] == (b"", False)
    for written, aborted in answers[1:-1]:
        assert written.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1\r\n" in written
        assert b'"code":"too_many_connections"' in written
        assert not aborted
    assert answers[-1] == (b"", True)


CHUNKED = b"POST /hot HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "framing",
    [
        b"0\r\nX-Never-Ends: " + b"a" * 70_000,
        b"0\r\n" + b"".join(b"X-%d: %s\r\n" % (number, b"b" * 900) for number in range(80)),
        b"5;" + b"extension=" + b"c" * 70_000,
        b"1;d\r\nx\r\n" * 3 + b"1;" + b"e" * 70_000,
    ],
    ids=["a trailer without an end", "long trailers", "an extension without an end", "an extension after others"],
)
@pytest.mark.parametrize("read_bytes", [1, 1000, 20_000])
async def test_what_a_chunked_body_holds_besides_its_payload_is_bounded_like_a_head(
    framing: bytes, read_bytes: int
) -> None:
    client = Client(echo)
    client.send(CHUNKED)
    fed = answered = b""
    for start in range(0, len(framing), read_bytes):
        fed += framing[start : start + read_bytes]
        answered += client.send(framing[start : start + read_bytes])
        if answered:
            break
    assert b" 431 " in answered
    assert len(fed) <= Limits().head_bytes + 2 * read_bytes + 100
    assert not client.exchanges


@pytest.mark.parametrize("read_bytes", [1, 7, 5000, 10**6])
async def test_a_body_of_many_small_chunks_is_no_long_head(read_bytes: int) -> None:
    body = bytes(range(256)) * 60
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\nX-Checksum: 5\r\n\r\n"
    client = Client(echo)
    client.send(CHUNKED)
    for start in range(0, len(chunks), read_bytes):
        client.send(chunks[start : start + read_bytes])
    assert [exchange.body for exchange in client.exchanges] == [body]


UPGRADES = [
    (b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAMAAABkAAQAAP__"),
    (b"Connection: upgrade", b"Upgrade: TLS/1.3", b"X: y"),
    (b"Connection: Upgrade, close", b"Upgrade: websocket, h2c", b"Sec-WebSocket-Version: 13"),
]


@pytest.mark.parametrize("headers", UPGRADES)
@pytest.mark.parametrize("chunked", [False, True])
@given(cut=st.integers(1, 400))
async def test_a_request_that_asks_for_another_protocol_is_served_once_and_whole_in_this_one(
    headers: tuple[bytes, ...], chunked: bool, cut: int
) -> None:
    lines = [b"POST /hot?x=1 HTTP/1.1", b"Host: localhost", *headers]
    if chunked:
        request = b"\r\n".join([*lines, b"Transfer-Encoding: chunked"]) + b"\r\n\r\n3\r\n{1}\r\n2\r\n{}\r\n0\r\n\r\n"
    else:
        request = b"\r\n".join([*lines, b"Content-Length: 5"]) + b"\r\n\r\n{1}{}"
    client = Client(echo)
    sent = request + post(b"next")
    client.send(sent[:cut])
    client.send(sent[cut:])
    await turn()
    last = b"close" in headers[0] + headers[2]
    assert [exchange.body for exchange in client.exchanges] == ([b"{1}{}"] if last else [b"{1}{}", b"next"])
    assert client.transport.written.count(b"HTTP/1.1 ") == client.transport.written.count(b" 200 OK") == 2 - last
    assert client.exchanges[0].head.query == b"x=1"
    assert client.exchanges[0].head.get(b"upgrade") is None


async def test_a_handler_that_fails_while_its_failure_is_told_has_its_connection_cut() -> None:
    def break_down(exchange: Exchange) -> None:
        exchange.head = cast("Head", None)
        exchange.respond(200, b"")

    client = Client(break_down)
    assert client.send(post(b"")) == b""
    assert client.transport.aborted


async def test_what_follows_the_last_request_of_a_connection_is_not_answered() -> None:
    client = Client(echo)
    answered = client.send(post(b"last", b"Connection: close") + post(b"more") + b"garbage")
    assert answered.count(b"HTTP/1.1 ") == 1
    assert b"200 OK" in answered
    assert client.transport.closed
