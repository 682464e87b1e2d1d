"""`kuwa secrets`, and that no key ever shows: in no file others can read, no log, no list of processes, no answer."""

from __future__ import annotations

import os
import pty
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from calls import chat, chat_text, fetch, stream_chat
from processes import REPOSITORY, Executor, Stage, environment, until
from routes import example_path, table

CANARY = "sk-canary-6e0b72d4"
OWN_CANARY = "sk-own-canary-19c3aa"


def kuwa(home: Path, *arguments: str, given: str = "", **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kuwa.cli", *arguments],
        input=given, capture_output=True, text=True, timeout=30, check=False,
        env=environment(KUWA_HOME=str(home), **extra),
    )  # fmt: skip


def fake_openai(stage: Stage, *flags: str) -> str:
    argv = [sys.executable, str(REPOSITORY / "tests" / "fakes" / "openai_server.py"), "--port", str(stage.port())]
    process = stage.process([*argv, *flags], name="openai_server")
    return process.wait_for(lambda: process.log.partition("\n")[0], "it said its URL")


def test_a_secret_is_kept_listed_and_forgotten_and_its_value_is_never_shown(tmp_path: Path) -> None:
    assert "No secrets" in kuwa(tmp_path, "secrets", "list").stdout
    kept = kuwa(tmp_path, "secrets", "set", "openai", given=CANARY + "\n")
    assert kept.returncode == 0, kept
    listed = kuwa(tmp_path, "secrets", "list")
    assert listed.stdout.split() == ["openai", "a", "value"]
    forgotten = kuwa(tmp_path, "secrets", "remove", "openai")
    assert forgotten.returncode == 0
    assert CANARY not in "".join(done.stdout + done.stderr for done in (kept, listed, forgotten))
    assert CANARY not in (tmp_path / "secrets.json").read_text()


