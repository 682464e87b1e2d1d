"""What people and programs do wrong: each gets one clear error, and nobody else notices."""

from __future__ import annotations

import http.client
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from calls import chat_text, fetch, post_form, send_raw, stream_chat
from processes import Kernel, Process, Stage, until

LONG = " ".join(f"word{index}" for index in range(100))
JSON = {"content-type": "application/json"}
FORM = {"content-type": "application/x-www-form-urlencoded"}
DEEP = 100_000


def kernel_process(stage: Stage, *flags: str) -> Process:
    return stage.process([sys.executable, "-m", "kuwa.kernel.cli", *flags], name="kernel")


def executor_process(stage: Stage, *flags: str) -> Process:
    return stage.process([sys.executable, "-m", "kuwa.executor.cli", "debug", *flags], name="debug")


def says(process: Process, *words: str, timeout_s: float = 30) -> None:
    """It ends with a code that is not 0, and its last words are one clear error that holds `words`."""
    assert process.wait(timeout_s) > 0, process.log
    for word in words:
        assert word in process.log, process.log


class TestPrograms:
    def test_a_port_in_use_ends_the_kernel_with_a_clear_error(self, stage: Stage, kernel: Kernel) -> None:
        says(kernel_process(stage, "--port", str(kernel.port)), str(kernel.port), "in use")
        assert kernel.get("/livez").status == 200

    def test_a_port_in_use_ends_an_executor_with_a_clear_error(self, stage: Stage, kernel: Kernel) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            process = executor_process(stage, "--port", port, "--kernel_url", kernel.url)
            says(process, port, "in use")
        assert kernel.replicas("debug") == []

    @pytest.mark.parametrize("port", ["-1", "65536", "ninety"])
    def test_a_port_that_is_none_is_refused(self, stage: Stage, port: str) -> None:
        says(kernel_process(stage, f"--port={port}"), "--port")
        says(executor_process(stage, f"--port={port}", "--ignore_kernel"), "--port")

    def test_a_kernel_that_is_not_there_is_waited_for_and_named(self, stage: Stage) -> None:
        """An executor that was started first is no failure: it says whom it misses, and joins when it comes."""
        port = stage.port()
        url = f"http://127.0.0.1:{port}"
        process = executor_process(stage, "--kernel_url", url)
        process.wait_for(lambda: url in process.log or process.exit_code is not None, "it named the kernel")
        if process.exit_code is None:
            kernel = stage.kernel(port=port)
            until(lambda: kernel.ready("debug"), "it joined by itself", timeout_s=20)
        else:
            assert process.exit_code == 5

    @pytest.mark.parametrize("url", ["127.0.0.1:9000", "ftp://127.0.0.1/", "http://", "http://127.0.0.1:99999/"])
    def test_a_kernel_url_that_is_none_is_refused(self, stage: Stage, url: str) -> None:
        says(executor_process(stage, "--kernel_url", url), "--kernel_url")

    @pytest.mark.parametrize("code", ["", "two words", "a,b", "tab\there", "bot/mine", "x" * 201, "\x1b[31mred"])
    def test_an_odd_access_code_is_refused_by_the_command(self, stage: Stage, code: str) -> None:
        says(executor_process(stage, "--access_code", code, "--ignore_kernel"), "access")

    @pytest.mark.parametrize("code", ["模型", "a/b:c@d#e?f&g=h%20", "x" * 200, "../../etc/passwd", "'\"<b>{{7*7}}"])
    def test_an_odd_but_sound_access_code_is_served(self, stage: Stage, kernel: Kernel, code: str) -> None:
        stage.executor("debug", "--delay", "0", kernel=kernel, access_code=code)
        assert kernel.codes() == [code]
        assert chat_text(kernel.url, code, "hi") == "hi"
        fields = {"name": code, "input": '[{"msg":"hi","isbot":false}]', "history_id": "-1", "user_id": "1"}
        assert post_form(kernel.url + "/v1.0/chat/completions", fields).text == "hi"

    @pytest.mark.parametrize(
        "flags",
        [["--upstream", "nourl"], ["--upstream", "a b=http://127.0.0.1:1/v1"], ["--ca_file", "/no/such/file.pem"]],
        ids=["an upstream without a URL", "an upstream with a bad name", "a CA file that is none"],
    )
    def test_a_setting_that_cannot_be_is_refused_by_the_kernel(self, stage: Stage, flags: list[str]) -> None:
        says(kernel_process(stage, "--port", str(stage.port()), *flags), flags[0])


