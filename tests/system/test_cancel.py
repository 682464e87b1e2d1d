"""A client that goes away: its slot is free at once, and what it no longer waits for never starts."""

from __future__ import annotations

import signal
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from calls import Stream, chat, fetch, old_abort, old_chat, open_chat, stream_chat
from processes import REPOSITORY, Kernel, Stage, metric, until

FREE_S = 0.100
LONG = " ".join(f"word{index}" for index in range(2000))
LEDGER = str(REPOSITORY / "tests" / "fakes" / "may_2024_executor.py")


@pytest.fixture(scope="module")
def front(shared_stage: Stage, shared_kernel: Kernel) -> Kernel:
    shared_stage.executor("debug", "--delay", "0.02", "--concurrency", "4", kernel=shared_kernel)
    return shared_kernel


def streaming(url: str) -> Stream:
    stream = stream_chat(url, "debug", LONG)
    stream.first_text()
    return stream


def just_sent(url: str) -> Stream:
    return stream_chat(url, "debug", LONG)


def whole(url: str) -> Stream:
    return open_chat(url, "debug", LONG)


def old(url: str) -> Stream:
    stream = old_chat(url, "debug", LONG)
    next(stream.pieces())
    return stream


@pytest.mark.parametrize("begin", [streaming, just_sent, whole, old], ids=lambda begin: begin.__name__)
def test_a_closed_connection_frees_its_slot_within_100_ms(front: Kernel, begin: Callable[[str], Stream]) -> None:
    """Median of 5, since what is measured holds a request to the status page and this machine's other work."""
    times: list[float] = []
    for _ in range(5):
        stream = begin(front.url)
        until(lambda: front.running("debug") == 1, "it held a slot", every_s=0.001)
        stream.close()
        until(lambda: front.idle("debug"), "the slot was freed", timeout_s=5, every_s=0.001)
        times.append(time.monotonic() - stream.closed_at)
    sys.stdout.write(f"{begin.__name__}: slot free after {[round(t * 1000) for t in times]} ms\n")
    assert statistics.median(times) <= FREE_S


def test_the_executor_itself_stops_too(front: Kernel) -> None:
    (origin,) = front.origins("debug")

    def executor_is(state: str) -> bool:
        figures = fetch(origin + "/metrics").text
        return metric(figures, "executor_framework_state", executor_framework_state=state) == 1

    with stream_chat(front.url, "debug", LONG) as stream:
        stream.first_text()
        until(lambda: executor_is("busy"), "the executor was busy")
    until(lambda: executor_is("idle"), "the executor was idle again", timeout_s=1)


def test_v1_0_abort_frees_the_slot_within_100_ms(front: Kernel) -> None:
    times: list[float] = []
    for history in range(-5, 0):
        with old_chat(front.url, "debug", LONG, history_id=str(history)) as stream:
            next(stream.pieces())
            started = time.monotonic()
            assert old_abort(front.url, history).text == "Success"
            until(lambda: front.idle("debug"), "the slot was freed", timeout_s=5, every_s=0.001)
            times.append(time.monotonic() - started)
            stream.read()
    assert statistics.median(times) <= FREE_S, times


def test_v1_0_abort_stops_only_what_its_user_names(front: Kernel) -> None:
    with ExitStack() as open_streams:
        mine = open_streams.enter_context(old_chat(front.url, "debug", LONG, history_id="-1", user_id="1"))
        other_history = open_streams.enter_context(old_chat(front.url, "debug", LONG, history_id="-2", user_id="1"))
        other_user = open_streams.enter_context(old_chat(front.url, "debug", LONG, history_id="-1", user_id="2"))
        for stream in (mine, other_history, other_user):
            next(stream.pieces())
        assert old_abort(front.url, -1, -17, user_id="1").text == "Success"
        mine.read()
        until(lambda: front.running("debug") == 2, "one of three was freed")
        for stream in (other_history, other_user):
            assert next(stream.pieces())
    until(lambda: front.idle("debug"), "all slots were freed")


