"""Two dialects that the kernel has never heard of, each a folder: all that it does for its own it does for them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from calls import Stream, fetch, post_json, send_raw, stream_chat
from processes import REPOSITORY, Kernel, Stage, until

PROGRAM = str(REPOSITORY / "tests" / "toys" / "kernel.py")
TEXT = "Hello 世界 😀 " + " ".join(f"word{number}" for number in range(200))
PATHS = ["/toy/shout", "/toy/lines"]


def toy_kernel(stage: Stage) -> Kernel:
    port = stage.port()
    process = stage.process([sys.executable, PROGRAM, str(port)], name="toy-kernel")
    process.wait_for(lambda: "Kuwa kernel" in process.log, "it listened")
    return Kernel(process, port)


@pytest.fixture(scope="module")
def toys(shared_stage: Stage) -> Kernel:
    kernel = toy_kernel(shared_stage)
    shared_stage.executor("debug", "--delay", "0", kernel=kernel)
    return kernel


def asked(path: str, text: str, *, model: str = "debug", stream: bool = True) -> dict[str, Any]:
    if path == "/toy/shout":
        return {"at": model, "shout": text, "once": not stream}
    return {"name": model, "prompt": text, "stream": stream}


def open_toy(kernel: Kernel, path: str, text: str, **headers: str) -> Stream:
    return Stream(kernel.url, path, json.dumps(asked(path, text)), {"content-type": "application/json", **headers})


def pieces(path: str, body: bytes) -> Iterator[tuple[str, Any]]:
    """What an answer of a toy dialect says, piece by piece."""
    if path == "/toy/lines":
        for line in body.splitlines():
            yield from json.loads(line).items()
        return
    for block in body.decode().split("\n\n")[:-1]:
        name, _, data = block.removeprefix("event: ").partition("\ndata: ")
        yield name, data if name == "wait" else json.loads(data)


def said(path: str, body: bytes) -> str:
    return "".join(value for name, value in pieces(path, body) if name in ("shout", "piece"))


def expected(path: str, text: str) -> str:
    return text.upper() if path == "/toy/shout" else text


@pytest.mark.parametrize("path", PATHS)
def test_an_answer_is_streamed_and_closed_in_the_dialects_own_way(toys: Kernel, path: str) -> None:
    answer = post_json(toys.url + path, asked(path, TEXT))
    assert answer.status == 200
    assert answer.headers["content-type"] in ("text/event-stream", "application/x-ndjson")
    assert said(path, answer.body) == expected(path, TEXT)
    last, count = list(pieces(path, answer.body))[-1]
    assert last in ("end", "tokens")
    assert count > 0
    assert answer.headers["x-kuwa-request-id"].startswith("req_")


@pytest.mark.parametrize(("path", "kind"), [("/toy/shout", "text/shout"), ("/toy/lines", "text/json-line")])
def test_an_answer_comes_whole(toys: Kernel, path: str, kind: str) -> None:
    answer = post_json(toys.url + path, asked(path, TEXT, stream=False))
    assert (answer.status, answer.headers["content-type"]) == (200, kind)
    text = answer.text if path == "/toy/shout" else answer.json()["whole"]
    assert text == expected(path, TEXT)


def error_code(path: str, body: bytes) -> str:
    message = json.loads(body)
    return message["code"] if path == "/toy/shout" else message["error"]


@pytest.mark.parametrize("path", PATHS)
def test_errors_of_every_layer_are_worded_in_the_dialect(toys: Kernel, path: str) -> None:
    url = toys.url + path
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n".encode()
    refusals = {
        "invalid_request_error": (400, post_json(url, {"nonsense": 1}).body),
        "model_not_found": (404, post_json(url, asked(path, "hi", model="nobody")).body),
        "forbidden_host": (403, fetch(url, "POST", b"{}", {"host": "evil.test"}).body),
    }
    for code, (status, body) in refusals.items():
        assert error_code(path, body) == code, (status, body)
    for rest, status, code in (
        (b"Content-Length: 99999999999\r\n\r\n", 413, "request_too_large"),
        (b"X: " + b"y" * 40_000 + b"\r\n\r\n", 431, "headers_too_large"),
        (b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "invalid_request_error"),
    ):
        answer = send_raw(toys.port, head + rest)
        answer_head, _, body = answer.partition(b"\r\n\r\n")
        assert answer_head.startswith(b"HTTP/1.1 %d " % status), answer
        assert error_code(path, body) == code
    assert fetch(url).status == 405


@pytest.mark.parametrize("path", PATHS)
def test_a_stream_outlives_its_replica(stage: Stage, path: str) -> None:
    kernel = toy_kernel(stage)
    executors = [stage.executor("debug", "--delay", "0.01", kernel=kernel, access_code="debug") for _ in range(2)]
    with open_toy(kernel, path, TEXT) as stream:
        first = next(stream.pieces())
        busy = next(replica for replica in kernel.replicas("debug") if replica["running"])
        next(e for e in executors if f":{e.port}/" in busy["endpoint"]).process.kill()
        body = first + stream.read()
    assert said(path, body) == expected(path, TEXT)
    assert kernel.metric("kuwa_resumes_total", outcome="resumed") == 1


@pytest.mark.parametrize("path", PATHS)
def test_a_stream_that_cannot_go_on_ends_with_the_dialects_own_error(stage: Stage, path: str) -> None:
    kernel = toy_kernel(stage)
    executor = stage.executor("debug", "--delay", "0.01", kernel=kernel)
    with open_toy(kernel, path, TEXT) as stream:
        first = next(stream.pieces())
        executor.process.kill()
        last = list(pieces(path, first + stream.read()))[-1]
    assert last[0] in ("oops", "error")
    assert "upstream_lost" in (last[1], last[1]["code"] if isinstance(last[1], dict) else "")


@pytest.mark.parametrize("path", PATHS)
def test_a_client_that_waits_is_sent_keep_alives_that_its_dialect_understands(stage: Stage, path: str) -> None:
    kernel = toy_kernel(stage)
    stage.executor("debug", "--delay", "0.05", "--concurrency", "1", kernel=kernel)
    with stream_chat(kernel.url, "debug", TEXT) as busy:
        busy.first_text()
        with open_toy(kernel, path, "hi", **{"x-kuwa-progress": "1"}) as stream:
            body = next(stream.pieces())
            assert "queued position=0" in str(list(pieces(path, body)))
            busy.close()
            body += stream.read()
    assert said(path, body) == expected(path, "hi")
    until(lambda: kernel.idle("debug"), "the slots were free")