@pytest.fixture(scope="module")
def front(shared_stage: Stage, shared_kernel: Kernel) -> Kernel:
    shared_stage.executor("debug", "--delay", "0.002", "--concurrency", "4", kernel=shared_kernel)
    return shared_kernel


class Bystander:
    """A client that chats all the while, one stream after the other; each has to arrive whole."""

    def __init__(self, url: str) -> None:
        self.pieces = 0
        self.faults: list[str] = []
        self._url = url
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._chat)
        self._thread.start()

    def _chat(self) -> None:
        while not self._leaving.is_set() and not self.faults:
            try:
                self._chat_once()
            except (AssertionError, OSError, http.client.HTTPException) as error:
                self.faults.append(f"{type(error).__name__}: {error}")

    def _chat_once(self) -> None:
        text = ""
        with stream_chat(self._url, "debug", LONG) as stream:
            for piece in stream.deltas():
                text += piece
                self.pieces += 1
        assert text == LONG

    def leave(self) -> None:
        self._leaving.set()
        self._thread.join()


@pytest.fixture(scope="module")
def bystander(front: Kernel) -> Iterator[Bystander]:
    client = Bystander(front.url)
    yield client
    client.leave()
    assert client.faults == []


@pytest.fixture
def undisturbed(front: Kernel, bystander: Bystander) -> Iterator[None]:
    """Around a test: somebody else's chat runs before it, during it, and goes on after it."""
    before = until(lambda: bystander.pieces, "the bystander's chat ran")
    yield
    until(lambda: bystander.pieces > before + 2 or bystander.faults, "the bystander's chat went on")
    assert bystander.faults == []
    assert front.process.exit_code is None


def deep(opening: str, closing: str) -> bytes:
    return (opening * DEEP + "1" + closing * DEEP).encode()


def within(value: bytes) -> bytes:
    """A chat whose field `x`, which nobody knows, holds `value`."""
    return b'{"model": "debug", "messages": [{"role": "user", "content": "hi"}], "x": ' + value + b"}"


BAD_JSON = {
    "nothing": b"",
    "garbage": b"\x00\x01\x02",
    "cut off": b'{"model": "debug", "messages": [{"role": "us',
    "two values": b'{"model": "debug", "messages": []} {}',
    "arrays nested 100,000 deep": deep("[", "]"),
    "objects nested 100,000 deep": deep('{"a":', "}"),
    "arrays nested 100,000 deep in messages": b'{"model": "debug", "messages": ' + deep("[", "]") + b"}",
    "invalid UTF-8": b'{"model": "debug", "messages": [{"role": "user", "content": "\xff\xc0\x80"}]}',
    "a lone surrogate": b'{"model": "debug", "messages": [{"role": "user", "content": "\\ud800"}]}',
    "not a number": within(b"NaN"),
    "a number beyond all bounds": b'{"model": "debug", "messages": 1' + b"0" * 10_000 + b"}",
}


