"""Old and new together, for real: the old executor from PyPI on our kernel, ours on an old kernel, and executors
that were written for the interfaces of May and June 2024, unedited, on ours.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from calls import (
    Stream,
    chat,
    chat_text,
    fetch,
    old_abort,
    old_chat,
    old_form,
    open_chat,
    post_form,
    post_json,
    stream_chat,
)
from kuwa.wire.lease import RENEW_S
from processes import REPOSITORY, Executor, Kernel, Process, Stage, until

# Whichever test comes first makes the old command's virtual environment.
pytestmark = pytest.mark.timeout(400)

FAKES = REPOSITORY / "tests" / "fakes"
OLD_KUWA = "kuwa-executor==0.1.0"
# What the old package needs and no longer names itself since Python 3.12 came without it.
OLD_NEEDS = "setuptools<81"
TEXT = "Once upon a time 從前從前, there was a wire."
LONG = " ".join(f"word{index}" for index in range(200))


@pytest.fixture(scope="session")
def old_kuwa() -> Path:
    """The old `kuwa-executor` command, in a virtual environment of its own that is made once per machine."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = REPOSITORY / ".cache" / f"old-kuwa-{version}"
    folder.parent.mkdir(exist_ok=True)
    with (folder.parent / f"old-kuwa-{version}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=100)
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", OLD_NEEDS, OLD_KUWA]
            result = subprocess.run(pip, capture_output=True, text=True, timeout=300, check=False)
            if result.returncode:
                pytest.fail(
                    f"{OLD_KUWA} could not be installed from any package index that pip knows here; this test "
                    f"needs it once, to see old and new together. pip said:\n{result.stderr[-2000:]}"
                )
            (folder / "complete").touch()
    return folder / "bin" / "kuwa-executor"


class OldExecutors:
    """Starts the old command's executors at one kernel."""

    def __init__(self, stage: Stage, kernel: Kernel, command: Path) -> None:
        self.stage = stage
        self.kernel = kernel
        self._command = command

    def start(self, name: str, access_code: str, *flags: str, wait: bool = True) -> Executor:
        port = self.stage.port()
        argv = [str(self._command), name, "--host", "127.0.0.1", "--port", str(port)]
        argv += ["--kernel_url", self.kernel.url + "/", "--access_code", access_code, *flags]
        # Its own way of ending is not ours to judge.
        process = self.stage.process(argv, name=f"old-{name}", tolerates_tracebacks=True)
        executor = Executor(process, port, access_code)
        if wait:
            self.stage.wait_ready(executor, self.kernel)
        return executor


@pytest.fixture
def old(stage: Stage, kernel: Kernel, old_kuwa: Path) -> OldExecutors:
    return OldExecutors(stage, kernel, old_kuwa)


class TestOldExecutorOnOurKernel:
    def test_debug_and_dummy_chat_by_both_dialects(self, old: OldExecutors) -> None:
        url = old.kernel.url
        old.start("debug", "old-debug", "--delay", "0")
        old.start("dummy", "old-dummy", "--delay", "0")
        assert sorted(old.kernel.codes()) == ["old-debug", "old-dummy"]

        assert chat_text(url, "old-debug", TEXT) == TEXT
        with stream_chat(url, "old-debug", TEXT) as stream:
            assert stream.text() == TEXT
        with old_chat(url, "old-debug", TEXT) as stream:
            assert stream.read().decode() == TEXT
        fields = old_form("old-debug", TEXT, history_id="-9")
        assert post_form(url + "/v1.0/worker/schedule", fields).text == "READY"
        assert post_form(url + "/v1.0/chat/completions", fields).text == TEXT

        dummy = chat_text(url, "old-dummy", TEXT)
        assert dummy.count("<<<WARNING>>>") == 2
        with old_chat(url, "old-dummy", TEXT) as stream:
            assert stream.read().decode() == dummy

    def test_a_registration_without_host_is_taken_from_this_machine(
        self, stage: Stage, kernel: Kernel, old_kuwa: Path
    ) -> None:
        """As the tutorial has it: the old command then registers this machine's own name and address."""
        argv = [str(old_kuwa), "debug", "--kernel_url", kernel.url + "/", "--access_code", "plain", "--delay", "0"]
        stage.process(argv, name="old-debug", tolerates_tracebacks=True)
        until(lambda: kernel.ready("plain"), "it was ready", timeout_s=30)
        assert chat_text(kernel.url, "plain", TEXT) == TEXT

    def test_what_the_old_wire_cannot_carry_is_refused(self, old: OldExecutors) -> None:
        old.start("debug", "old", "--delay", "0")
        tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
        answers = [
            chat(old.kernel.url, "old", TEXT, tools=[tool]),
            post_json(
                old.kernel.url + "/v1/chat/completions",
                {"model": "old", "messages": [{"role": "user", "content": [image]}]},
            ),
        ]
        for answer in answers:
            assert (answer.status, answer.error["code"]) == (400, "unsupported")

    def test_two_replicas_work_at_once_and_a_third_request_waits(self, old: OldExecutors) -> None:
        text = LONG[:250]
        for _ in range(2):
            old.start("debug", "old", "--delay", "0.004")
        with ThreadPoolExecutor(3) as clients:
            answers = [clients.submit(chat_text, old.kernel.url, "old", text) for _ in range(3)]
            until(lambda: [r["running"] for r in old.kernel.replicas("old")] == [1, 1], "both replicas worked")
            until(lambda: old.kernel.metric("kuwa_queue_depth", access_code="old") == 1, "the third one waited")
            assert [answer.result() for answer in answers] == [text] * 3
        until(lambda: old.kernel.idle("old"), "all slots were freed")

    @pytest.mark.parametrize("how", ["closing the connection", "v1.0 abort", "closing a v1.0 connection"])
    def test_a_client_that_stops_stops_the_old_executor(self, old: OldExecutors, how: str) -> None:
        old.start("debug", "old", "--delay", "0.05")
        asked = time.monotonic()
        if how == "closing the connection":
            with stream_chat(old.kernel.url, "old", LONG) as stream:
                stream.first_text()
        else:
            with old_chat(old.kernel.url, "old", LONG, history_id="-3") as stream:
                next(stream.pieces())
                if how == "v1.0 abort":
                    assert old_abort(old.kernel.url, -3).text == "Success"
                    stream.read()
        until(lambda: old.kernel.idle("old"), "the slot was freed", timeout_s=3)
        assert chat_text(old.kernel.url, "old", "next") == "next"
        assert time.monotonic() - asked < 10, "the whole text would have taken over a minute"

    def test_kill_9_is_noticed_and_the_return_welcome(self, old: OldExecutors) -> None:
        executor = old.start("debug", "old", "--delay", "0.02")
        with stream_chat(old.kernel.url, "old", LONG) as stream:
            stream.first_text()
            executor.process.kill()
            *_, error = stream.events()
        assert error["error"]["code"] == "upstream_lost"
        until(lambda: not old.kernel.ready("old"), "the kernel noticed", timeout_s=10)
        assert chat(old.kernel.url, "old", TEXT).status in {404, 502, 503}

        argv = [*executor.process.argv]
        again = old.stage.process(argv, name="old-debug", tolerates_tracebacks=True)
        again.wait_for(lambda: old.kernel.ready("old"), "it is back on the same port")
        assert chat_text(old.kernel.url, "old", TEXT) == TEXT

    def test_kill_9_of_an_idle_one_is_noticed_too(self, old: OldExecutors) -> None:
        executor = old.start("debug", "old")
        executor.process.kill()
        until(lambda: not old.kernel.ready("old"), "the health poll noticed", timeout_s=15, every_s=0.1)

    def test_one_that_stood_still_until_it_was_given_up_serves_again(self, old: OldExecutors) -> None:
        executor = old.start("debug", "old", "--delay", "0")
        executor.process.send(signal.SIGSTOP)
        until(lambda: not old.kernel.replicas("old"), "it was given up", timeout_s=20)
        executor.process.send(signal.SIGCONT)
        until(lambda: old.kernel.ready("old"), "it was found to be back", timeout_s=10)
        assert chat_text(old.kernel.url, "old", TEXT) == TEXT

    def test_one_of_the_old_and_one_of_the_new_serve_the_same_model(self, old: OldExecutors) -> None:
        ancient = old.start("debug", "mixed", "--delay", "0")
        old.stage.executor("debug", "--delay", "0", kernel=old.kernel, access_code="mixed")
        assert old.kernel.ready("mixed", replicas=2)
        assert {chat_text(old.kernel.url, "mixed", TEXT) for _ in range(6)} == {TEXT}
        ancient.process.kill()
        assert {chat_text(old.kernel.url, "mixed", TEXT) for _ in range(6)} == {TEXT}


class OldKernel:
    """A running `fakes/old_kernel.py`. Its log holds a line for each call."""

    def __init__(self, stage: Stage) -> None:
        self.port = stage.port()
        argv = [sys.executable, str(FAKES / "old_kernel.py"), "--port", str(self.port)]
        self.process: Process = stage.process(argv, name="old-kernel")
        self.url = self.process.wait_for(lambda: self.process.log.partition("\n")[0], "it said its URL")

    def said(self, words: str) -> bool:
        return words in self.process.log

    def workers(self, name: str) -> list[list[object]]:
        page = fetch(self.url + "/v1.0/worker/debug").text
        return json.loads(page.partition("<textarea>")[2].partition("</textarea>")[0]).get(name, [])

    def start(self, stage: Stage, *flags: str, port: int = 0) -> Executor:
        """Our `debug`, registered here."""
        port = port or stage.port()
        argv = [sys.executable, "-m", "kuwa.executor.cli", "debug", "--host", "127.0.0.1", "--port", str(port)]
        process = stage.process([*argv, "--kernel_url", self.url + "/", *flags], name="debug")
        process.wait_for(lambda: self.workers("debug"), "it registered")
        executor = Executor(process, port, "debug")
        process.wait_for(lambda: _healthy(executor), "it answered")
        return executor


def _healthy(executor: Executor) -> bool:
    try:
        return executor.get("/health").status == 204
    except OSError:
        return False


@pytest.fixture
def old_kernel(stage: Stage) -> OldKernel:
    return OldKernel(stage)


class TestOurExecutorOnAnOldKernel:
    def test_it_registers_serves_and_unregisters(self, stage: Stage, old_kernel: OldKernel) -> None:
        executor = old_kernel.start(stage, "--delay", "0")
        assert fetch(old_kernel.url + "/v1.0/worker/list").json() == ["debug"]
        assert old_kernel.workers("debug") == [[f"http://127.0.0.1:{executor.port}/chat", "READY", -1, -1]]
        with old_chat(old_kernel.url, "debug", TEXT) as stream:
            assert stream.read().decode() == TEXT
        fields = old_form("debug", TEXT, history_id="-4")
        assert post_form(old_kernel.url + "/v1.0/worker/schedule", fields).text == "READY"
        assert post_form(old_kernel.url + "/v1.0/worker/schedule", fields).text == "BUSY"
        assert post_form(old_kernel.url + "/v1.0/chat/completions", fields).text == TEXT
        assert executor.process.stop() == 0
        assert fetch(old_kernel.url + "/v1.0/worker/list").json() == []

    def test_it_registers_once_and_does_not_renew_what_an_old_kernel_has_not_got(
        self, stage: Stage, old_kernel: OldKernel
    ) -> None:
        """The old kernel knows no leases: one registration, not one every two seconds that it calls a failure."""
        old_kernel.start(stage, "--delay", "0")
        two_renewals_later = time.monotonic() + 2 * RENEW_S + 0.5
        while time.monotonic() < two_renewals_later:
            assert post_form(old_kernel.url + "/v1.0/chat/completions", old_form("debug", TEXT)).text == TEXT
        assert old_kernel.process.log.count("register debug") == 1

    def test_it_is_aborted_by_one(self, stage: Stage, old_kernel: OldKernel) -> None:
        old_kernel.start(stage, "--delay", "0.05")
        with old_chat(old_kernel.url, "debug", LONG, history_id="-6") as stream:
            next(stream.pieces())
            started = time.monotonic()
            assert old_abort(old_kernel.url, -6).text == "Success"
            text = stream.read().decode()
            assert time.monotonic() - started < 3
        assert len(text) < len(LONG)
        assert old_kernel.said('{"msg":"Aborted"}') or old_kernel.said('{"msg": "Aborted"}')
        until(lambda: old_kernel.workers("debug")[0][1] == "READY", "the worker was freed")
        with old_chat(old_kernel.url, "debug", "next") as stream:
            assert stream.read().decode() == "next"

    def test_after_a_crash_it_gets_back_in_although_the_old_kernel_says_failed(
        self, stage: Stage, old_kernel: OldKernel
    ) -> None:
        first = old_kernel.start(stage, "--delay", "0")
        first.process.kill()
        old_kernel.start(stage, "--delay", "0", port=first.port)
        endpoint = f"http://127.0.0.1:{first.port}/chat"
        # The lines of the log: registered, refused, unregistered, registered.
        until(lambda: old_kernel.process.log.count(f"\nregister debug {endpoint} True") == 2, "it registered again")
        assert old_kernel.said(f"\nregister debug {endpoint} False")
        assert old_kernel.workers("debug") == [[endpoint, "READY", -1, -1]]
        with old_chat(old_kernel.url, "debug", TEXT) as stream:
            assert stream.read().decode() == TEXT


class Custom:
    """An executor of 2024 at our kernel, and the ledger in which it notes each request's fate."""

    def __init__(self, stage: Stage, kernel: Kernel, file: str, *flags: str) -> None:
        self.kernel = kernel
        self._ledger = stage.folder / f"{file}.ledger"
        self.executor = stage.executor(str(FAKES / file), "--ledger", str(self._ledger), *flags, kernel=kernel)
        self.code = self.executor.access_code

    def fates(self) -> list[str]:
        return self._ledger.read_text().split() if self._ledger.exists() else []

    def open(self, text: str, **parameters: object) -> Stream:
        return open_chat(self.kernel.url, self.code, text, **parameters)


MODELFILE = json.dumps(
    [
        {"name": "system", "args": "Speak softly."},
        {"name": "before-prompt", "args": "«"},
        {"name": "after-prompt", "args": "»"},
        {"name": "parameter", "args": "llm_temperature 0.25"},
        {"name": "message", "args": "user Hello?"},
    ]
)


class TestExecutorsOf2024:
    def test_may_chats_by_both_dialects(self, stage: Stage, kernel: Kernel) -> None:
        parrot = Custom(stage, kernel, "may_2024_executor.py", "--greeting", "Ahoy", "--log", "debug")
        assert parrot.code == "parrot"
        assert chat_text(kernel.url, "parrot", "one two") == "Ahoy! one two"
        with stream_chat(kernel.url, "parrot", "one two") as stream:
            assert stream.text() == "Ahoy! one two"
        with old_chat(kernel.url, "parrot", "one two", modelfile=MODELFILE) as stream:
            assert stream.read().decode() == "Ahoy! (Speak softly.) one two"
        assert parrot.fates() == ["started", "done", "closed"] * 3

    def test_may_is_given_the_system_prompt_of_an_openai_client(self, stage: Stage, kernel: Kernel) -> None:
        Custom(stage, kernel, "may_2024_executor.py")
        messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]
        answer = post_json(kernel.url + "/v1/chat/completions", {"model": "parrot", "messages": messages})
        assert answer.json()["choices"][0]["message"]["content"] == "Squawk! (Be kind.) hi"

    def test_june_chats_by_both_dialects(self, stage: Stage, kernel: Kernel) -> None:
        style = stage.folder / "style.yaml"
        style.write_text("mark: '*'\n")
        Custom(stage, kernel, "june_2024_executor.py", "--style", str(style))
        with old_chat(kernel.url, "scribe", "hi", modelfile=MODELFILE, user_id="42") as stream:
            assert stream.read().decode().splitlines() == [
                "* system: Speak softly.",
                "* examples: 1",
                "* wrapped: «hi»",
                "* temperature: 0.25",
                "* user: 42",
                "* turns: user",
            ]
        lines = chat_text(kernel.url, "scribe", "hi", temperature=0.5).splitlines()
        assert lines[2] == "* wrapped: hi"
        assert lines[3] == "* temperature: 0.5"

    @pytest.mark.parametrize("file", ["may_2024_executor.py", "june_2024_executor.py"])
    def test_started_by_python_itself_it_serves_as_well(self, stage: Stage, kernel: Kernel, file: str) -> None:
        argv = [sys.executable, str(FAKES / file), "--kernel_url", kernel.url + "/", "--access_code", "own"]
        process = stage.process(argv, name=file)
        process.wait_for(lambda: kernel.ready("own"), "it was ready")
        assert chat_text(kernel.url, "own", "hi")
        assert process.stop() == 0

    @pytest.mark.parametrize("how", ["an OpenAI stream is left", "an OpenAI chat is left", "v1.0 abort", "SIGKILL"])
    @pytest.mark.parametrize("file", ["may_2024_executor.py", "june_2024_executor.py"])
    def test_its_abort_is_called_and_its_iterator_closed(
        self, stage: Stage, kernel: Kernel, file: str, how: str
    ) -> None:
        custom = Custom(stage, kernel, file, "--pause", "0.2")
        if how == "SIGKILL":
            self.kill_a_client(stage, custom)
        elif how == "an OpenAI stream is left":
            with stream_chat(kernel.url, custom.code, LONG) as stream:
                stream.first_text()
        elif how == "an OpenAI chat is left":
            with custom.open(LONG):
                until(lambda: custom.fates() == ["started"], "it was started")
        else:
            with old_chat(kernel.url, custom.code, LONG, history_id="-8") as stream:
                next(stream.pieces())
                assert old_abort(kernel.url, -8).text == "Success"
                stream.read()
        until(lambda: set(custom.fates()) >= {"aborted", "closed"}, f"abort and close were noted: {custom.fates()}")
        assert custom.fates().count("aborted") == 1
        assert custom.fates().count("closed") == 1
        assert "done" not in custom.fates()
        until(lambda: kernel.idle(custom.code), "the slot was freed")

    def kill_a_client(self, stage: Stage, custom: Custom) -> None:
        """A client that is a process of its own, killed half way."""
        script = f"""
import sys; sys.path.insert(0, {str(REPOSITORY / "tests")!r})
from calls import stream_chat
stream = stream_chat({custom.kernel.url!r}, {custom.code!r}, {LONG!r})
print(stream.first_text(), flush=True)
stream.text()
"""
        client = stage.process([sys.executable, "-c", script], name="client")
        client.wait_for(lambda: client.log, "the client read some text")
        client.send(signal.SIGKILL)
        client.wait()