def test_the_file_and_a_new_folder_are_the_owners_alone(tmp_path: Path) -> None:
    home = tmp_path / "new"
    assert kuwa(home, "secrets", "set", "openai", given=CANARY).returncode == 0
    assert stat.S_IMODE((home / "secrets.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert [entry.name for entry in home.iterdir()] == ["secrets.json"]


def test_without_kuwa_home_it_lies_in_the_configuration_folder(tmp_path: Path) -> None:
    env = environment(HOME=str(tmp_path), XDG_CONFIG_HOME=str(tmp_path / "config"))
    command = [sys.executable, "-m", "kuwa.cli", "secrets", "set", "openai"]
    subprocess.run(command, input=CANARY, text=True, env=env, check=True, timeout=30, capture_output=True)
    assert (tmp_path / "config" / "kuwa" / "secrets.json").is_file()


def test_a_terminal_is_asked_and_does_not_show_what_is_typed(tmp_path: Path) -> None:
    child, terminal = pty.fork()
    if child == 0:
        os.environ["KUWA_HOME"] = str(tmp_path)
        os.execv(sys.executable, [sys.executable, "-m", "kuwa.cli", "secrets", "set", "openai"])  # noqa: S606 - a terminal's own child
    shown = b""
    while b"not shown" not in shown:
        shown += os.read(terminal, 1000)
    os.write(terminal, CANARY.encode() + b"\n")
    try:
        while piece := os.read(terminal, 1000):
            shown += piece
    except OSError:
        pass  # how a terminal whose program has ended reads
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0, shown
    assert CANARY.encode() not in shown
    assert CANARY in (tmp_path / "secrets.json").read_text()


@pytest.mark.parametrize("value", ["", "\n", "two words", "sk-ä", "x" * 20_000])
def test_a_value_that_is_no_key_is_not_kept_and_not_shown(tmp_path: Path, value: str) -> None:
    refused = kuwa(tmp_path, "secrets", "set", "openai", given=value)
    assert refused.returncode == 2
    assert "nothing is kept" in refused.stderr
    assert not (tmp_path / "secrets.json").exists()


def test_a_value_on_the_command_line_is_refused(tmp_path: Path) -> None:
    assert kuwa(tmp_path, "secrets", "set", "openai", "sk-1").returncode == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("set", "Open AI"),
        ("set", "../x"),
        ("set", "openai", "--file", "/no/such/file"),
        ("set", "openai", "--variable", "A B"),
        ("remove", "openai"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_reason(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    refused = kuwa(tmp_path, "secrets", *arguments, given=CANARY)
    assert refused.returncode == 2
    assert refused.stderr.startswith("kuwa secrets: ")
    assert CANARY not in refused.stderr


@pytest.mark.parametrize("kept", ["value", "file", "variable"])
def test_an_executor_without_a_key_of_its_own_takes_the_global_value(stage: Stage, kept: str) -> None:
    file = stage.folder / "key"
    file.write_text(CANARY + "\n")
    reference = {"value": [], "file": ["--file", str(file)], "variable": ["--variable", "VAULT_KEY"]}[kept]
    assert kuwa(stage.folder, "secrets", "set", "openai", *reference, given=CANARY).returncode == 0
    base_url = fake_openai(stage, "--api_key", CANARY)
    executor = stage.executor("chatgpt", "--base_url", base_url, kernel=None, VAULT_KEY=CANARY)
    assert chat_text(executor.url, "chatgpt", "hi") == "hi"
    assert CANARY not in executor.process.log


def arguments_of(executor: Executor) -> str:
    return Path(f"/proc/{executor.process.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


@pytest.mark.parametrize("spelling", [["--api_key", CANARY], [f"--api_key={CANARY}"]])
def test_a_key_of_the_command_line_is_gone_from_the_list_of_processes(stage: Stage, spelling: list[str]) -> None:
    pytest.importorskip("setproctitle")
    base_url = fake_openai(stage, "--api_key", CANARY)
    executor = stage.executor("chatgpt", "--base_url", base_url, *spelling, kernel=None)
    shown = arguments_of(executor)
    assert CANARY not in shown
    assert CANARY not in " ".join(psutil.Process(executor.process.pid).cmdline())
    assert "--api_key" in shown
    assert base_url in shown
    assert "--api_key_file" in executor.process.log
    assert chat_text(executor.url, "chatgpt", "hi") == "hi"


def test_without_a_key_on_the_command_line_it_stays_as_it_is(stage: Stage) -> None:
    file = stage.folder / "key"
    file.write_text(CANARY)
    base_url = fake_openai(stage, "--api_key", CANARY)
    executor = stage.executor("chatgpt", "--base_url", base_url, "--api_key_file", str(file), kernel=None)
    assert "kuwa.executor.cli" in arguments_of(executor)
    assert chat_text(executor.url, "chatgpt", "hi") == "hi"


def test_no_key_shows_on_any_page_in_any_metric_log_or_error(stage: Stage) -> None:
    kernel = stage.kernel("--log_level", "DEBUG")
    base_url = fake_openai(stage, "--api_key", "another")
    executor = stage.executor("chatgpt", "--base_url", base_url, "--api_key", CANARY, "--log", "debug", kernel=kernel)
    own = {"x-kuwa-provider-key": OWN_CANARY}
    texts = [chat(kernel.url, "chatgpt", "hi").text, chat(kernel.url, "chatgpt", "hi", own).text]
    texts += [chat(executor.url, "chatgpt", "hi", own).text]
    with stream_chat(kernel.url, "chatgpt", "hi", own) as stream:
        texts.append(stream.read().decode())
    # A provider that repeats the key, and a body that holds one where none belongs.
    texts.append(chat(kernel.url, "chatgpt", "hi", fake={"status": 500, "message": f"bad {CANARY}"}).text)
    texts.append(chat(kernel.url, "chatgpt", "hi", fake={"error_after": 0, "message": f"bad {CANARY}"}).text)
    for method, path in table():
        if method == "GET":
            texts.append(kernel.get(example_path(path)).text)
    texts += [executor.get(path).text for path in ("/metrics", "/v1/models", "/health")]
    until(lambda: kernel.idle("chatgpt"), "every slot was given back")
    texts += [kernel.process.log, executor.process.log]
    for text in texts:
        assert CANARY not in text
        assert OWN_CANARY not in text
    assert fetch(kernel.url + "/livez").status == 200
