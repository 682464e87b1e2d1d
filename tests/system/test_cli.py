"""The command lines, letter by letter: what the tutorial prints is what the commands print."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

import pytest

from mission import DEBUG_HELP, LIST
from processes import REPOSITORY, Stage, environment, listens
from terminal import Terminal

CPU_GOAL_S = 0.25
# A machine shared with a whole test run is slower than the one the goal is stated for.
CPU_GATE_S = 2 * CPU_GOAL_S


def command(program: str, *arguments: str, timeout_s: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
    """Run one of the installed commands as a user does."""
    return subprocess.run(
        [sys.executable, "-m", f"kuwa.{program}.cli", *arguments],
        capture_output=True,
        text=True,
        env=environment(**env),
        cwd=REPOSITORY,
        timeout=timeout_s,
        check=False,
    )


def test_the_list_of_executors_is_the_tutorials() -> None:
    result = command("executor", "--list")
    assert result.returncode == 0, result
    assert result.stdout.strip("\n").splitlines() == LIST.strip("\n").splitlines()


def test_the_help_of_debug_begins_with_the_tutorials() -> None:
    result = command("executor", "debug", "--help", COLUMNS="120")
    assert result.returncode == 0, result
    assert result.stdout[: len(DEBUG_HELP)] == DEBUG_HELP


HELPS = [
    ("kuwa.cli",),
    *(("kuwa.cli", name) for name in ("up", "chat", "ps", "doctor", "pull", "models", "secrets")),
    *(("kuwa.cli", "secrets", name) for name in ("set", "list", "remove")),
    ("kuwa.kernel.cli",),
    ("kuwa.executor.cli",),
    *(("kuwa.executor.cli", line.partition(":")[0].strip()) for line in LIST.splitlines() if ": [" in line),
]


@pytest.mark.parametrize("argv", HELPS, ids=" ".join)
def test_no_help_shows_a_default_of_none(argv: tuple[str, ...]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", *argv, "--help"], capture_output=True, text=True, env=environment(), check=True
    )
    assert "usage:" in result.stdout
    assert "None)" not in result.stdout


def test_a_terminal_shows_the_same_defaults_as_a_pipe() -> None:
    argv = [sys.executable, "-m", "kuwa.executor.cli", "chatgpt", "--help"]
    with Terminal(argv, environment(), columns=120) as terminal:
        assert terminal.wait() == 0
        assert "(default: 600.0)" in terminal.text
        assert "None)" not in terminal.text


@pytest.mark.parametrize("name", ["debug", "dummy", "geminipro", "chatgpt", "huggingface", "llamacpp"])
def test_every_executor_that_is_listed_shows_its_help(name: str) -> None:
    result = command("executor", name, "--help", COLUMNS="120")
    assert result.returncode == 0, result
    assert result.stdout.startswith(f"usage: kuwa-executor {name} [-h] [--access_code ACCESS_CODE] [--version VERSION]")
    assert "\nGeneral Options:\n" in result.stdout
    assert result.stderr == ""


HELP_HOLDS = {
    "chatgpt": [
        "--api_key",
        "--base_url",
        "--model",
        "--context_window",
        "--system_prompt",
        "--no_system_prompt",
        "-c",
    ],
    "geminipro": ["--api_key", "--model", "--limit", "--system_prompt", "--no_system_prompt", "-c"],
    "huggingface": [
        "--model_path",
        "--visible_gpu",
        "--system_prompt",
        "--no_system_prompt",
        "--limit",
        "--override_chat_template",
        "--stop",
        "--timeout",
        "--load_8bits",
        "--trust_remote_code",
        "--tokenizer",
        "-c",
        "--generation_kwargs",
    ],
    "llamacpp": [
        "--model_path",
        "--visible_gpu",
        "--ngl",
        "--limit",
        "--system_prompt",
        "--no_system_prompt",
        "--context_window",
        "--stop",
        "--override_chat_template",
        "-c",
    ],
}


@pytest.mark.parametrize("name", HELP_HOLDS)
def test_the_help_holds_every_option_that_the_old_command_had(name: str) -> None:
    words = command("executor", name, "--help", COLUMNS="120").stdout.replace(",", " ").replace("[", " ").split()
    assert [option for option in HELP_HOLDS[name] if option not in words] == []


def test_an_unknown_executor_is_named_and_exits_2() -> None:
    result = command("executor", "debgu")
    assert result.returncode == 2, result
    assert "debgu" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_option_is_named_and_exits_2() -> None:
    result = command("executor", "debug", "--dleay", "3")
    assert result.returncode == 2, result
    assert "--dleay" in result.stderr


@pytest.mark.parametrize("level", ["debug", "DEBUG", "Debug"])
def test_the_log_level_is_taken_in_any_case(stage: Stage, level: str) -> None:
    executor = stage.executor("debug", "--log", level, kernel=None)
    assert "DEBUG" in executor.process.log.upper()


@pytest.mark.parametrize("arguments", [["--list"], ["debug", "--help"]], ids=["list", "debug help"])
def test_listing_and_help_cost_little_cpu(arguments: list[str]) -> None:
    costs = [_cpu_s([sys.executable, "-m", "kuwa.executor.cli", *arguments]) for _ in range(5)]
    median = statistics.median(costs)
    sys.stdout.write(f"kuwa-executor {' '.join(arguments)}: {median:.3f} s of CPU (median of 5)\n")
    assert median <= CPU_GATE_S, costs


def _cpu_s(argv: list[str]) -> float:
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


def test_the_kernel_without_arguments_is_at_port_9000_of_loopback(stage: Stage) -> None:
    """Where 9000 is taken on this machine, the refusal has to name it instead."""
    taken = listens(9000)
    process = stage.process([sys.executable, "-m", "kuwa.kernel.cli"], name="kernel")
    if taken:
        assert process.wait() != 0
        assert "9000" in process.log
    else:
        process.wait_for(lambda: listens(9000), "the kernel listened at port 9000")
        assert "127.0.0.1:9000" in process.log


def test_the_kernels_help_holds_its_options() -> None:
    result = command("kernel", "--help", COLUMNS="120")
    assert result.returncode == 0, result
    for option in (
        "--host",
        "--port",
        "--log_level",
        "--upstream",
        "--allowed_host",
        "--insecure_no_auth",
        "--ca_file",
    ):
        assert option in result.stdout