@pytest.mark.usefixtures("undisturbed")
class TestBodies:
    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank"])
    @pytest.mark.parametrize("bad", BAD_JSON)
    def test_json_that_is_none_is_a_400(self, front: Kernel, path: str, bad: str) -> None:
        answer = fetch(front.url + path, "POST", BAD_JSON[bad], JSON, timeout_s=10)
        assert answer.status == 400, answer
        assert answer.error["type"] == "invalid_request_error"

    @pytest.mark.parametrize("brackets", ["[]", "{}"])
    def test_a_field_nested_100_000_deep_that_nobody_reads_does_no_harm(self, front: Kernel, brackets: str) -> None:
        value = deep("[", "]") if brackets == "[]" else deep('{"a":', "}")
        answer = fetch(front.url + "/v1/chat/completions", "POST", within(value), JSON, timeout_s=10)
        assert answer.status == 400, answer.status
        assert answer.error["message"]

    def test_a_body_of_40_mib_is_a_413(self, front: Kernel) -> None:
        body = within(json.dumps("x" * (40 * 2**20)).encode())
        try:
            answer = fetch(front.url + "/v1/chat/completions", "POST", body, JSON)
        except (BrokenPipeError, ConnectionResetError):
            pytest.fail("the connection was cut before the answer could be read")
        assert answer.status == 413
        assert answer.error["code"] == "request_too_large"

    def test_a_body_of_40_mib_in_chunks_is_a_413(self, front: Kernel) -> None:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
        piece = b"100000\r\n" + b" " * 2**20 + b"\r\n"
        assert send_raw(front.port, head + piece * 40).startswith(b"HTTP/1.1 413")

    def test_a_40_mib_form_is_a_413(self, front: Kernel) -> None:
        answer = fetch(front.url + "/v1.0/chat/completions", "POST", b"input=" + b"x" * (40 * 2**20), FORM)
        assert answer.status == 413

    @pytest.mark.parametrize(
        "form",
        [
            pytest.param(b"name=debug&input=%5B%7B%22msg", id="cut off in the field"),
            pytest.param(b"name=debug&input=%5B%7B%2", id="cut off in an escape"),
            pytest.param(b"name=debug&input=%ff%fe&history_id=1&user_id=1", id="invalid UTF-8, escaped"),
            pytest.param(b"name=debug&input=\xff\xfe&history_id=1&user_id=1", id="invalid UTF-8"),
            pytest.param(b"name=debug&input=" + b"%5B" * DEEP + b"&history_id=1&user_id=1", id="100,000 deep"),
            pytest.param(b"&".join(b"f%d=1" % n for n in range(100_000)), id="100,000 fields"),
            pytest.param(b"name=debug", id="fields missing"),
            pytest.param(b"", id="empty"),
        ],
    )
    def test_a_form_that_is_none_is_a_400(self, front: Kernel, form: bytes) -> None:
        answer = fetch(front.url + "/v1.0/chat/completions", "POST", form, FORM, timeout_s=10)
        assert answer.status == 400, answer
        assert answer.text.strip()

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            *(("kuwa", value) for value in ("{", "[" * DEEP, "\x00", "null", "[]", '{"executor_id": 1}')),
            *(
                ("endpoint", value)
                for value in ("", "{", "\x00", "javascript:alert(1)", "http://[::1", "http:// /chat")
            ),
            *(("name", value) for value in ("", "\x00", "a b", "a,b", "\u200b", "bot/x", "x" * 201)),
        ],
    )
    def test_a_registration_that_is_none_is_refused(self, front: Kernel, field: str, value: str) -> None:
        fields = {"name": "evil", "endpoint": "http://127.0.0.1:1/chat", field: value}
        answer = post_form(front.url + "/v1.0/worker/register", fields)
        assert answer.status == 400, answer
        assert answer.text
        assert list(front.served()) == ["debug"]


def request(head: str, body: bytes = b"", path: str = "/v1/chat/completions") -> bytes:
    return f"POST {path} HTTP/1.1\r\nhost: localhost\r\n{head}\r\n\r\n".encode("latin-1") + body


