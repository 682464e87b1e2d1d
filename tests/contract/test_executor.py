"""What every executor does: one test for each promise. `conftest.py` says how to run it on your own."""

from __future__ import annotations

import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from calls import (
    DONE,
    chat,
    chat_text,
    fetch,
    old_abort,
    old_chat,
    old_form,
    post_form,
    post_json,
    send_raw,
    stream_chat,
)
from contract.subjects import QUESTION, House, Subject
from processes import Stage, listens, until

SLOT_FREE_S = 5.0
MANY = 64  # an executor with more slots than this is not filled up


class TestRegistration:
    def test_it_is_listed_in_both_dialects_and_on_its_own_port(self, house: House) -> None:
        answer = house.kernel.get(f"/v1/models/{house.code}")
        assert Model.model_validate(answer.json(), strict=True).id == house.code
        assert house.code in house.kernel.codes()
        assert house.code in house.kernel.get("/v1.0/worker/list").json()
        assert house.code in [model["id"] for model in house.executor.get("/v1/models").json()["data"]]

    def test_the_kernel_knows_its_state_its_slots_and_where_it_answers(self, house: House) -> None:
        (replica,) = house.kernel.replicas(house.code)
        assert replica["state"] == "ready"
        assert replica["slots"] >= 1
        assert f":{house.executor.port}/" in replica["endpoint"] + "/"

    def test_it_is_healthy_and_tells_its_figures(self, house: House) -> None:
        health = house.executor.get("/health")
        assert (health.status, health.body) == (204, b"")
        figures = house.executor.get("/metrics").text
        assert "executor_framework_state" in figures
        assert f'executor_name="{house.code}"' in figures


class TestChat:
    def test_an_answer_is_one_that_the_openai_sdk_accepts(self, house: House) -> None:
        answer = house.chat()
        assert answer.status == 200, answer
        completion = ChatCompletion.model_validate_json(answer.body, strict=True)
        (choice,) = completion.choices
        assert completion.model == house.code
        assert choice.message.role == "assistant"
        assert choice.message.content
        assert choice.finish_reason in {"stop", "length"}

    def test_every_event_of_a_stream_is_one_that_the_openai_sdk_accepts(self, house: House) -> None:
        with house.stream() as stream:
            assert stream.status == 200
            assert (stream.header("content-type") or "").startswith("text/event-stream")
            events = list(stream.events())
        chunks = [ChatCompletionChunk.model_validate_json(json.dumps(event), strict=True) for event in events]
        assert len({(chunk.id, chunk.model, chunk.created) for chunk in chunks}) == 1
        assert chunks[0].choices[0].delta.role == "assistant"
        assert all(len(chunk.choices) == 1 for chunk in chunks)
        finishes = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason]
        assert finishes in (["stop"], ["length"])
        assert chunks[-1].choices[0].finish_reason
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    def test_a_stream_ends_with_done_and_nothing_after_it(self, house: House) -> None:
        with house.stream() as stream:
            datas = list(stream.datas())
        assert datas.count(DONE) == 1
        assert datas[-1] == DONE

    def test_a_streamed_answer_is_the_same_as_a_whole_one(self, house: House, repeatable: bool) -> None:
        with house.stream() as stream:
            text = stream.text()
        assert text == house.text() or not repeatable

    @pytest.mark.parametrize(
        "messages",
        [
            pytest.param([{"role": "user", "content": [{"type": "text", "text": QUESTION}]}], id="parts"),
            pytest.param(
                [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}], id="system"
            ),
            pytest.param(
                [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": QUESTION}],
                id="developer",
            ),
            pytest.param(
                [
                    {"role": "user", "content": "Hello."},
                    {"role": "assistant", "content": "Hello!"},
                    {"role": "user", "content": QUESTION},
                ],
                id="history",
            ),
        ],
    )
    def test_messages_come_in_every_ordinary_shape(self, house: House, messages: list[dict[str, object]]) -> None:
        body = {"model": house.code, "messages": messages}
        answer = post_json(house.kernel.url + "/v1/chat/completions", body)
        assert answer.status == 200, answer
        assert ChatCompletion.model_validate_json(answer.body, strict=True).choices[0].message.content

    def test_fields_that_nobody_knows_are_ignored(self, house: House) -> None:
        assert house.chat(x_unknown={"deep": [1, 2]}, user="somebody", metadata={"a": "b"}).status == 200

    def test_stop_sequences_end_the_answer_before_them(self, house: House, repeatable: bool) -> None:
        whole = house.text()
        stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
        answer = house.chat(stop=[stop]).json()["choices"][0]
        with house.stream(stop=[stop]) as stream:
            streamed = stream.text()
        assert stop not in answer["message"]["content"]
        assert stop not in streamed
        if repeatable:
            assert answer["message"]["content"] == streamed == whole[: whole.index(stop)]
            assert answer["finish_reason"] == "stop"

    @pytest.mark.parametrize(
        ("path", "body", "accepts"),
        [
            ("/v1/completions", {"prompt": QUESTION}, Completion),
            ("/v1/embeddings", {"input": QUESTION}, CreateEmbeddingResponse),
            ("/v1/rerank", {"query": "sea", "documents": ["a wave", "a hill"]}, None),
        ],
    )
    def test_the_other_routes_serve_or_say_that_they_are_not_supported(
        self, house: House, path: str, body: dict[str, object], accepts: type[Completion] | None
    ) -> None:
        answer = post_json(house.kernel.url + path, {"model": house.code, **body})
        if answer.status == 400:
            assert answer.error["code"] == "unsupported"
        elif accepts is not None:
            assert answer.status == 200, answer
            accepts.model_validate_json(answer.body, strict=True)
        else:
            assert {result["index"] for result in answer.json()["results"]} == {0, 1}
        (replica,) = house.kernel.replicas(house.code)
        assert (answer.status == 200) == (path.removeprefix("/v1/") in replica["capabilities"])