class TestQueue:
    """One slot, one request in it, and others that wait."""

    @pytest.fixture
    def ledger(self, stage: Stage, kernel: Kernel) -> Callable[[], list[str]]:
        path = stage.folder / "ledger"
        stage.executor(LEDGER, "--ledger", str(path), "--pause", "0.05", kernel=kernel)
        return lambda: path.read_text().split() if path.exists() else []

    def waiting(self, kernel: Kernel) -> float:
        return kernel.metric("kuwa_queue_depth", access_code="parrot")

    @pytest.mark.parametrize("kind", ["stream", "whole", "old"])
    def test_a_queued_request_that_is_given_up_never_starts(
        self, kernel: Kernel, ledger: Callable[[], list[str]], kind: str
    ) -> None:
        begin = {"stream": stream_chat, "whole": open_chat, "old": old_chat}[kind]
        with stream_chat(kernel.url, "parrot", LONG) as first:
            first.first_text()
            given_up = [begin(kernel.url, "parrot", f"never {index}") for index in range(3)]
            until(lambda: self.waiting(kernel) == 3, "three waited")
            for stream in given_up:
                stream.close()
            until(lambda: self.waiting(kernel) == 0, "none waited any more", timeout_s=1)
        with stream_chat(kernel.url, "parrot", "last") as last:
            assert last.text() == "Squawk! last"
        assert ledger().count("started") == 2

    def test_v1_0_abort_takes_a_queued_request_out(self, kernel: Kernel, ledger: Callable[[], list[str]]) -> None:
        with stream_chat(kernel.url, "parrot", LONG) as first:
            first.first_text()
            with old_chat(kernel.url, "parrot", "never", history_id="-4") as queued:
                until(lambda: self.waiting(kernel) == 1, "it waited")
                assert old_abort(kernel.url, -4).text == "Success"
                queued.read()
            until(lambda: self.waiting(kernel) == 0, "none waited any more", timeout_s=1)
        until(lambda: kernel.idle("parrot"), "the slot was freed")
        assert ledger().count("started") == 1

    def test_those_that_still_wait_are_served_in_turn(self, kernel: Kernel, ledger: Callable[[], list[str]]) -> None:
        first = stream_chat(kernel.url, "parrot", LONG)
        first.first_text()
        queued = [stream_chat(kernel.url, "parrot", f"number {index}") for index in range(4)]
        until(lambda: self.waiting(kernel) == 4, "four waited")
        queued.pop(1).close()
        first.close()
        texts = []
        for stream in queued:
            texts.append(stream.text())
            stream.close()
        assert texts == ["Squawk! number 0", "Squawk! number 2", "Squawk! number 3"]
        assert ledger().count("started") == 4


def test_two_hundred_cancels_leave_no_slot_held(front: Kernel) -> None:
    for _ in range(25):
        streams = [begin(front.url) for begin in (just_sent, whole, just_sent, whole, just_sent, whole, whole, whole)]
        for stream in streams:
            stream.close()
    until(lambda: front.idle("debug"), "all slots were freed")
    assert front.metric("kuwa_queue_depth", access_code="debug") == 0
    assert front.metric("kuwa_slots", state="used") == 0


def test_what_a_cut_request_cost_is_counted_once_although_its_client_never_heard(front: Kernel) -> None:
    def completion_tokens() -> float:
        return front.metric("kuwa_tokens_total", access_code="debug", kind="completion")

    until(lambda: front.idle("debug"), "nothing else was under way")
    told = chat(front.url, "debug", "three short words").json()["usage"]["completion_tokens"]
    before = completion_tokens()
    with stream_chat(front.url, "debug", LONG) as stream:
        stream.first_text()
    until(lambda: completion_tokens() > before, "the executor's renewal said what it cost")
    cut = completion_tokens() - before
    assert 0 < cut < len(LONG)
    assert chat(front.url, "debug", "three short words").json()["usage"]["completion_tokens"] == told
    until(lambda: completion_tokens() == before + cut + told, "and the whole answer was counted by its own usage")


@pytest.mark.parametrize("through", ["kernel", "executor"])
def test_an_abort_at_the_executor_ends_a_stream_with_an_error(front: Kernel, through: str) -> None:
    """The text so far, with an ordinary end, would look like the whole answer."""
    (origin,) = front.origins("debug")
    with stream_chat(front.url if through == "kernel" else origin, "debug", LONG) as stream:
        stream.first_text()
        assert fetch(origin + "/chat/abort").json()["msg"] == "Aborted"
        events = list(stream.events())
    assert events[-1]["error"]["code"] == "request_cancelled"
    assert not any(choice["finish_reason"] for event in events[:-1] for choice in event["choices"])


def test_an_abort_at_the_executor_ends_a_whole_answer_with_an_error(front: Kernel) -> None:
    (origin,) = front.origins("debug")
    with open_chat(front.url, "debug", LONG) as answer:
        until(lambda: front.running("debug") == 1, "it held a slot")
        until(lambda: fetch(origin + "/chat/abort").json()["msg"] == "Aborted", "it was computed and aborted")
        assert answer.status == 400
        assert b"request_cancelled" in answer.read()


def test_a_stream_that_its_executor_cuts_while_it_leaves_is_resumed_by_another_one(stage: Stage) -> None:
    kernel = stage.kernel()
    executors = [stage.executor("debug", "--delay", "0.02", "--concurrency", "1", kernel=kernel) for _ in range(2)]
    until(lambda: kernel.ready("debug", replicas=2), "both were ready")
    said = " ".join(f"w{index}" for index in range(80))
    with stream_chat(kernel.url, "debug", said) as stream:
        text = stream.first_text()
        (busy,) = [one for one in kernel.replicas("debug") if one["running"]]
        (leaving,) = [one for one in executors if one.url in busy["endpoint"]]
        leaving.process.send(signal.SIGTERM)
        until(lambda: "leaving: 1 requests" in leaving.process.log, "it was leaving")
        leaving.process.send(signal.SIGINT)
        assert text + stream.text() == said
    assert leaving.process.wait(30) == 1
