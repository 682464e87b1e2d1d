"""One connection of the pool: whose response it carries, what it tells of it, and when it is free for the next."""

from __future__ import annotations

from typing import Any

import pytest

from kuwa.http.framing import ResponseHead
from kuwa.http.upstream import Origin, UnframedHandler, UpstreamConnection, UpstreamPool, UpstreamRequest
from kuwa.wire.errors import KuwaError, UpstreamLost
from unit.http.transport import Transport

ORIGIN = Origin.of("http://127.0.0.1:1")
ASK = UpstreamRequest(ORIGIN, b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\n", b"hi")


class Socket:
    def setsockopt(self, *options: int) -> None:
        pass


class Upstream(Transport):
    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return Socket() if name == "socket" else super().get_extra_info(name, default)


class Heard(UnframedHandler):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.connection: UpstreamConnection | None = None
        self.over = False
        self.status = 0
        self.body = b""
        self.ended = False
        self.error: KuwaError | None = None

    def on_head(self, head: ResponseHead) -> None:
        self.status = head.status

    def on_data(self, data: bytes, ended: bool) -> None:
        self.body += data
        self.ended = self.over = ended

    def on_lost(self, error: KuwaError) -> None:
        self.error = error
        self.over = True


class Pool(UpstreamPool):
    """With one idle connection; notes what was to be sent over a new one."""

    def __init__(self) -> None:
        super().__init__()
        self.dialled: list[UpstreamRequest] = []
        self.transport = Upstream()
        self.connection = UpstreamConnection(self, ORIGIN)
        self.connection.connection_made(self.transport)
        self.give_back(self.connection)

    def dial(self, request: UpstreamRequest, handler: Any) -> None:
        self.dialled.append(request)

    def ask(self) -> Heard:
        heard = Heard()
        self.send(ASK, heard)
        return heard


@pytest.mark.parametrize("bodies", [[b"one", b"two"], [b"one", b"another", b""]])
@pytest.mark.parametrize("cut", [1, 20, 45, 1000])
def test_answers_with_the_same_head_are_heard_whole_whatever_their_length(bodies: list[bytes], cut: int) -> None:
    pool = Pool()
    for body in bodies:
        heard = pool.ask()
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        for piece in (answer[:cut], answer[cut:]):
            if piece:
                pool.connection.data_received(piece)
        assert (heard.status, heard.body, heard.ended, heard.error) == (200, body, True, None)
    assert not pool.dialled


def test_a_body_longer_than_announced_is_never_whole() -> None:
    pool = Pool()
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
    pool.ask()
    pool.connection.data_received(answer + b"ok")
    heard = pool.ask()
    pool.connection.data_received(answer + b"okay")
    assert heard.error is not None
    assert pool.transport.aborted


def test_who_has_heard_the_end_cannot_pause_the_connection_any_more() -> None:
    pool = Pool()
    heard = pool.ask()
    pool.connection.pause(heard)
    assert not pool.transport.reading
    pool.connection.resume(heard)
    pool.connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    pool.connection.pause(heard)
    assert pool.transport.reading
    following = pool.ask()
    pool.connection.pause(heard)
    assert pool.transport.reading
    pool.connection.pause(following)
    assert not pool.transport.reading


def test_a_request_that_met_a_closed_connection_goes_out_again_over_a_new_one() -> None:
    pool = Pool()
    first = pool.ask()
    pool.connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    second = pool.ask()
    pool.connection.connection_lost(None)
    assert first.ended
    assert pool.dialled == [ASK]
    assert second.error is None


def test_one_that_was_heard_of_is_not_sent_twice() -> None:
    pool = Pool()
    pool.ask()
    pool.connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    heard = pool.ask()
    pool.connection.data_received(b"HTTP/1.1 200 OK\r\n")
    pool.connection.connection_lost(None)
    assert isinstance(heard.error, UpstreamLost)
    assert not pool.dialled


def test_a_cancelled_request_cuts_its_connection_and_no_other() -> None:
    pool = Pool()
    ended = pool.ask()
    pool.connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    following = pool.ask()
    pool.connection.cancel(ended)
    assert not pool.transport.aborted
    pool.connection.cancel(following)
    assert pool.transport.aborted
