"""The routes that are no hot path, asked as the server asks them: by ASGI, without a socket."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shlex
from typing import Any
from urllib.parse import urlencode

import pytest

from calls import Answer
from kuwa.kernel.app import Kernel, application, routes
from kuwa.kernel.health import settle
from kuwa.kernel.queue import Ticket
from kuwa.kernel.settings import Settings, Upstream
from kuwa.wire import lease

pytestmark = pytest.mark.anyio

OLD = "http://127.0.0.1:5001/chat"


class Front:
    """A kernel that is not served, and its routes."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.kernel = Kernel(settings or Settings())
        self.app = application(routes(self.kernel)[1])

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        peer: str = "127.0.0.1",
        accept: str = "*/*",
        accept_language: str = "",
        host: str = "localhost:9000",
    ) -> Answer:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [
                (b"host", host.encode()),
                (b"accept", accept.encode()),
                (b"accept-language", accept_language.encode()),
            ],
            "client": (peer, 40000),
            "server": ("127.0.0.1", 9000),
        }
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        headers = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
        return Answer(sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:]))

    async def get(self, path: str, **options: Any) -> Answer:
        return await self.ask("GET", path, **options)

    async def post(self, path: str, *, peer: str = "127.0.0.1", accept: str = "*/*", **fields: str) -> Answer:
        return await self.ask("POST", path, urlencode(fields).encode(), peer=peer, accept=accept)

    async def register(self, *codes: str, accept: str = "application/json", **fields: Any) -> Answer:
        return await self.post(
            "/v1.0/worker/register",
            name=(codes or ("m",))[0],
            endpoint="http://127.0.0.1:4001/chat",
            kuwa=lease.encode(registration(*codes, **fields)).decode(),
            accept=accept,
        )

    async def report(self) -> Any:
        return (await self.get("/v1.0/worker/debug", accept="application/json")).json()


def registration(*codes: str, **fields: Any) -> lease.Registration:
    whole: dict[str, Any] = {
        "executor_id": "a",
        "incarnation": 5,
        "access_codes": list(codes or ("m",)),
        "dialects": lease.Dialects(openai="http://127.0.0.1:4001/v1", v1_0="http://127.0.0.1:4001/chat"),
        "concurrency": 2,
        **fields,
    }
    return lease.Registration(**whole)


@pytest.fixture
def front() -> Front:
    return Front()


