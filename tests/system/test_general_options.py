"""Each general option of an executor does what its help says: one test for each."""

from __future__ import annotations

import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qsl

import psutil
import pytest
import trustme

from calls import chat, chat_text, fetch, old_form, post_form
from kuwa.wire.names import is_loopback
from processes import Kernel, Process, Stage, until

REFUSED_BY_KERNEL = 5
OWN_ADDRESSES = [
    one.address
    for addresses in psutil.net_if_addrs().values()
    for one in addresses
    if one.family == socket.AF_INET and not is_loopback(one.address)
]


def start(stage: Stage, *flags: str) -> Process:
    """`kuwa-executor debug` with these flags and no others."""
    return stage.process([sys.executable, "-m", "kuwa.executor.cli", "debug", "--delay", "0", *flags], name="debug")


@contextmanager
def recorder() -> Iterator[tuple[str, list[tuple[str, dict[str, str]]]]]:
    """A server that writes down each path it was asked for with its form, and refuses all: its URL and the list."""
    asked: list[tuple[str, dict[str, str]]] = []

    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            form = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
            asked.append((self.path, dict(parse_qsl(form))))
            self.send_response(404)
            self.send_header("content-length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", asked
        finally:
            server.shutdown()
            thread.join()


def test_access_code_names_the_model(stage: Stage, kernel: Kernel) -> None:
    stage.executor("debug", "--access_code", "org/model:7b", kernel=kernel)
    assert kernel.codes() == ["org/model:7b"]
    assert chat_text(kernel.url, "org/model:7b", "hi") == "hi"


def test_without_access_code_the_executors_own_name_counts(stage: Stage, kernel: Kernel) -> None:
    stage.executor("debug", kernel=kernel)
    assert kernel.codes() == ["debug"]


def test_access_code_may_be_repeated(stage: Stage, kernel: Kernel) -> None:
    stage.executor("debug", "--access_code", "first", "--access_code", "second", kernel=kernel)
    assert sorted(kernel.codes()) == ["first", "second"]
    for code in ("first", "second"):
        answer = chat(kernel.url, code, "hi").json()
        assert (answer["model"], answer["choices"][0]["message"]["content"]) == (code, "hi")


def test_version_is_the_prefix_of_the_worker_api(stage: Stage) -> None:
    with recorder() as (url, asked):
        process = start(stage, "--version", "v9.9", "--kernel_url", url)
        process.wait_for(lambda: asked or process.exit_code, "the kernel was contacted")
        assert {path for path, _ in asked} == {"/v9.9/worker/register"}
        assert process.wait(30) == REFUSED_BY_KERNEL


def test_a_kernel_that_lacks_the_version_gives_an_error_that_names_both(stage: Stage, kernel: Kernel) -> None:
    process = start(stage, "--version", "v9.9", "--kernel_url", kernel.url)
    assert process.wait(30) == REFUSED_BY_KERNEL
    assert "v9.9" in process.log
    assert kernel.url in process.log
    assert kernel.codes() == []


def test_ignore_kernel_never_contacts_one(stage: Stage) -> None:
    with recorder() as (url, asked):
        executor = stage.executor("debug", "--delay", "0", "--kernel_url", url, kernel=None)
        assert chat_text(executor.url, "debug", "hi") == "hi"
        assert executor.process.stop() == 0
        assert asked == []


class TestHttps:
    """`--https` registers an https endpoint; the kernel's relay verifies it."""

    @pytest.fixture
    def authority(self, tmp_path: Path) -> dict[str, str]:
        authority = trustme.CA()
        server = authority.issue_cert("localhost", "127.0.0.1")
        files = {name: str(tmp_path / name) for name in ("ca.pem", "cert.pem", "key.pem")}
        authority.cert_pem.write_to_path(files["ca.pem"])
        for part in server.cert_chain_pems:
            part.write_to_path(files["cert.pem"], append=True)
        server.private_key_pem.write_to_path(files["key.pem"])
        return files

    def flags(self, authority: dict[str, str]) -> list[str]:
        return ["--delay", "0", "--https", "--tls_cert", authority["cert.pem"], "--tls_key", authority["key.pem"]]

    def test_a_kernel_that_trusts_the_authority_relays_to_it(self, stage: Stage, authority: dict[str, str]) -> None:
        kernel = stage.kernel("--ca_file", authority["ca.pem"])
        executor = stage.executor("debug", *self.flags(authority), kernel=kernel)
        assert kernel.origins("debug") == [f"https://127.0.0.1:{executor.port}"]
        assert chat_text(kernel.url, "debug", "in secret") == "in secret"
        trusting = ssl.create_default_context(cafile=authority["ca.pem"])
        secure = f"https://127.0.0.1:{executor.port}"
        assert fetch(secure + "/health", ca=trusting).status == 204
        with pytest.raises(ssl.SSLCertVerificationError):
            fetch(secure + "/health", ca=ssl.create_default_context())

    def test_a_kernel_that_does_not_trust_it_relays_nothing(self, stage: Stage, authority: dict[str, str]) -> None:
        kernel = stage.kernel()
        stage.executor("debug", *self.flags(authority), kernel=kernel)
        answer = chat(kernel.url, "debug", "in secret")
        assert answer.status in {502, 503}, answer
        assert answer.error["code"] in {"bad_upstream", "upstream_lost", "no_replica"}
        assert b"in secret" not in answer.body

    def test_https_may_be_a_proxy_in_front_so_it_needs_no_certificate(self, stage: Stage, kernel: Kernel) -> None:
        """What the old option did: say https at the kernel, whoever ends TLS."""
        process = start(stage, "--https", "--host", "127.0.0.1", "--kernel_url", kernel.url)
        process.wait_for(lambda: kernel.replicas("debug"), "it registered")
        assert kernel.origins("debug")[0].startswith("https://127.0.0.1:")


def test_host_is_what_is_registered(stage: Stage, kernel: Kernel) -> None:
    executor = stage.executor("debug", "--delay", "0", "--host", "localhost", kernel=kernel)
    assert kernel.origins("debug") == [f"http://localhost:{executor.port}"]
    assert chat_text(kernel.url, "debug", "hi") == "hi"


def listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def test_with_a_host_that_leads_elsewhere_it_listens_on_its_way_to_the_kernel_alone(stage: Stage) -> None:
    port = stage.port()
    process = start(stage, "--host", "proxy.example", "--port", str(port), "--ignore_kernel")
    process.wait_for(lambda: f"listening on 127.0.0.1 port {port}" in process.log, "it said where it listens")
    assert listens("127.0.0.1", port)
    assert not listens("127.0.0.2", port)


@pytest.mark.skipif(not OWN_ADDRESSES, reason="this machine has loopback addresses alone")
def test_with_an_address_of_this_machine_it_listens_there_alone(stage: Stage) -> None:
    own = OWN_ADDRESSES[0]
    kernel = stage.kernel()
    port = stage.port()
    process = start(stage, "--host", own, "--port", str(port), "--kernel_url", kernel.url)
    process.wait_for(lambda: kernel.ready("debug"), "it was ready")
    assert f"listening on {own} port {port}: every program that reaches this address" in process.log
    assert chat_text(kernel.url, "debug", "hi") == "hi"
    assert not listens("127.0.0.1", port)


def test_what_is_registered_is_made_of_https_host_port_and_executor_path(stage: Stage) -> None:
    with recorder() as (url, asked):
        port = str(stage.port())
        flags = ["--https", "--host", "models.example", "--port", port, "--executor_path", "/a/b", "--access_code", "c"]
        process = start(stage, "--kernel_url", url, *flags)
        process.wait_for(lambda: asked or process.exit_code, "the kernel was contacted")
        _, form = asked[0]
        assert (form["name"], form["endpoint"]) == ("c", f"https://models.example:{port}/a/b")
        process.wait(30)


def test_port_is_the_one_that_is_served(stage: Stage, kernel: Kernel) -> None:
    port = stage.port()
    start(stage, "--port", str(port), "--kernel_url", kernel.url)
    until(lambda: kernel.ready("debug"), "it was ready")
    assert fetch(f"http://127.0.0.1:{port}/health").status == 204


def test_without_port_each_executor_finds_a_free_one(stage: Stage, kernel: Kernel) -> None:
    for _ in range(2):
        start(stage, "--kernel_url", kernel.url)
    until(lambda: kernel.ready("debug", replicas=2), "both were ready", timeout_s=30)
    assert len(set(kernel.origins("debug"))) == 2
    for origin in kernel.origins("debug"):
        assert fetch(origin + "/health").status == 204


def test_executor_path_moves_the_chat_and_its_abort(stage: Stage, kernel: Kernel) -> None:
    executor = stage.executor("debug", "--delay", "0", "--executor_path", "/talk/here", kernel=kernel)
    assert post_form(executor.url + "/talk/here", old_form("debug", "hi")).text == "hi"
    assert executor.get("/talk/here/abort").json() == {"msg": "No process to abort"}
    assert post_form(executor.url + "/chat", old_form("debug", "hi")).status == 404
    assert executor.get("/chat/abort").status == 404
    assert chat_text(kernel.url, "debug", "hi") == "hi"
    assert post_form(kernel.url + "/v1.0/chat/completions", old_form("debug", "hi")).text == "hi"


@pytest.mark.parametrize("tail", ["", "/"], ids=["bare", "with a slash"])
def test_kernel_url_is_where_it_registers(stage: Stage, kernel: Kernel, tail: str) -> None:
    start(stage, "--kernel_url", kernel.url + tail)
    until(lambda: kernel.ready("debug"), "it was ready")


def test_kernel_url_may_hold_a_path_of_its_own(stage: Stage) -> None:
    with recorder() as (url, asked):
        process = start(stage, "--kernel_url", url + "behind/a/proxy/")
        process.wait_for(lambda: asked or process.exit_code, "the kernel was contacted")
        assert asked[0][0] == "/behind/a/proxy/v1.0/worker/register"
        process.wait(30)


def test_log_is_the_level_of_the_log(stage: Stage) -> None:
    quiet = stage.executor("debug", "--delay", "0", "--log", "ERROR", kernel=None)
    assert chat_text(quiet.url, "debug", "hi") == "hi"
    assert quiet.process.log == ""
