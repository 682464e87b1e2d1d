"""Whom the kernel believes: the Host and Origin of a request, where it may listen, which endpoints may be
registered; and the holes of the old kernel, each tried and found shut.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from calls import Answer, chat, chat_text, fetch, post_form, stream_chat
from processes import REPOSITORY, Executor, Kernel, Stage, until
from routes import example_path, table

EVIL_HOSTS = ["evil.test", "evil.test:9000", "127.0.0.1.evil.test", "localhost.evil.test", "10.1.2.3", "[::2]:9000", ""]
EVIL_ORIGINS = ["http://evil.test", "https://localhost.evil.test", "null", "file://", "http://10.1.2.3:9000", "x"]


@pytest.fixture(scope="module")
def lone_executor(shared_stage: Stage) -> Executor:
    return shared_stage.executor("debug", "--delay", "0", kernel=None)


def ask(url: str, method: str, **headers: str) -> Answer:
    body = b"{}" if method in {"POST", "PUT"} else None
    return fetch(url, method, body, headers)


def refusal(answer: Answer) -> str:
    """The code of a refusal; the v1.0 chat routes word it as text."""
    if answer.headers["content-type"].startswith("text/plain"):
        return "forbidden_origin" if re.search("[Oo]rigin|another site", answer.text) else "forbidden_host"
    return answer.error["code"]


class TestHostAndOrigin:
    @pytest.mark.parametrize(("method", "path"), table())
    def test_every_route_refuses_a_foreign_host(self, shared_kernel: Kernel, method: str, path: str) -> None:
        for host in EVIL_HOSTS:
            answer = ask(shared_kernel.url + example_path(path), method, host=host)
            assert answer.status == 403, (host, answer)
            assert method == "HEAD" or refusal(answer) == "forbidden_host"

    @pytest.mark.parametrize(("method", "path"), table())
    def test_every_route_refuses_a_foreign_origin(self, shared_kernel: Kernel, method: str, path: str) -> None:
        for origin in EVIL_ORIGINS:
            answer = ask(shared_kernel.url + example_path(path), method, origin=origin)
            assert answer.status == 403, (origin, answer)
            assert method == "HEAD" or refusal(answer) == "forbidden_origin"

    @pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
    @pytest.mark.parametrize("path", ["/", "/nowhere", "/v1/chat/completions", "/v1.0/worker/debug"])
    def test_so_does_every_other_method_and_path(self, shared_kernel: Kernel, method: str, path: str) -> None:
        assert ask(shared_kernel.url + path, method, host="evil.test").status == 403
        assert ask(shared_kernel.url + path, method, origin="http://evil.test").status == 403

    @pytest.mark.parametrize(
        "path", ["/v1/models", "/v1/chat/completions", "/chat", "/chat/abort", "/health", "/metrics"]
    )
    def test_an_executors_own_port_does_the_same(self, lone_executor: Executor, path: str) -> None:
        for method in ("GET", "POST"):
            assert ask(lone_executor.url + path, method, host="evil.test").status == 403
            assert ask(lone_executor.url + path, method, origin="http://evil.test").status == 403

    @pytest.mark.parametrize(("method", "path"), [row for row in table() if row[0] in {"POST", "PUT", "DELETE"}])
    @pytest.mark.parametrize("site", ["cross-site", "same-site"])
    def test_another_site_changes_nothing(self, shared_kernel: Kernel, method: str, path: str, site: str) -> None:
        answer = ask(shared_kernel.url + example_path(path), method, **{"sec-fetch-site": site})
        assert (answer.status, refusal(answer)) == (403, "forbidden_origin")

    @pytest.mark.parametrize("path", ["/chat/abort", "/chat/%61bort", "/chat/abort?x=1"])
    def test_no_image_of_a_page_aborts_what_an_executor_computes(self, stage: Stage, path: str) -> None:
        executor = stage.executor("debug", "--delay", "0.05", kernel=None)
        with stream_chat(executor.url, "debug", "one two three four five six seven eight") as stream:
            stream.first_text()
            for site in ("cross-site", "same-site"):
                for method in ("GET", "HEAD"):
                    assert ask(executor.url + path, method, **{"sec-fetch-site": site}).status == 403
            assert "eight" in stream.text()
        assert ask(executor.url + path, "GET", **{"sec-fetch-site": "none"}).json() == {"msg": "No process to abort"}

    def test_what_is_local_is_welcome(self, shared_kernel: Kernel) -> None:
        for host in (
            "localhost",
            f"localhost:{shared_kernel.port}",
            "127.0.0.1",
            "[::1]:80",
            "LOCALHOST",
            "me.localhost",
        ):
            assert ask(shared_kernel.url + "/v1/models", "GET", host=host).status == 200
        assert (
            ask(shared_kernel.url + "/v1/models", "GET", origin=f"http://localhost:{shared_kernel.port}").status == 200
        )

    def test_a_name_that_is_allowed_is_welcome_and_no_other(self, stage: Stage) -> None:
        kernel = stage.kernel("--allowed_host", "kuwa.school.test", "--allowed_host", "models.test")
        for name in ("kuwa.school.test", "models.test:9000"):
            assert ask(kernel.url + "/v1/models", "GET", host=name).status == 200
            assert ask(kernel.url + "/v1/models", "GET", origin=f"https://{name}").status == 200
        assert ask(kernel.url + "/v1/models", "GET", host="other.school.test").status == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])  # noqa: S104 - the very addresses that are refused
def test_listening_beyond_loopback_without_keys_is_refused(stage: Stage, host: str) -> None:
    argv = [sys.executable, "-m", "kuwa.kernel.cli", "--host", host, "--port", str(stage.port())]
    process = stage.process(argv, name="kernel")
    assert process.wait(30) > 0
    assert host in process.log
    assert "--insecure_no_auth" in process.log


FOREIGN_ENDPOINTS = [
    "http://10.0.0.99:8080/chat",
    "http://169.254.169.254/latest/meta-data",
    "http://evil.test/chat",
    "http://localhost.evil.test/chat",
    "http://127.0.0.1.evil.test/chat",
    "http://127.0.0.1@evil.test/chat",
    "http://evil.test#@127.0.0.1/chat",
    "http://evil.test\\@127.0.0.1/chat",
    "http://[::ffff:10.0.0.1]/chat",
    "http://2130706433@10.0.0.1/chat",
    "http://0.0.0.0:80/chat",
    "//10.0.0.99/chat",
    "file:///etc/passwd",
    "gopher://127.0.0.1:70/",
    "unix:///var/run/docker.sock",
    "ftp://127.0.0.1/chat",
]


class TestEndpoints:
    @pytest.mark.parametrize("endpoint", FOREIGN_ENDPOINTS)
    def test_an_endpoint_on_another_host_is_refused(self, shared_kernel: Kernel, endpoint: str) -> None:
        answer = post_form(shared_kernel.url + "/v1.0/worker/register", {"name": "evil", "endpoint": endpoint})
        assert answer.status in {400, 403}, answer
        assert "evil" not in shared_kernel.served()

    @pytest.mark.parametrize("endpoint", FOREIGN_ENDPOINTS)
    @pytest.mark.parametrize("dialect", ["openai", "v1.0"])
    def test_so_it_is_in_a_lease(self, shared_kernel: Kernel, endpoint: str, dialect: str) -> None:
        mine = "http://127.0.0.1:1/chat"
        registration = {
            "executor_id": "evil",
            "incarnation": 1,
            "access_codes": ["evil"],
            "dialects": {"openai": "http://127.0.0.1:1/v1", "v1.0": mine, dialect: endpoint},
        }
        fields = {"name": "evil", "endpoint": mine, "kuwa": json.dumps(registration)}
        answer = post_form(shared_kernel.url + "/v1.0/worker/register", fields, {"accept": "application/json"})
        assert answer.status in {400, 403}, answer
        assert "evil" not in shared_kernel.served()

    def test_one_that_is_allowed_by_option_is_taken(self, stage: Stage) -> None:
        kernel = stage.kernel("--allowed_executor", "10.0.0.99")
        fields = {"name": "far", "endpoint": "http://10.0.0.99:8080/chat"}
        assert post_form(kernel.url + "/v1.0/worker/register", fields).text == "Success"
        assert post_form(kernel.url + "/v1.0/worker/unregister", fields).text == "Success"


class TestTheHolesOfTheOldKernel:
    @pytest.mark.parametrize(
        "payload",
        [
            "__import__('os').system('touch CANARY')",
            "[__import__('pathlib').Path('CANARY').touch()]",
            "[open('CANARY','w').close() or 1]",
            'exec(\'open("CANARY","w")\')',
            "(1, 2)",
            "1",
            "[1.5]",
            '["1"]',
            "[[1]]",
            "[1, 2",
            "null",
            "{}",
            "[True]",
            "[1]; import os",
            "[" * 100_000,
        ],
    )
    def test_an_abort_is_parsed_and_never_evaluated(self, shared_kernel: Kernel, tmp_path: Path, payload: str) -> None:
        canary = tmp_path / "canary"
        fields = {"history_id": payload.replace("CANARY", str(canary)), "user_id": "1"}
        answer = post_form(shared_kernel.url + "/v1.0/chat/abort", fields)
        assert answer.status == 400, answer
        assert not canary.exists()

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
    def test_the_debug_page_cannot_be_written(self, shared_kernel: Kernel, method: str) -> None:
        before = shared_kernel.served()
        data = {"evil": [["http://169.254.169.254/", "READY", -1, -1]]}
        for body, kind in (
            ("data=" + json.dumps(data), "application/x-www-form-urlencoded"),
            (json.dumps(data), "application/json"),
        ):
            answer = fetch(shared_kernel.url + "/v1.0/worker/debug", method, body, {"content-type": kind})
            assert answer.status == 405, answer
            assert "cannot be written" in answer.text or method != "POST"
        assert shared_kernel.served().keys() == before.keys()

    def test_a_pickled_registry_is_never_loaded(self, stage: Stage) -> None:
        """The old kernel kept `records.pickle` where it was started; whoever could write it, ran code."""
        records = stage.folder / "records.pickle"
        records.write_bytes(b"cos\nsystem\n(S'touch " + str(stage.folder / "canary").encode() + b"'\ntR.")
        kernel = stage.kernel(cwd=stage.folder)
        assert kernel.codes() == []
        assert not (stage.folder / "canary").exists()


INJECTIONS = [
    "<script>alert(1)</script>",
    "</textarea><script>alert(1)</script>",
    "</pre></script><img/src=x/onerror=alert(1)>",
    '"><svg/onload=alert(1)>',
    "'onmouseover='alert(1)",
    "<iframe/src=javascript:alert(1)>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "{{7*7}}${7*7}",
    "javascript:alert(1)",
    "<!--",
    "]]>",
]


class Page(HTMLParser):
    """What a browser would make of a page: its elements, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes.update(name for name, _ in attrs)
        self.links += [value or "" for name, value in attrs if name in {"href", "src", "action"}]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def injected(shared_stage: Stage) -> Iterator[Kernel]:
    """A kernel at which everything that an executor may say of itself is an injection."""
    kernel = shared_stage.kernel()
    for number, name in enumerate(INJECTIONS):
        port = 20_000 + number
        old = {"name": name, "endpoint": f"http://127.0.0.1:{port}/chat/{name.replace('#', '').replace('?', '')}"}
        answer = post_form(kernel.url + "/v1.0/worker/register", {**old, "name": name})
        assert answer.status in {200, 400}
        registration = {
            "executor_id": name,
            "incarnation": 1,
            "access_codes": [name],
            "dialects": {"openai": f"http://127.0.0.1:{port + 1000}/v1"},
            "executor": name,
            "version": name,
            "load": {"progress": name},
        }
        fields = {
            "name": name,
            "endpoint": f"http://127.0.0.1:{port + 1000}/chat",
            "kuwa": json.dumps(registration),
        }
        answer = post_form(kernel.url + "/v1.0/worker/register", fields, {"accept": "application/json"})
        assert answer.status in {200, 400}, answer
    assert set(INJECTIONS) <= set(kernel.served())
    return kernel