class TestRegistering:
    async def test_one_of_ours_gets_a_lease(self, front: Front) -> None:
        answer = await front.register()
        assert answer.status == 200
        granted = lease.decode_lease(answer.body)
        assert granted is not None
        assert (granted.ttl_s, granted.renew_s) == (6.0, 2.0)
        assert granted.kernel.startswith("kuwa ")
        assert await front.register() == answer

    async def test_one_of_ours_that_reads_no_json_gets_a_word(self, front: Front) -> None:
        assert (await front.register(accept="*/*")).text == "Success"

    async def test_one_of_the_old_wire_gets_a_word_as_often_as_it_asks(self, front: Front) -> None:
        for _ in range(2):
            answer = await front.post("/v1.0/worker/register", name="m", endpoint=OLD + "/")
            assert (answer.status, answer.text) == (200, "Success")
        (replica,) = front.kernel.registry.replicas("m")
        assert (replica.endpoint, replica.state) == (OLD, "starting")

    @pytest.mark.parametrize(
        ("fields", "status"),
        [
            ({"name": "m"}, 400),
            ({"endpoint": OLD}, 400),
            ({"name": "a b", "endpoint": OLD}, 400),
            ({"name": "m", "endpoint": "http://example.test/chat"}, 403),
            ({"name": "m", "endpoint": "file:///etc/passwd"}, 400),
            ({"name": "m", "endpoint": OLD, "kuwa": "{"}, 400),
            ({"name": "m", "endpoint": OLD, "kuwa": "[" * 100_000}, 400),
        ],
    )
    async def test_what_is_wrong_is_said_in_text_and_with_a_real_status(
        self, front: Front, fields: dict[str, str], status: int
    ) -> None:
        answer = await front.post("/v1.0/worker/register", **fields)
        assert answer.status == status
        assert answer.text.startswith("Failed: ")
        assert front.kernel.registry.all_replicas() == []

    async def test_who_asks_for_json_gets_errors_in_the_openai_shape(self, front: Front) -> None:
        answer = await front.register("bot/x")
        assert (answer.status, answer.code) == (400, "invalid_request_error")

    async def test_an_older_process_is_refused(self, front: Front) -> None:
        await front.register()
        answer = await front.register(incarnation=4)
        assert answer.status == 400
        assert "newer process" in answer.text

    async def test_a_process_of_a_far_future_is_refused_and_the_one_that_lives_stays(self, front: Front) -> None:
        await front.register()
        answer = await front.register(incarnation=2**62)
        assert (answer.status, answer.code) == (400, "invalid_request_error")
        assert "clock" in answer.text
        assert (await front.register()).status == 200
        assert [replica["id"] for replica in (await front.report())["replicas"]] == ["a.5"]

    async def test_an_id_that_lives_at_one_machine_is_not_taken_over_from_another(self, front: Front) -> None:
        async def register(host: str, incarnation: int) -> Answer:
            message = registration(
                incarnation=incarnation, dialects=lease.Dialects(openai=f"http://{host}:4001/v1"), executor_id="exe_x"
            )
            endpoint, kuwa = f"http://{host}:4001/chat", lease.encode(message).decode()
            path = "/v1.0/worker/register"
            return await front.post(path, name="m", endpoint=endpoint, kuwa=kuwa, peer=host, accept="application/json")

        assert (await register("198.51.100.20", 6)).status == 200
        stranger = await register("198.51.100.21", 60)
        assert (stranger.status, stranger.code) == (400, "invalid_request_error")
        assert "lives" in stranger.text
        assert (await register("198.51.100.20", 6)).status == 200, "the one that lives renews"
        assert (await register("198.51.100.20", 7)).status == 200, "and is taken over by its own next process"
        (replica,) = front.kernel.registry.replicas("m")
        assert replica.id == "exe_x.7"

    async def test_a_form_that_is_none_or_too_large_is_refused(self, front: Front) -> None:
        assert (await front.ask("POST", "/v1.0/worker/register", b"name=%f")).status == 400
        assert (await front.ask("POST", "/v1.0/worker/register", b"\xff")).status == 400
        assert (await front.ask("POST", "/v1.0/worker/register", b"x" * 1_100_000)).status == 413

    async def test_a_remote_executor_registers_its_own_address_only(self, front: Front) -> None:
        for host, status in (("192.0.2.7", 200), ("127.0.0.1", 403), ("192.0.2.8", 403)):
            answer = await front.post(
                "/v1.0/worker/register", name="m", endpoint=f"http://{host}:1/chat", peer="192.0.2.7"
            )
            assert answer.status == status, host

    async def test_leaving(self, front: Front) -> None:
        await front.register()
        answer = await front.post("/v1.0/worker/unregister", name="m", endpoint="http://127.0.0.1:4001/chat")
        assert (answer.status, answer.text) == (200, "Success")
        answer = await front.post("/v1.0/worker/unregister", name="m", endpoint="http://127.0.0.1:4001/chat")
        assert answer.status == 404
        assert answer.text.startswith("Failed: ")

    async def test_a_remote_client_cannot_unregister_what_runs_here(self, front: Front) -> None:
        await front.register()
        fields = {"name": "m", "endpoint": "http://127.0.0.1:4001/chat"}
        assert (await front.post("/v1.0/worker/unregister", peer="192.0.2.7", **fields)).status == 403
        assert front.kernel.registry.codes() == ["m"]

    async def test_registering_wakes_those_who_wait(self, front: Front) -> None:
        await front.register(concurrency=1)
        woken: list[str] = []
        for name in ("first", "second"):
            ticket = Ticket("m", "p", granted=lambda name=name: woken.append(name))
            front.kernel.dispatcher.acquire(ticket, 0.0)
        await front.register(concurrency=2)
        assert woken == ["second"]


