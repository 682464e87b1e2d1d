"""`kuwa up` as people use it: the table, the curl line, the end of everything, and what it says when it cannot."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from calls import chat_text, fetch
from processes import Process, Stage, environment, free_port, listens, until

START_S = 90.0
ENTRY = "import sys; from kuwa.cli import main; main()"


class Up:
    """One running `kuwa up`, and everything that it started."""

    def __init__(self, process: Process, port: int, home: Path) -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.home = home

    def wait_for_table(self) -> None:
        self.process.wait_for(lambda: "curl -N" in self.process.log, "the curl line was shown", timeout_s=START_S)

    def rows(self) -> dict[str, str]:
        """The table as it was printed: access code → the rest of its line."""
        rows: dict[str, str] = {}
        for line in self.process.log.splitlines():
            cells = [cell.strip() for cell in re.split("[│┃|]", line) if cell.strip()]
            if len(cells) == 4:
                rows[cells[0]] = " ".join(cells[1:])
        return rows

    def curl_line(self) -> str:
        return next(line for line in self.process.log.splitlines() if line.startswith("curl "))

    def child(self, access_code: str) -> psutil.Process:
        """The executor of `access_code`."""
        return next(
            process
            for process in psutil.Process(self.process.pid).children()
            if f"--access_code={access_code}" in process.cmdline()
        )


def start(stage: Stage, home: Path, *options: str, port: int | None = None, **env: str) -> Up:
    port = port or stage.port()
    argv = [sys.executable, "-c", ENTRY, "up", "--port", str(port), *options]
    process = stage.process(argv, name="up", env=environment(KUWA_HOME=str(home), **env))
    return Up(process, port, home)


def nothing_left(processes: list[psutil.Process]) -> bool:
    return not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(scope="module")
def up(shared_stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Up:
    running = start(shared_stage, tmp_path_factory.mktemp("home"))
    running.wait_for_table()
    return running


def test_the_table_shows_debug_dummy_and_welcome_ready(up: Up) -> None:
    rows = up.rows()
    for code, executor in (("debug", "debug"), ("dummy", "dummy"), ("welcome", "llamacpp")):
        assert re.match(rf"{executor} ready http://127\.0\.0\.1:\d+", rows[code]), rows


def test_the_page_it_names_is_there(up: Up) -> None:
    url = re.search(r"http://\S+/v1\.0/worker/debug", up.process.log)
    assert url is not None
    assert fetch(url.group(), headers={"accept": "text/html"}).status == 200


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed here")
def test_the_curl_line_streams_an_answer_of_welcome_just_as_it_is_printed(up: Up) -> None:
    done = subprocess.run(["sh", "-c", up.curl_line()], capture_output=True, timeout=60, check=True)
    events = [line[6:] for line in done.stdout.decode().splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events[:-1]]
    assert len(deltas) > 20
    assert "Kuwa" in "".join(deltas)


def test_every_program_has_a_log_of_its_own(up: Up) -> None:
    logs = up.home / "cache" / "logs" / str(up.port)
    assert {path.name for path in logs.iterdir()} >= {"kernel.log", "debug.log", "dummy.log", "welcome.log"}


def test_logs_are_for_this_user_alone_also_where_they_were_not_before(stage: Stage, tmp_path: Path) -> None:
    port = stage.port()
    logs = tmp_path / "cache" / "logs" / str(port)
    logs.mkdir(parents=True)
    logs.chmod(0o755)
    (logs / "debug.log").write_text("of the run before")
    (logs / "debug.log").chmod(0o664)
    reader = (logs / "debug.log").open()
    start(stage, tmp_path, port=port).wait_for_table()
    assert logs.stat().st_mode & 0o777 == 0o700
    modes = {file.name: file.stat().st_mode & 0o777 for file in logs.iterdir()}
    assert {"debug.log", "debug.log.1", "kernel.log", "welcome.log"} <= set(modes)
    assert set(modes.values()) == {0o600}
    assert (logs / "debug.log.1").read_text() == "of the run before"
    with reader:
        assert reader.read() == "of the run before"


def test_an_executor_that_dies_is_reported_with_its_log_and_started_again(up: Up) -> None:
    before = up.child("dummy")
    before.kill()
    up.process.wait_for(lambda: "dummy exited unexpectedly (SIGKILL)" in up.process.log, "the death was reported")
    up.process.wait_for(lambda: len(re.findall(r"dummy is ready", up.process.log)) == 2, "it was ready a second time")
    assert up.child("dummy").pid != before.pid
    assert "dummy.log" in up.process.log
    assert chat_text(up.url, "dummy", "hello")


def test_a_second_one_on_the_same_port_says_in_one_line_what_to_do(up: Up, stage: Stage, tmp_path: Path) -> None:
    second = start(stage, tmp_path, port=up.port)
    assert second.process.wait() == 1
    [line] = second.process.log.splitlines()
    assert f"Port {up.port} of 127.0.0.1 is in use by a Kuwa kernel" in line
    assert re.search(r"kuwa up --port \d+", line)


def test_a_port_held_by_another_program_is_named_too(stage: Stage, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        running = start(stage, tmp_path, port=holder.getsockname()[1])
        assert running.process.wait() == 1
    [line] = running.process.log.splitlines()
    assert "is in use." in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_told_to_end_it_ends_everything_and_leaves_nothing(stage: Stage, tmp_path: Path, number: int) -> None:
    running = start(stage, tmp_path)
    running.wait_for_table()
    family = running.process.family()
    assert len(family) >= 4
    running.process.send(number)
    assert running.process.wait() == 0
    assert nothing_left(family)
    assert not listens(running.port)
    assert "exited unexpectedly" not in running.process.log


def test_told_to_end_while_it_starts_it_leaves_nothing(stage: Stage, tmp_path: Path) -> None:
    running = start(stage, tmp_path)
    running.process.wait_for(lambda: running.process.family(), "the first program was started")
    family = running.process.family()
    running.process.send(signal.SIGINT)
    assert running.process.wait() == 0
    assert nothing_left(family + running.process.family())


def test_killed_by_force_it_leaves_nothing_either(stage: Stage, tmp_path: Path) -> None:
    running = start(stage, tmp_path)
    running.wait_for_table()
    family = running.process.family()
    running.process.kill()
    until(lambda: nothing_left(family), "all of its programs ended", timeout_s=15)
    assert not listens(running.port)


def test_a_kernel_that_is_killed_comes_back_with_its_executors(stage: Stage, tmp_path: Path) -> None:
    running = start(stage, tmp_path)
    running.wait_for_table()
    kernel = next(p for p in psutil.Process(running.process.pid).children() if "kuwa.kernel.cli" in p.cmdline())
    kernel.kill()

    def served() -> bool:
        try:
            return "debug" in fetch(running.url + "/v1.0/worker/list").json()
        except OSError:
            return False

    running.process.wait_for(served, "debug was served again")
    assert chat_text(running.url, "debug", "still here") == "still here"


def test_a_model_is_served_under_the_name_of_its_file(stage: Stage, tmp_path: Path) -> None:
    model = tmp_path / "My Own.gguf"
    maker = [
        sys.executable,
        "-m",
        "kuwa.builtin.llamacpp.maker",
        "script",
        str(model),
        "a text of its own, no other",
    ]
    subprocess.run(maker, check=True, timeout=60)
    running = start(stage, tmp_path, "--no_defaults", "--model", str(model))
    running.wait_for_table()
    assert list(running.rows())[1:] == ["My-Own"] or list(running.rows()) == ["My-Own"]
    assert chat_text(running.url, "My-Own", "hello") == "a text of its own, no other"


def test_a_model_that_is_not_there_is_named_at_once(stage: Stage, tmp_path: Path) -> None:
    running = start(stage, tmp_path, "--model", str(tmp_path / "absent.gguf"))
    assert running.process.wait() == 1
    [line] = running.process.log.splitlines()
    assert f"File not found: {tmp_path / 'absent.gguf'}" in line


def test_a_model_that_is_no_gguf_is_given_up_with_its_reason_and_the_others_run(stage: Stage, tmp_path: Path) -> None:
    model = tmp_path / "broken.gguf"
    model.write_bytes(b"this is no model")
    running = start(stage, tmp_path, "--model", str(model))
    running.wait_for_table()
    running.process.wait_for(lambda: "not restarting it" in running.process.log, "it was given up")
    assert "broken exited unexpectedly" in running.process.log
    assert "GGUF" in running.process.log
    assert chat_text(running.url, "debug", "fine") == "fine"


def test_in_taiwan_it_speaks_traditional_chinese(stage: Stage, tmp_path: Path) -> None:
    running = start(stage, tmp_path, "--model", "/absent.gguf", LC_ALL="zh_TW.UTF-8", PYTHONUTF8="1")
    assert running.process.wait() == 1
    assert "找不到檔案 /absent.gguf" in running.process.log


def test_a_folder_that_cannot_be_written_is_named(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    running = start(stage, tmp_path / "file", port=free_port())
    assert running.process.wait() == 1
    assert "Cannot write to" in running.process.log
    assert "KUWA_HOME" in running.process.log