SMUGGLED = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"
SMUGGLING = {
    "both lengths": request("content-length: 5\r\ntransfer-encoding: chunked", b"0\r\n\r\n" + SMUGGLED),
    "both lengths, the other way round": request(
        "transfer-encoding: chunked\r\ncontent-length: 5", b"0\r\n\r\n" + SMUGGLED
    ),
    "two different lengths": request("content-length: 2\r\ncontent-length: 40", b"{}" + SMUGGLED),
    "two lengths in one": request("content-length: 2, 40", b"{}" + SMUGGLED),
    "a length with a sign": request("content-length: +2", b"{}" + SMUGGLED),
    "a negative length": request("content-length: -2", b"{}" + SMUGGLED),
    "a length in hex": request("content-length: 0x2", b"{}" + SMUGGLED),
    "a length with an underscore": request("content-length: 1_0", b"{}" + SMUGGLED),
    "an encoding that is none": request("transfer-encoding: xchunked", b"0\r\n\r\n" + SMUGGLED),
    "chunked that is not last": request("transfer-encoding: chunked, identity", b"0\r\n\r\n" + SMUGGLED),
    "a folded header": request("x-a: one\r\n two\r\ncontent-length: 2", b"{}" + SMUGGLED),
    "a folded encoding": request("transfer-encoding:\r\n chunked", b"0\r\n\r\n" + SMUGGLED),
    "a space before the colon": request("content-length : 2", b"{}" + SMUGGLED),
    "bare line feeds": b"POST /v1/chat/completions HTTP/1.1\nhost: localhost\ncontent-length: 2\n\n{}" + SMUGGLED,
    "a bare carriage return": request("x-a: one\rcontent-length: 2", b"{}" + SMUGGLED),
    "a zero byte in a header": request("x-a: one\x00two\r\ncontent-length: 2", b"{}" + SMUGGLED),
    "a chunk size with a sign": request("transfer-encoding: chunked", b"+2\r\n{}\r\n0\r\n\r\n" + SMUGGLED),
    "a chunk size that is none": request("transfer-encoding: chunked", b"zz\r\n{}\r\n0\r\n\r\n" + SMUGGLED),
    "a chunk longer than its size": request("transfer-encoding: chunked", b"1\r\n{}\r\n0\r\n\r\n" + SMUGGLED),
    "no host": b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}",
    "two hosts": request("host: evil.test\r\ncontent-length: 2", b"{}" + SMUGGLED),
    "a method that is none": b"FETCH! / HTTP/1.1\r\nhost: localhost\r\n\r\n" + SMUGGLED,
    "a version that is none": b"GET / HTTP/9.9\r\nhost: localhost\r\n\r\n" + SMUGGLED,
    "TLS on a plain port": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,
    "headers without end": b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"x-a: " + b"y" * 100_000,
    "ten thousand headers": b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"a: b\r\n" * 10_000 + b"\r\n",
}


@pytest.mark.usefixtures("undisturbed")
class TestSmuggling:
    @pytest.mark.parametrize("where", ["kernel", "executor"])
    @pytest.mark.parametrize("shape", SMUGGLING)
    def test_a_request_that_could_be_read_in_two_ways_is_refused_and_closed(
        self, front: Kernel, where: str, shape: str
    ) -> None:
        (origin,) = front.origins("debug")
        port = front.port if where == "kernel" else int(origin.rpartition(":")[2])
        answer = send_raw(port, SMUGGLING[shape], timeout_s=2)
        assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), answer
        assert len(re.findall(rb"HTTP/1\.[01] \d\d\d ", answer)) == 1, answer

    def test_chunked_as_it_should_be_is_served(self, front: Kernel) -> None:
        body = b'{"model": "debug", "messages": [{"role": "user", "content": "hi"}]}'
        head = "transfer-encoding: chunked\r\ncontent-type: application/json\r\nconnection: close"
        answer = send_raw(front.port, request(head, b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)))
        assert answer.startswith(b"HTTP/1.1 200"), answer