class TestScheduling:
    async def test_ready_busy_and_nomachine(self, front: Front) -> None:
        await front.register(concurrency=1)

        async def schedule(name: str, history_id: str) -> str:
            answer = await front.post("/v1.0/worker/schedule", name=name, history_id=history_id, user_id="7")
            assert answer.status == 200
            return answer.text

        assert await schedule("m", "1") == "READY"
        assert await schedule("m", "1") == "READY"
        assert await schedule("m", "2") == "BUSY"
        assert await schedule("n", "1") == "NOMACHINE"
        assert (await front.report())["v1.0"] == {"m": [["http://127.0.0.1:4001/chat", "BUSY", 1, 7]]}

    async def test_a_missing_field_is_an_error(self, front: Front) -> None:
        answer = await front.post("/v1.0/worker/schedule", name="m", history_id="1")
        assert (answer.status, answer.text) == (400, "Failed: The form field 'user_id' is missing.")

    async def test_a_stopping_kernel_is_busy(self, front: Front) -> None:
        await front.register()
        front.kernel.chat.draining = True
        answer = await front.post("/v1.0/worker/schedule", name="m", history_id="1", user_id="7")
        assert answer.text == "BUSY"


class TestTheStatusPage:
    async def test_as_json_it_says_all_that_is_known(self, front: Front) -> None:
        await front.register("m", "n", load=lease.Load(running=1, tokens_per_s=12.5), context_length=4096)
        report = await front.report()
        (replica,) = report["replicas"]
        assert replica["access_codes"] == ["m", "n"]
        assert (replica["state"], replica["slots"], replica["running"]) == ("ready", 2, 0)
        assert replica["load"]["tokens_per_s"] == 12.5
        assert [model["access_code"] for model in report["models"]] == ["m", "n"]
        assert report["gone"] == []

    async def test_who_left_is_shown_for_a_while_among_the_gone(self, front: Front) -> None:
        await front.register()
        await front.post("/v1.0/worker/unregister", name="m", endpoint="http://127.0.0.1:4001/chat")
        report = await front.report()
        assert report["replicas"] == []
        assert [replica["state"] for replica in report["gone"]] == ["gone"]
        assert "Gone within the last minute" in (await front.get("/v1.0/worker/debug")).text

    async def test_an_upstream_has_no_limit(self) -> None:
        front = Front(Settings(upstreams=(Upstream("gpt", "http://127.0.0.1:1/v1", "gpt-4o", "canary"),)))
        (replica,) = front.kernel.registry.replicas("gpt")
        assert replica.authorization == b"Bearer canary"
        front.kernel.registry.health(replica, "ok", 1.0)
        settle(front.kernel.registry, front.kernel.dispatcher, 1.0)
        report = await front.get("/v1.0/worker/debug", accept="application/json")
        page = await front.get("/v1.0/worker/debug")
        assert report.json()["replicas"][0]["slots"] is None
        assert "0 / ∞" in page.text
        assert "canary" not in report.text + page.text

    async def test_nothing_that_was_registered_becomes_markup(self, front: Front) -> None:
        evil = "</pre><script>alert(1)</script>\"'&amp;"
        await front.register(evil, executor=evil, load=lease.Load(progress=evil))
        for path in ("/", "/v1.0/worker/debug"):
            page = await front.get(path)
            assert page.headers["content-type"].startswith("text/html")
            assert "<script" not in page.text
            assert html.escape(evil) in page.text
            policy = page.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'")
            assert "unsafe" not in policy

    async def test_the_old_kernels_json_is_in_the_page_as_it_is(self, front: Front) -> None:
        evil = "<b>&"
        await front.register(evil)
        page = await front.get("/v1.0/worker/debug")
        found = re.search(r"<pre>(.*?)</pre>", page.text, re.DOTALL)
        assert found is not None
        assert json.loads(found.group(1)) == {evil: [["http://127.0.0.1:4001/chat", "READY", -1, -1]]}

    async def test_it_cannot_be_written(self, front: Front) -> None:
        await front.register()
        answer = await front.post("/v1.0/worker/debug", data='{"m": [["http://evil.test/", "READY", -1, -1]]}')
        assert answer.status == 405
        assert "register" in answer.text
        assert [r.base_url for r in front.kernel.registry.all_replicas()] == ["http://127.0.0.1:4001/v1"]

    async def test_without_executors_it_says_how_to_start_one(self, front: Front) -> None:
        for path in ("/", "/v1.0/worker/debug"):
            assert "kuwa-executor debug" in (await front.get(path)).text