class TestPages:
    @pytest.mark.parametrize("path", ["/", "/v1.0/worker/debug"])
    def test_nothing_that_an_executor_says_becomes_part_of_a_page(self, injected: Kernel, path: str) -> None:
        answer = injected.get(path, accept="text/html,*/*;q=0.8")
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("text/html")
        page = Page(answer.text)
        assert not page.elements & {"script", "img", "iframe", "object", "embed", "form", "textarea", "base"}
        assert answer.text.count("<svg") == (path == "/")  # the page's own picture, drawn in its head
        assert not {name for name in page.attributes if name.startswith("on")}
        assert not [link for link in page.links if link.lower().startswith("javascript")]
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe-inline" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"

    def test_people_still_read_the_names_as_they_are(self, injected: Kernel) -> None:
        text = Page(injected.get("/v1.0/worker/debug", accept="text/html").text).text
        for name in INJECTIONS:
            assert name in text or json.dumps(name)[1:-1] in text

    def test_json_is_served_as_json_so_no_browser_reads_it_as_a_page(self, injected: Kernel) -> None:
        for path in ("/v1/models", "/v1.0/worker/list"):
            assert injected.get(path).headers["content-type"].startswith("application/json")

    def test_an_error_that_repeats_what_was_sent_is_no_page_either(self, injected: Kernel) -> None:
        for path in ("/<script>alert(2)</script>", "/v1/models/<script>alert(2)</script>"):
            answer = injected.get(path, accept="text/html")
            assert answer.status == 404
            assert not answer.headers["content-type"].startswith("text/html") or "<script" not in answer.text


