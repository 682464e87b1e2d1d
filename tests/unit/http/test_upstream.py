"""One connection of the pool: whose response it carries, what it tells of it, and when it is free for the next."""

from __future__ import annotations

from typing import Any

import pytest

from kuwa.http.framing import ResponseHead
from kuwa.http.origin import Origin, UpstreamRequest
from kuwa.http.upstream import UpstreamPool
from kuwa.http.upstream_connection import Unanswered, UnframedHandler, UpstreamConnection
from kuwa.wire.errors import BadUpstream, InternalError, KuwaError, UpstreamLost
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


def test_a_request_that_met_a_closed_connection_is_not_sent_again_behind_its_senders_back() -> None:
    pool = Pool()
    first = pool.ask()
    pool.connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    second = pool.ask()
    pool.connection.connection_lost(None)
    assert first.ended
    assert not pool.dialled
    assert isinstance(second.error, Unanswered)


def test_one_that_was_heard_of_is_not_sent_twice() -> None:
    pool = Pool()
    pool.ask()
    pool.connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    heard = pool.ask()
    pool.connection.data_received(b"HTTP/1.1 200 OK\r\n")
    pool.connection.connection_lost(None)
    assert isinstance(heard.error, UpstreamLost)
    assert not pool.dialled


def test_the_first_request_of_a_connection_that_is_closed_is_lost_and_not_just_unanswered() -> None:
    pool = Pool()
    heard = pool.ask()
    pool.connection.connection_lost(None)
    assert isinstance(heard.error, UpstreamLost)
    assert not isinstance(heard.error, Unanswered)


@pytest.mark.parametrize(("kept_s", "idle_s", "reused"), [(5.0, 3.5, True), (5.0, 4.5, False), (0.3, 20.0, True)])
def test_a_connection_is_not_reused_once_its_server_may_be_closing_it(
    kept_s: float, idle_s: float, reused: bool
) -> None:
    pool = Pool()
    pool.now += kept_s
    pool.connection.connection_lost(None)  # the server closed it, idle as it was
    another = UpstreamConnection(pool, ORIGIN)
    another.connection_made(transport := Upstream())
    pool.give_back(another)
    pool.now += idle_s
    pool.ask()
    assert pool.dialled == ([] if reused else [ASK])
    assert transport.aborted is not reused


class Raises(Heard):
    """A handler with a bug in one of its calls."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place

    def on_head(self, head: ResponseHead) -> None:
        if self.place == "head":
            raise RecursionError
        super().on_head(head)

    def on_frames(self, frames: bytes, ended: bool) -> None:
        if self.place == "frames":
            raise KeyError(529)
        super().on_frames(frames, ended)

    def on_data(self, data: bytes, ended: bool) -> None:
        if self.place == "data" or (self.place == "end" and ended):
            raise ZeroDivisionError
        super().on_data(data, ended)

    def on_whole(self, head: ResponseHead, body: bytes) -> None:
        if self.place == "whole":
            raise UnicodeError
        super().on_whole(head, body)

    def on_lost(self, error: KuwaError) -> None:
        super().on_lost(error)
        if self.place == "lost":
            raise AssertionError


SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
UNTIL_CLOSED = b"HTTP/1.1 200 OK\r\n\r\n"


@pytest.mark.parametrize(
    ("place", "answer"),
    [
        ("head", SIZED),
        ("frames", CHUNKED),
        ("data", CHUNKED),
        ("data", SIZED),
        ("end", UNTIL_CLOSED),
        ("whole", SIZED),
        ("lost", b"HTTP/1.1 nonsense\r\n\r\n"),
    ],
)
def test_a_handler_that_raises_hears_that_its_answer_is_lost_and_the_connection_does_not(
    place: str, answer: bytes
) -> None:
    pool = Pool()
    if place == "whole":  # its head has to be known
        pool.ask()
        pool.connection.data_received(SIZED)
    raises = Raises(place)
    pool.send(ASK, raises)
    pool.connection.data_received(answer)
    pool.connection.eof_received()
    assert raises.over
    assert isinstance(raises.error, InternalError if place != "lost" else BadUpstream)
    assert pool.transport.aborted
    pool.send(ASK, Heard())
    assert pool.dialled == [ASK]


def test_a_cancelled_request_cuts_its_connection_and_no_other() -> None:
    pool = Pool()
    ended = pool.ask()
    pool.connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    following = pool.ask()
    pool.connection.cancel(ended)
    assert not pool.transport.aborted
    pool.connection.cancel(following)
    assert pool.transport.aborted