class TestModels:
    async def test_they_are_listed_in_both_dialects(self, front: Front) -> None:
        await front.register("org/model:7b", "m", context_length=4096)
        listed = (await front.get("/v1/models")).json()
        assert listed["object"] == "list"
        assert [model["id"] for model in listed["data"]] == ["m", "org/model:7b"]
        assert (await front.get("/v1.0/worker/list")).json() == ["m", "org/model:7b"]
        model = (await front.get("/v1/models/org/model:7b")).json()
        assert model == listed["data"][1]
        assert (model["object"], model["owned_by"], model["max_model_len"]) == ("model", "kuwa", 4096)
        assert abs(model["created"] - 1_700_000_000) < 2_000_000_000

    async def test_what_all_replicas_take_is_promised(self, front: Front) -> None:
        await front.register(context_length=4096)
        front.kernel.registry.register(
            registration(
                executor_id="b", dialects=lease.Dialects(openai="http://127.0.0.1:4002/v1"), context_length=2048
            ),
            0.0,
        )
        assert (await front.get("/v1/models/m")).json()["max_model_len"] == 2048

    async def test_an_unknown_one_is_not_found(self, front: Front) -> None:
        answer = await front.get("/v1/models/no/such")
        assert (answer.status, answer.code) == (404, "model_not_found")

    async def test_one_that_is_starting_is_not_listed_yet(self, front: Front) -> None:
        await front.register(state="starting")
        assert (await front.get("/v1/models")).json()["data"] == []
        assert (await front.get("/v1/models/m")).status == 404


def commands(page: Answer) -> list[str]:
    """The commands that stand on a page, as a person would copy them."""
    return [html.unescape(text) for text in re.findall(r"<pre>(.*?)</pre>", page.text, re.DOTALL)]