class TestWhatTravels:
    @pytest.fixture
    def far(self, stage: Stage) -> str:
        """The URL of a server elsewhere that writes down what it is sent."""
        argv = [sys.executable, str(REPOSITORY / "tests" / "fakes" / "openai_server.py"), "--port", str(stage.port())]
        server = stage.process(argv, name="openai_server")
        return server.wait_for(lambda: server.log.partition("\n")[0], "it said its URL")

    def recorded(self, far: str) -> list[dict[str, object]]:
        answer = fetch(far.removesuffix("/v1") + "/recorded").json()
        return [request for request in answer if request["path"].endswith("/chat/completions")]

    def test_a_clients_own_headers_stay_here(self, stage: Stage, far: str) -> None:
        kernel = stage.kernel("--upstream", f"far={far}#fake-1", KUWA_UPSTREAM_KEY_FAR="sk-of-the-kernel")
        until(lambda: kernel.ready("far"), "it was ready")
        secret = {"authorization": "Bearer sk-of-the-client", "cookie": "session=1", "x-forwarded-for": "10.9.8.7"}
        assert chat(kernel.url, "far", "hi", secret).status == 200
        (request,) = self.recorded(far)
        sent = {str(name).lower(): str(value) for name, value in dict(request["headers"]).items()}
        assert sent["authorization"] == "Bearer sk-of-the-kernel"
        assert not {"cookie", "x-forwarded-for"} & set(sent)
        assert "sk-of" not in kernel.process.log

    def test_an_upstream_is_a_model_like_any_other(self, stage: Stage, far: str) -> None:
        kernel = stage.kernel("--upstream", f"org/far={far}#fake-1")
        until(lambda: kernel.ready("org/far"), "it was ready")
        assert kernel.codes() == ["org/far"]
        assert chat_text(kernel.url, "org/far", "hi 你好") == "hi 你好"
        (request,) = self.recorded(far)
        assert dict(request["body"])["model"] == "fake-1"