@pytest.mark.usefixtures("undisturbed")
def test_a_client_that_sends_half_a_request_and_goes_disturbs_nobody(front: Kernel) -> None:
    for cut in (1, 20, 60, 90):
        with socket.create_connection(("127.0.0.1", front.port)) as raw:
            raw.sendall(request("content-length: 100", b"{}" * 20)[:cut])


def test_an_unknown_route_is_a_404_in_the_openai_shape(front: Kernel) -> None:
    for method, path in (("GET", "/nowhere"), ("POST", "/v1/nowhere"), ("GET", "/v1.0/nowhere"), ("GET", "//")):
        answer = fetch(front.url + path, method, b"" if method == "POST" else None)
        assert answer.status == 404, (method, path, answer)
        assert answer.error["code"] == "not_found"


def test_a_wrong_method_is_a_405(front: Kernel) -> None:
    for method, path in (
        ("GET", "/v1/chat/completions"),
        ("DELETE", "/v1/models"),
        ("PUT", "/v1.0/worker/register"),
    ):
        assert fetch(front.url + path, method).status == 405, (method, path)


MIB = 1024 * 1024
STREAMED = b'"stream":true,"stream_options":{}'
MONSTERS = {
    "a model name": ("/v1/chat/completions", b'{"messages":[],"model":"%s"}' % (b"wombat" * (5 * MIB)), 404),
    "a model name of a form": ("/v1.0/chat/completions", b"input=[]&name=" + b"%E7%86%8A" * (3 * MIB), 404),
    "escapes": ("/v1.0/chat/completions", b"name=debug&input=" + b"%7b" * (10 * MIB), 400),
    "escapes and plus signs": ("/v1.0/chat/completions", b"name=debug&input=" + b"+%2B" * (7 * MIB), 400),
    "garbled escapes": ("/v1.0/chat/completions", b"name=debug&input=" + b"%x" * (15 * MIB), 400),
    "turns": ("/v1.0/chat/completions", b"name=debug&input=[" + b"{}," * (10 * MIB) + b"{}]", 400),
    "empty turns": ("/v1.0/chat/completions", b"name=debug&input=[" + b"null," * (6 * MIB) + b"{}]", 400),
    "fields": ("/v1.0/chat/completions", b"a=1&" * (7 * MIB), 400),
    "ids to abort": ("/v1.0/chat/abort", b"user_id=1&history_id=[" + b"-7," * (9 * MIB) + b"1]", 413),
    "a registration": ("/v1.0/worker/register", b"name=a&endpoint=http://127.0.0.1:1/" + b"b" * (2 * MIB), 413),
    "members": (
        "/v1/chat/completions",
        b'{"model":"debug","messages":[],%s' % STREAMED + b"".join(b',"%x":0' % n for n in range(2_500_000)) + b"}",
        400,
    ),
    "messages": ("/v1/chat/completions", b'{"model":"nobody","messages":[%s1]}' % (b"1," * (15 * MIB)), 404),
    "nesting": ("/v1/chat/completions", b'{"model":"nobody","messages":%s' % (b"[" * (30 * MIB)), 400),
}


class TestOneLargeMessage:
    """No message, however it is made, holds up the kernel: everybody's streams would stand still with it.

    The promise is 250 ms; these machines are shared, so ten times as much fails.
    """

    @pytest.mark.parametrize("name", MONSTERS)
    def test_is_answered_and_the_kernel_answers_others_meanwhile(self, shared_kernel: Kernel, name: str) -> None:
        route, body, status = MONSTERS[name]
        waits: list[float] = []
        ended = threading.Event()

        def watch() -> None:
            while not ended.is_set():
                began = time.monotonic()
                assert shared_kernel.get("/livez").status == 200
                waits.append(time.monotonic() - began)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            answer = fetch(shared_kernel.url + route, "POST", body, FORM if ".0/" in route else JSON)
        finally:
            ended.set()
            watcher.join()
        assert answer.status == status, answer.body[:300]
        assert len(answer.body) < 1000
        assert max(waits) < 2.5