class TestTheFrontPage:
    async def test_its_curl_line_is_one_that_a_shell_reads(self, front: Front) -> None:
        await front.register("it's")
        words = shlex.split(commands(await front.get("/"))[0])
        assert words[:3] == ["curl", "-N", "http://localhost:9000/v1/chat/completions"]
        assert json.loads(words[-1])["model"] == "it's"

    async def test_it_shows_every_model_and_the_best_state_it_is_in(self, front: Front) -> None:
        await front.register("m", context_length=4096, executor="llamacpp", state="starting")
        page = await front.get("/")
        assert "llamacpp" in page.text
        assert 'class="state starting"' in page.text
        assert "4,096 tokens" in page.text
        assert not any("curl" in command for command in commands(page))
        dialects = lease.Dialects(openai="http://127.0.0.1:4002/v1")
        front.kernel.registry.register(registration("m", executor_id="b", dialects=dialects), 0.0)
        page = await front.get("/")
        assert 'class="state ready"' in page.text
        assert any("curl" in command for command in commands(page))

    async def test_what_does_not_chat_is_not_offered_for_a_chat(self, front: Front) -> None:
        await front.register("a-embedder", capabilities=["embeddings"])
        assert not any("curl" in command for command in commands(await front.get("/")))

    async def test_welcome_is_offered_first(self, front: Front) -> None:
        await front.register("a", "welcome")
        assert '"model": "welcome"' in commands(await front.get("/"))[0]

    async def test_commands_name_the_kernel_where_it_is_not_where_they_look(self, front: Front) -> None:
        await front.register()
        for host, option in (("127.0.0.1:9000", ""), ("box.example:9100", " --kernel_url http://box.example:9100/")):
            page = await front.get("/", host=host)
            assert f"kuwa chat m{option}" in commands(page)
            assert f"kuwa-executor ./my_executor.py --access_code mine{option}" in commands(page)

    @pytest.mark.parametrize(
        ("asked", "language"),
        [
            ("", "en"),
            ("zh-TW,zh;q=0.9,en;q=0.8", "zh-TW"),
            ("en-US,en;q=0.9,zh-TW;q=0.8", "en"),
            ("fr, zh-Hant;q=0.5", "zh-TW"),
            ("zh-TW;q=0", "en"),
            ("de;q=x,;;q=,zh;q=y", "en"),
        ],
    )
    async def test_it_speaks_the_language_that_the_browser_asks_for(
        self, front: Front, asked: str, language: str
    ) -> None:
        await front.register()
        page = await front.get("/", accept_language=asked)
        assert f'<html lang="{language}">' in page.text
        assert ("目前提供的模型" in page.text) == (language == "zh-TW")
        assert "accept-language" in page.headers["vary"]

    async def test_its_style_is_the_one_that_its_policy_allows(self, front: Front) -> None:
        page = await front.get("/")
        style = re.findall(r"<style>(.*?)</style>", page.text, re.DOTALL)[0]
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        assert f"style-src 'sha256-{digest}';" in page.headers["content-security-policy"]
        assert "style=" not in page.text

    async def test_its_links_lead_somewhere(self, front: Front) -> None:
        links = re.findall(r'href="([^"]+)"', (await front.get("/")).text)
        assert len(links) == 4
        for link in links:
            assert (await front.get(link)).status == 200


class TestTheRest:
    async def test_health(self, front: Front) -> None:
        for path in ("/health", "/livez", "/readyz"):
            assert (await front.get(path)).json()["status"] == "ok"

    async def test_a_stopping_kernel_is_alive_and_not_ready(self, front: Front) -> None:
        front.kernel.chat.draining = True
        assert (await front.get("/livez")).status == 200
        ready = await front.get("/readyz")
        assert (ready.status, ready.code) == (503, "draining")
        assert ready.headers["retry-after"]

    async def test_metrics(self, front: Front) -> None:
        answer = await front.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        assert 'kuwa_replicas{state="ready"} 0.0' in answer.text

    async def test_a_request_that_is_not_there(self, front: Front) -> None:
        answer = await front.get("/v1/requests/req_x")
        assert (answer.status, answer.code) == (404, "not_found")

    @pytest.mark.parametrize("path", ["/nowhere", "//", "/v1/nowhere", "/v1.0/nowhere", "/health/"])
    async def test_an_unknown_route_is_not_found_in_the_openai_shape(self, front: Front, path: str) -> None:
        for method in ("GET", "POST"):
            answer = await front.ask(method, path)
            assert (answer.status, answer.code) == (404, "not_found")

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/v1/chat/completions"),
            ("GET", "/v1.0/chat/abort"),
            ("PUT", "/v1.0/worker/register"),
            ("DELETE", "/v1/models"),
            ("POST", "/metrics"),
        ],
    )
    async def test_a_wrong_method_is_refused_in_the_openai_shape(self, front: Front, method: str, path: str) -> None:
        answer = await front.ask(method, path)
        assert (answer.status, answer.code) == (405, "method_not_allowed")
        assert answer.headers["allow"]

    async def test_every_page_is_to_be_had_by_head(self, front: Front) -> None:
        for path in ("/", "/health", "/v1/models", "/v1.0/worker/debug", "/metrics"):
            assert (await front.ask("HEAD", path)).status == 200