class TestUsage:
    def test_a_whole_answer_counts_its_tokens(self, house: House) -> None:
        usage = ChatCompletion.model_validate_json(house.chat().body, strict=True).usage
        assert usage is not None
        assert usage.prompt_tokens > 0
        assert usage.completion_tokens > 0
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens

    def test_a_stream_counts_them_in_one_event_of_its_own_when_asked(self, house: House) -> None:
        with house.stream(stream_options={"include_usage": True}) as stream:
            *chunks, last = stream.events()
        assert last["choices"] == []
        usage = last["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0
        assert all(not chunk.get("usage") for chunk in chunks)

    def test_a_stream_does_not_mention_them_when_not_asked(self, house: House) -> None:
        with house.stream() as stream:
            assert all(not event.get("usage") and event["choices"] for event in stream.events())


BAD_BODIES = {
    "no JSON": b"{",
    "an array": b"[]",
    "no messages": b'{"model": "MODEL"}',
    "messages that are no list": b'{"model": "MODEL", "messages": "hello"}',
    "no message at all": b'{"model": "MODEL", "messages": []}',
    "a message without a role": b'{"model": "MODEL", "messages": [{"content": "hello"}]}',
    "stream_options without stream": b'{"model": "MODEL", "messages": [{"role": "user", "content": "hi"}],'
    b' "stream_options": {"include_usage": true}}',
    "invalid UTF-8": b'{"model": "MODEL", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
}


class TestErrors:
    @pytest.mark.parametrize("bad", BAD_BODIES)
    @pytest.mark.parametrize("where", ["kernel", "executor"])
    def test_a_bad_body_is_a_400_in_the_openai_shape(self, house: House, where: str, bad: str) -> None:
        url = house.kernel.url if where == "kernel" else house.executor.url
        body = BAD_BODIES[bad].replace(b"MODEL", house.code.encode())
        answer = fetch(url + "/v1/chat/completions", "POST", body, {"content-type": "application/json"})
        assert answer.status == 400, answer
        assert answer.error["type"] == "invalid_request_error"

    def test_an_empty_form_is_refused_as_it_always_was(self, house: House) -> None:
        answer = fetch(house.endpoint, "POST", b"", {"content-type": "application/x-www-form-urlencoded"})
        assert (answer.status, answer.json()) == (400, {"msg": "Received empty request!"})

    def test_a_form_that_is_too_large_is_refused_in_the_words_of_its_wire(self, house: House) -> None:
        head = b"POST /chat HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 99999999999\r\nconnection: close\r\n\r\n"
        answer = send_raw(house.executor.port, head)
        status, _, body = answer.partition(b"\r\n\r\n")
        assert status.startswith(b"HTTP/1.1 413"), answer
        assert list(json.loads(body)) == ["msg"]

    def test_it_serves_on_after_all_of_that(self, house: House) -> None:
        for body in BAD_BODIES.values():
            fetch(house.executor.url + "/v1/chat/completions", "POST", body, {"content-type": "application/json"})
        assert house.text()


class TestCancel:
    """A client that goes away frees its slot, whatever its request was at; the next one is served."""

    def check(self, house: House) -> None:
        until(lambda: house.kernel.idle(house.code), "the slot was freed", timeout_s=SLOT_FREE_S)
        assert house.text()

    def test_while_it_streams(self, house: House) -> None:
        with house.stream() as stream:
            assert stream.first_text()
        self.check(house)

    def test_before_the_first_token(self, house: House) -> None:
        house.stream().close()
        self.check(house)

    def test_while_a_whole_answer_is_made(self, house: House) -> None:
        before = house.kernel.metric("kuwa_requests_total", access_code=house.code)
        with house.open():
            until(
                lambda: (
                    house.kernel.running(house.code)
                    or house.kernel.metric("kuwa_requests_total", access_code=house.code) > before
                ),
                "the request was taken",
                every_s=0.002,
            )
        self.check(house)

    def test_while_it_waits_at_the_kernel(self, house: House) -> None:
        busy = [house.stream() for _ in range(min(house.slots, MANY))]
        given_up = house.stream()
        given_up.close()
        for stream in busy:
            assert stream.text()
            stream.close()
        self.check(house)

    def test_a_hundred_times_over(self, house: House) -> None:
        for _ in range(25):
            streams = [house.stream() for _ in range(4)]
            for stream in streams:
                stream.close()
        self.check(house)


class TestConcurrency:
    def test_eight_clients_each_get_their_whole_answer(self, house: House, repeatable: bool) -> None:
        slots = house.slots
        most = 0

        def ask(index: int) -> str:
            if index % 2:
                return house.text()
            with house.stream() as stream:
                return stream.text()

        with ThreadPoolExecutor(8) as clients:
            answers = [clients.submit(ask, index) for index in range(8)]
            while not all(answer.done() for answer in answers):
                most = max(most, house.kernel.running(house.code))
                time.sleep(0.01)  # the pace of looking, not a wait for anything
        texts = {answer.result() for answer in answers}
        assert most <= slots
        assert all(texts)
        assert len(texts) == 1 or not repeatable
        until(lambda: house.kernel.idle(house.code), "all slots were freed")


class TestOldWire:
    def test_a_chat_is_the_raw_text(self, house: House, repeatable: bool) -> None:
        with house.old() as stream:
            assert stream.status == 200
            assert (stream.header("content-type") or "").startswith("text/plain")
            text = stream.read().decode()
        assert text
        assert text == house.text() or not repeatable

    def test_a_chat_may_be_scheduled_first(self, house: House) -> None:
        fields = old_form(house.code, QUESTION, history_id="-77")
        scheduled = post_form(house.kernel.url + "/v1.0/worker/schedule", fields)
        assert scheduled.text == "READY"
        assert post_form(house.kernel.url + "/v1.0/chat/completions", fields).text
        until(lambda: house.kernel.idle(house.code), "the reservation was used up")

    def test_it_answers_the_form_on_its_own_port(self, house: House, repeatable: bool) -> None:
        answer = post_form(house.endpoint, old_form(house.code, QUESTION))
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.text == house.text() or not repeatable

    def test_an_abort_at_the_kernel_ends_the_answer(self, house: House) -> None:
        with house.old(history_id="-5") as stream:
            next(stream.pieces())
            assert old_abort(house.kernel.url, -5).text == "Success"
            started = time.monotonic()
            stream.read()
            assert time.monotonic() - started < SLOT_FREE_S
        until(lambda: house.kernel.idle(house.code), "the slot was freed", timeout_s=SLOT_FREE_S)
        assert house.text()

    def test_an_abort_on_its_own_port_ends_whatever_runs(self, house: House) -> None:
        with old_chat(house.kernel.url, house.code, QUESTION) as stream:
            next(stream.pieces())
            answer = fetch(house.endpoint + "/abort")
            assert answer.status == 200
            assert answer.json()["msg"]
            stream.read()
        until(lambda: house.kernel.idle(house.code), "the slot was freed", timeout_s=SLOT_FREE_S)
        assert fetch(house.endpoint + "/abort").json() == {"msg": "No process to abort"}


class TestLife:
    def test_on_sigterm_it_ends_what_it_began_leaves_the_kernel_and_exits_cleanly(
        self, subject: Subject, stage: Stage
    ) -> None:
        kernel = stage.kernel()
        executor = subject.start(stage, kernel)
        with stream_chat(kernel.url, executor.access_code, QUESTION) as stream:
            first = stream.first_text()
            executor.process.send(signal.SIGTERM)
            text = first + stream.text()
        assert text
        assert executor.process.wait() == 0, executor.process.log
        until(lambda: executor.access_code not in kernel.codes(), "the kernel let go of it", timeout_s=3)
        assert chat(kernel.url, executor.access_code, QUESTION).status in {404, 503}
        assert not executor.process.family()
        assert not listens(executor.port)

    def test_with_ignore_kernel_it_never_contacts_one(self, subject: Subject, stage: Stage) -> None:
        with socket.create_server(("127.0.0.1", 0)) as nobody:
            nobody.settimeout(0)
            executor = Subject(
                subject.name,
                [*subject.argv, "--kernel_url", f"http://127.0.0.1:{nobody.getsockname()[1]}/"],
                subject.env,
            ).start(stage, None)
            assert chat_text(executor.url, executor.access_code, QUESTION)
            assert executor.process.stop() == 0, executor.process.log
            with pytest.raises(BlockingIOError):
                nobody.accept()

    def test_killed_and_started_again_on_its_port_it_is_back(self, subject: Subject, stage: Stage) -> None:
        kernel = stage.kernel()
        first = subject.start(stage, kernel)
        first.process.kill()
        until(lambda: not first.process.family(), "its children ended with it", timeout_s=10)
        again = stage.executor(
            subject.argv[0],
            *subject.argv[1:],
            kernel=kernel,
            access_code=first.access_code,
            port=first.port,
            **subject.env,
        )
        until(lambda: kernel.ready(first.access_code), "there is one replica, and it is ready")
        assert chat_text(kernel.url, again.access_code, QUESTION)
