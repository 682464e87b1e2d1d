"""`kuwa ps` and `kuwa doctor`, with kernels that are there, busy, wrong or absent."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from calls import stream_chat
from processes import Kernel, Stage, environment, free_port

KUWA = [sys.executable, "-m", "kuwa.cli"]


@pytest.fixture(scope="module")
def kernel(shared_stage: Stage, shared_kernel: Kernel) -> Kernel:
    shared_stage.executor("debug", "--delay", "0.05", kernel=shared_kernel, access_code="debug")
    return shared_kernel


def kuwa(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*KUWA, *arguments], env=environment(**env), capture_output=True, text=True, timeout=90, check=False
    )


def test_ps_shows_what_runs_where_and_how_busy_it_is(kernel: Kernel) -> None:
    with stream_chat(kernel.url, "debug", "a long text " * 100) as stream:
        stream.first_text()
        done = kuwa("ps", "--kernel_url", kernel.url)
    heads, row = done.stdout.splitlines()
    assert heads.split() == ["access", "code", "executor", "state", "where", "slots", "waiting", "since", "load"]
    where = kernel.origins("debug")[0].removeprefix("http://")
    assert row.split()[:6] == ["debug", "debug", "ready", where, "1/64", "0"]


def test_ps_as_json_holds_everything_for_programs(kernel: Kernel) -> None:
    report = json.loads(kuwa("ps", "--json", KUWA_KERNEL_URL=kernel.url).stdout)
    [replica] = report["replicas"]
    assert (replica["access_codes"], replica["state"], replica["slots"]) == (["debug"], "ready", 64)
    assert set(replica["load"]) == {"running", "waiting", "tokens_per_s", "progress"}
    assert report["models"] == [{"access_code": "debug", "waiting": 0, "waiting_bytes": 0}]


def test_ps_in_taiwan_is_in_traditional_chinese(kernel: Kernel) -> None:
    done = kuwa("ps", "--kernel_url", kernel.url, LC_ALL="zh_TW.UTF-8", PYTHONUTF8="1")
    assert done.stdout.split()[3:6] == ["狀態", "位址", "名額"]
    assert "就緒" in done.stdout


def test_ps_without_executors_says_how_to_start_one(stage: Stage) -> None:
    done = kuwa("ps", "--kernel_url", stage.kernel().url)
    assert done.returncode == 0
    assert "kuwa-executor debug" in done.stdout


def test_ps_without_a_kernel_says_what_to_do_in_one_line() -> None:
    done = kuwa("ps", "--kernel_url", f"http://127.0.0.1:{free_port()}")
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert "kuwa up" in line


def test_ps_of_something_that_is_no_kernel_says_so(kernel: Kernel) -> None:
    done = kuwa("ps", "--kernel_url", kernel.origins("debug")[0])
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "is no kernel" in line or "not found" in line.lower() or "no route" in line.lower(), line


def test_the_doctor_finds_nothing_to_do_where_all_is_well(kernel: Kernel, tmp_path: Path) -> None:
    done = kuwa("doctor", "--kernel_url", kernel.url, KUWA_HOME=str(tmp_path))
    assert done.returncode == 0, done
    assert "debug answered: " in done.stdout
    assert "The engine for GGUF files loads." in done.stdout
    assert done.stdout.rstrip().endswith("No problems found.")


def test_the_doctor_without_a_kernel_says_how_to_start_one(tmp_path: Path) -> None:
    port = free_port()
    done = kuwa("doctor", "--kernel_url", f"http://127.0.0.1:{port}", KUWA_HOME=str(tmp_path))
    assert done.returncode == 1
    assert f"kuwa up --port {port}" in done.stdout
    assert done.stdout.rstrip().endswith("Problems found: 1.")


def test_the_doctor_names_the_program_that_holds_the_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        # It accepts and says nothing, as a program of another protocol does; a kernel would have answered.
        holder.listen()
        done = kuwa("doctor", "--kernel_url", f"http://127.0.0.1:{port}", KUWA_HOME=str(tmp_path))
    assert done.returncode == 1
    assert f"Port {port} is used by another program" in done.stdout
    assert f"process {os.getpid()}" in done.stdout
    assert "kuwa up --port" in done.stdout


def test_the_doctor_tells_of_a_folder_that_cannot_be_used(kernel: Kernel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = kuwa("doctor", "--kernel_url", kernel.url, KUWA_HOME=str(tmp_path / "file" / "kuwa"))
    assert done.returncode == 1
    assert "is not writable" in done.stdout


def test_the_doctor_tells_of_the_old_distribution_and_of_all_else(kernel: Kernel, tmp_path: Path) -> None:
    (tmp_path / "kuwa_executor-0.1.0.dist-info").mkdir()
    done = kuwa("doctor", "--kernel_url", kernel.url, KUWA_HOME=str(tmp_path), PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "pip uninstall --yes kuwa-executor" in done.stdout
    assert "debug answered" in done.stdout


def test_the_doctor_in_taiwan_speaks_traditional_chinese(kernel: Kernel, tmp_path: Path) -> None:
    env = {"LC_ALL": "zh_TW.UTF-8", "PYTHONUTF8": "1", "KUWA_HOME": str(tmp_path)}
    done = kuwa("doctor", "--kernel_url", kernel.url, **env)
    assert "一切正常。" in done.stdout
