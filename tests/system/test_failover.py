"""When an executor dies: what has not begun goes to another, what has begun ends with a typed error, never
silently.
"""

from __future__ import annotations

import json
import time

import pytest

from calls import DONE, chat, chat_text, old_chat, open_chat, post_form, stream_chat
from processes import REPOSITORY, Executor, Kernel, Stage, until

SLOW_TO_BEGIN = str(REPOSITORY / "tests" / "fakes" / "june_2024_executor.py")
LONG = " ".join(f"word{index}" for index in range(2000))
ERROR_TEXT = "Error occurred. Please consult support."


def stuck(stage: Stage, kernel: Kernel, code: str = "twin") -> Executor:
    """An executor that takes a request and says nothing for a minute."""
    return stage.executor(SLOW_TO_BEGIN, "--pause", "60", kernel=kernel, access_code=code)


class TestBeforeTheFirstContent:
    @pytest.mark.parametrize("how", ["stream", "whole", "old"])
    def test_another_replica_answers(self, stage: Stage, kernel: Kernel, how: str) -> None:
        first = stuck(stage, kernel)
        begin = {"stream": stream_chat, "whole": open_chat, "old": old_chat}[how]
        with begin(kernel.url, "twin", "hello") as stream:
            until(lambda: kernel.running("twin") == 1, "the first replica had it")
            stage.executor("debug", "--delay", "0", kernel=kernel, access_code="twin")
            first.process.kill()
            assert stream.status == 200
            if how == "stream":
                text = stream.text()
            elif how == "whole":
                text = json.loads(stream.read())["choices"][0]["message"]["content"]
            else:
                text = stream.read().decode()
        assert text == "hello"
        assert kernel.metric("kuwa_retries_total", access_code="twin") == 1

    def test_without_another_replica_it_is_a_typed_error_and_not_a_hanging_client(
        self, stage: Stage, kernel: Kernel
    ) -> None:
        first = stuck(stage, kernel)
        with open_chat(kernel.url, "twin", "hello") as request:
            until(lambda: kernel.running("twin") == 1, "the replica had it")
            first.process.kill()
            killed = time.monotonic()
            assert request.status in {502, 503}
            assert time.monotonic() - killed < 10
            assert json.loads(request.read())["error"]["code"] in {"upstream_lost", "bad_upstream", "no_replica"}
        until(lambda: kernel.idle("twin"), "the slot was freed")

    def test_an_old_replica_takes_over_from_a_new_one_and_the_other_way_round(
        self, stage: Stage, kernel: Kernel
    ) -> None:
        """`--version` and the rest alike: only the wire differs, and the client does not see which."""
        first = stuck(stage, kernel)
        with stream_chat(kernel.url, "twin", "hello") as stream:
            until(lambda: kernel.running("twin") == 1, "the first replica had it")
            alone = stage.executor("debug", "--delay", "0", kernel=None)
            register_old(kernel, "twin", alone)
            first.process.kill()
            assert stream.text() == "hello"


def register_old(kernel: Kernel, code: str, executor: Executor) -> None:
    """Register a running executor the way the old wire does: two fields and no lease."""
    fields = {"name": code, "endpoint": executor.url + "/chat"}
    assert post_form(kernel.url + "/v1.0/worker/register", fields).text == "Success"
    until(lambda: any(r["state"] == "ready" and "v1.0" in r["wire"] for r in kernel.replicas(code)), "it was ready")


