"""What goes wrong between `chatgpt` and its provider, each with a real socket that misbehaves so."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from calls import chat, chat_text, post_json, stream_chat
from processes import REPOSITORY, Executor, Stage

KEY = "sk-canary-3b7c55"
Serve = Callable[[socket.socket], None]


class Misbehaving:
    """A server that serves each connection as it was told, each in a thread."""

    def __init__(self, scripted: Callable[[Misbehaving], Serve]) -> None:
        self._script = scripted(self)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.connections = 0
        self.requests: list[bytes] = []
        self._open: list[socket.socket] = []
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                self._open.append(peer)
                self.connections += 1
                threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self._script(peer)

    def close(self) -> None:
        for each in (self._listener, *self._open):
            each.close()

    def read_request(self, peer: socket.socket) -> bytes:
        """A whole request; empty where the client closed instead."""
        data = b""
        while b"\r\n\r\n" not in data:
            piece = peer.recv(65536)
            if not piece:
                return b""
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        length = next(
            (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0
        )
        while len(body) < length:
            body += peer.recv(65536)
        self.requests.append(head + b"\r\n\r\n" + body)
        return body


def http(status: str, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def chunked(*events: bytes, end: bool = True) -> bytes:
    frames = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + frames + (b"0\r\n\r\n" if end else b"")


def event(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return b"data: " + json.dumps({"id": "x", "choices": [choice]}).encode() + b"\n\n"


ANSWER = (event("good"), event("", "stop"), b"data: [DONE]\n\n")


@contextlib.contextmanager
def misbehaving(scripted: Callable[[Misbehaving], Serve]) -> Iterator[Misbehaving]:
    server = Misbehaving(scripted)
    try:
        yield server
    finally:
        server.close()


def saying(*answers: bytes, then_close: bool = True) -> Callable[[Misbehaving], Serve]:
    """Every connection is given these answers, one for each request, and is then closed."""

    def scripted(server: Misbehaving) -> Serve:
        def serve(peer: socket.socket) -> None:
            for answer in answers:
                if not server.read_request(peer):
                    return
                peer.sendall(answer)
            if then_close:
                peer.close()

        return serve

    return scripted


def executor_at(stage: Stage, origin: str, *flags: str, path: str = "/v1") -> Executor:
    return stage.executor("chatgpt", "--base_url", origin + path, "--api_key", KEY, *flags, kernel=None)


ERROR = b'{"error": {"message": "no", "type": "t", "code": null}}'


@pytest.mark.parametrize(
    ("answer", "status", "code", "says"),
    [
        (http("401 Unauthorized", ERROR), 401, "invalid_api_key", "--api_key"),
        (http("403 Forbidden", ERROR), 403, "permission_denied", "--api_key"),
        (http("404 Not Found", ERROR), 404, "model_not_found", "gpt-3.5-turbo"),
        (http("404 Not Found", b"404 page not found"), 404, "model_not_found", "page not found"),
        (http("429 Too Many", ERROR, "retry-after: 9"), 429, "rate_limit_exceeded", "no"),
        (http("400 Bad Request", b'{"error":{"message":"m","code":"content_filter"}}'), 400, "content_filter", "m"),
        (http("500 Oops", b"<html>oops"), 502, "bad_upstream", "web page"),
        (http("502 Bad Gateway", b""), 502, "bad_upstream", "502"),
        (http("503 Busy", ERROR, "retry-after: 5"), 502, "bad_upstream", "no"),
        (http("504 Late", ERROR), 504, "upstream_timeout", "no"),
        (http("308 Moved", b"", "location: https://elsewhere/v1"), 502, "bad_upstream", "https://elsewhere/v1"),
        (http("200 OK", b"<!doctype html>", "content-type: text/html"), 502, "bad_upstream", "text/html"),
        (http("200 OK", b"{}", "content-type: application/json"), 502, "bad_upstream", "no choices"),
        (http("200 OK", b"{", "content-type: application/json"), 502, "bad_upstream", "cannot be read"),
        (http("200 OK", ERROR, "content-type: application/json"), 502, "bad_upstream", "no"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", 502, "bad_upstream", "cannot be read"),
        (b"", 502, "upstream_lost", "closed"),
        (chunked(b"data: hello\n\n"), 502, "bad_upstream", "no chunk of an answer"),
        (chunked(event("x"), end=False)[:-20], 502, "upstream_lost", "closed"),
        (http("200 OK", b"x" * 10, "content-type: text/event-stream", "transfer-encoding: gzip"), 502,
         "bad_upstream", "cannot be read"),
    ],
)  # fmt: skip
def test_each_misbehaviour_is_one_openai_error(stage: Stage, answer: bytes, status: int, code: str, says: str) -> None:
    with misbehaving(saying(answer)) as server:
        executor = executor_at(stage, server.origin)
        refused = chat(executor.url, "chatgpt", "hi")
        assert (refused.status, refused.error["code"]) == (status, code), refused.text
        assert says in refused.error["message"]
        assert KEY not in refused.text
        streamed = chat(executor.url, "chatgpt", "hi", stream=True)
        assert streamed.status in (200, status)
        assert code in streamed.text


def test_waiting_times_reach_the_client(stage: Stage) -> None:
    for status in ("429 Too Many", "503 Busy"):
        with misbehaving(saying(http(status, ERROR, "retry-after: 5"))) as server:
            assert chat(executor_at(stage, server.origin).url, "chatgpt", "hi").headers["retry-after"] == "5"


def test_a_base_url_without_its_path_is_named_as_the_likely_fault(stage: Stage) -> None:
    with misbehaving(saying(http("404 Not Found", b"not found"))) as server:
        refused = chat(executor_at(stage, server.origin, path="").url, "chatgpt", "hi")
    assert refused.status == 404
    assert "/v1" in refused.error["message"]


def test_a_connection_that_the_provider_closed_between_requests_is_no_failure(stage: Stage) -> None:
    with misbehaving(saying(chunked(*ANSWER))) as server:
        executor = executor_at(stage, server.origin)
        for _ in range(5):
            assert chat_text(executor.url, "chatgpt", "hi") == "good"


def test_connections_are_used_again(stage: Stage) -> None:
    with misbehaving(saying(*[chunked(*ANSWER)] * 5)) as server:
        executor = executor_at(stage, server.origin)
        for _ in range(5):
            assert chat_text(executor.url, "chatgpt", "hi") == "good"
        assert server.connections == 1


def test_a_provider_that_never_answers_is_given_up(stage: Stage) -> None:
    with misbehaving(saying(b"", then_close=False)) as server:
        executor = executor_at(stage, server.origin, "--timeout", "0.5")
        started = time.monotonic()
        refused = chat(executor.url, "chatgpt", "hi")
    assert (refused.status, refused.error["code"]) == (504, "upstream_timeout")
    assert time.monotonic() - started < 5


def test_a_provider_that_falls_silent_in_the_middle_is_given_up(stage: Stage) -> None:
    with misbehaving(saying(chunked(event("one"), end=False), then_close=False)) as server:
        executor = executor_at(stage, server.origin, "--timeout", "0.5")
        with stream_chat(executor.url, "chatgpt", "hi") as stream:
            *events, last = stream.events()
    assert events[-1]["choices"][0]["delta"] == {"content": "one"}
    assert last["error"]["code"] == "upstream_timeout"


def test_a_reset_in_the_middle_is_an_error_event(stage: Stage) -> None:
    with misbehaving(saying(chunked(event("one"), end=False))) as server:
        executor = executor_at(stage, server.origin)
        with stream_chat(executor.url, "chatgpt", "hi") as stream:
            *events, last = stream.events()
    assert events[-1]["choices"][0]["delta"] == {"content": "one"}
    assert last["error"]["code"] == "upstream_lost"


def test_neither_url_nor_key_can_be_set_by_a_request(stage: Stage) -> None:
    with misbehaving(saying(*[chunked(*ANSWER)] * 3)) as server, misbehaving(saying(b"")) as trap:
        executor = executor_at(stage, server.origin)
        fields = {"base_url": trap.origin, "api_base": trap.origin, "api_key": "sk-theirs", "extra_headers": {"a": "b"}}
        headers = {"authorization": "Bearer sk-theirs", "host": f"127.0.0.1:{executor.port}", "cookie": "c=1"}
        assert chat(executor.url, "chatgpt", "hi", headers, **fields).status == 200
        assert trap.connections == 0
        head = server.requests[-1].partition(b"\r\n\r\n")[0].lower()
        assert f"authorization: bearer {KEY}".encode() in head
        assert b"sk-theirs" not in head
        assert b"cookie" not in head


# ---- servers that are merely odd ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fake(shared_stage: Stage) -> str:
    argv = [
        sys.executable,
        str(REPOSITORY / "tests" / "fakes" / "openai_server.py"),
        "--port",
        str(shared_stage.port()),
    ]
    process = shared_stage.process(argv, name="openai_server")
    return process.wait_for(lambda: process.log.partition("\n")[0], "it said its URL")


@pytest.fixture(scope="module")
def executor(shared_stage: Stage, fake: str) -> Executor:
    flags = ["--base_url", fake, "--api_key", KEY]
    pairs = ["--model", "gpt-a", "--access_code", "chatgpt", "--model", "gpt-b", "--access_code", "second"]
    return shared_stage.executor("chatgpt", *flags, *pairs, "--trim_history", kernel=None)


def test_a_server_that_does_not_stream_is_understood(executor: Executor) -> None:
    whole = chat(executor.url, "chatgpt", "one two", fake={"whole": True}).json()
    assert whole["choices"][0]["message"]["content"] == "one two"
    assert "estimated" not in whole["usage"]
    with stream_chat(executor.url, "chatgpt", "one two", fake={"whole": True}) as stream:
        assert stream.text() == "one two"
    calls = [{"id": "c1", "name": "f", "arguments": "{}"}, {"id": "c2", "name": "g", "arguments": "{}"}]
    called = chat(executor.url, "chatgpt", "x", fake={"whole": True, "tool_calls": calls}).json()["choices"][0]
    assert called["finish_reason"] == "tool_calls"
    assert [call["id"] for call in called["message"]["tool_calls"]] == ["c1", "c2"]


def test_several_models_are_served_by_one_executor(executor: Executor) -> None:
    assert [model["id"] for model in executor.get("/v1/models").json()["data"]] == ["chatgpt", "second"]
    for code, model in (("chatgpt", "gpt-a"), ("second", "gpt-b")):
        echoed = chat(executor.url, code, "x", fake={"extra": {"seen": code}}).json()
        assert (echoed["model"], echoed["seen"]) == (code, code)
        refused = chat(executor.url, code, "x", fake={"status": 404})
        assert model in refused.error["message"]


def test_embeddings_pass(executor: Executor) -> None:
    answer = post_json(executor.url + "/v1/embeddings", {"model": "second", "input": ["a", "海"]}).json()
    assert answer["model"] == "second"
    assert [len(entry["embedding"]) for entry in answer["data"]] == [32, 32]
    assert answer["usage"]["prompt_tokens"] > 0


def test_a_conversation_that_the_provider_finds_too_long_is_cut_and_sent_again(executor: Executor) -> None:
    roles = ("user", "assistant") * 10
    messages = [{"role": role, "content": f"turn {number} " * 20} for number, role in enumerate(roles)]
    messages.append({"role": "user", "content": "and now?"})
    answer = chat(executor.url, "chatgpt", "", messages=messages, max_tokens=10, fake={"window": 900})
    assert answer.status == 200, answer
    assert answer.json()["choices"][0]["message"]["content"] == "and now?"
    assert 0 < int(answer.headers["x-kuwa-trimmed-messages"]) < 20