class TestMidStream:
    def test_an_openai_client_gets_an_error_event_and_then_done(self, stage: Stage, kernel: Kernel) -> None:
        executor = stage.executor("debug", "--delay", "0.02", kernel=kernel)
        with stream_chat(kernel.url, "debug", LONG) as stream:
            stream.first_text()
            executor.process.kill()
            killed = time.monotonic()
            datas = list(stream.datas())
            assert time.monotonic() - killed < 2
        assert datas[-1] == DONE
        error = json.loads(datas[-2])["error"]
        assert error["code"] == "upstream_lost"
        assert error["message"]
        assert all(b'"error"' not in data for data in datas[:-2])
        until(lambda: kernel.idle("debug"), "the slot was freed")
        assert kernel.metric("kuwa_requests_total", access_code="debug", outcome="upstream_lost") == 1

    def test_a_client_of_the_old_wire_gets_the_text_it_knows(self, stage: Stage, kernel: Kernel) -> None:
        executor = stage.executor("debug", "--delay", "0.02", kernel=kernel)
        with old_chat(kernel.url, "debug", LONG) as stream:
            next(stream.pieces())
            executor.process.kill()
            assert ERROR_TEXT in stream.read().decode()

    def test_a_whole_answer_half_made_goes_to_another_replica(self, stage: Stage, kernel: Kernel) -> None:
        """Nothing of it has reached the client, so it may begin again."""
        first = stage.executor("debug", "--delay", "0.02", kernel=kernel, access_code="twin")
        with open_chat(kernel.url, "twin", " ".join(["word"] * 60)) as request:
            until(lambda: kernel.running("twin") == 1, "the first replica had it")
            stage.executor("debug", "--delay", "0", kernel=kernel, access_code="twin")
            first.process.kill()
            assert request.status == 200
            assert json.loads(request.read())["choices"][0]["message"]["content"].count("word") == 60

    def test_others_go_on_and_new_requests_go_to_the_living(self, stage: Stage, kernel: Kernel) -> None:
        dying, living = (
            stage.executor("debug", "--delay", "0.005", kernel=kernel, access_code="twin") for _ in range(2)
        )
        text = LONG[:1500]
        streams = [stream_chat(kernel.url, "twin", text) for _ in range(2)]
        firsts = [stream.first_text() for stream in streams]
        assert [replica["running"] for replica in kernel.replicas("twin")] == [1, 1]
        dying.process.kill()
        for first, stream in zip(firsts, streams, strict=True):
            assert first + stream.text() == text
            stream.close()
        assert kernel.metric("kuwa_resumes_total", outcome="resumed") == 1
        assert {chat_text(kernel.url, "twin", "hi") for _ in range(6)} == {"hi"}
        assert living.process.exit_code is None


class TestKernelRestart:
    def test_executors_rejoin_by_themselves(self, stage: Stage) -> None:
        kernel = stage.kernel()
        for code in ("one", "two"):
            stage.executor("debug", "--delay", "0", kernel=kernel, access_code=code)
        kernel.process.kill()
        again = stage.kernel(port=kernel.port)
        listening = time.monotonic()
        until(lambda: again.ready("one") and again.ready("two"), "both were back", timeout_s=10)
        assert time.monotonic() - listening < 6
        for code in ("one", "two"):
            assert chat_text(again.url, code, "hi") == "hi"

    def test_an_executor_whose_kernel_went_goes_on_with_what_it_was_doing_alone(self, stage: Stage) -> None:
        kernel = stage.kernel()
        executor = stage.executor("debug", "--delay", "0", kernel=kernel)
        kernel.process.kill()
        assert chat_text(executor.url, "debug", "hi") == "hi"
        assert executor.process.stop() == 0

    def test_a_kernel_that_is_told_to_end_lets_a_stream_finish(self, stage: Stage, kernel: Kernel) -> None:
        stage.executor("debug", "--delay", "0.01", kernel=kernel)
        text = " ".join(["word"] * 30)
        with stream_chat(kernel.url, "debug", text) as stream:
            first = stream.first_text()
            kernel.process.send(15)
            until(lambda: _refuses(kernel), "it took no more requests", timeout_s=5)
            assert first + stream.text() == text
        assert kernel.process.wait() == 0


def _refuses(kernel: Kernel) -> bool:
    try:
        return kernel.get("/readyz").status == 503
    except OSError:
        return True


def test_a_model_without_any_replica_left_is_named_in_the_error(stage: Stage, kernel: Kernel) -> None:
    executor = stage.executor("debug", kernel=kernel)
    executor.process.kill()
    until(lambda: not kernel.ready("debug"), "the kernel noticed", timeout_s=10)
    answer = chat(kernel.url, "debug", "hi")
    assert answer.status in {404, 503}
    assert "debug" in answer.error["message"]
    if answer.status == 503:
        assert int(answer.headers["retry-after"]) >= 1
