"""What it costs to start Kuwa's commands and to keep an idle kernel. run.py prints and stores the result."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import machine
from gateways import Running, started, wait_until_it_answers

REPEATS = 5
IDLE_S = 2.0


@dataclass(frozen=True, slots=True)
class StartUp:
    what: str
    cpu_s: float  # medians
    wall_s: float
    rss_mb: float | None = None  # only for what stays
    idle_cpu_ms_per_s: float | None = None


def measure(core: int) -> list[StartUp]:
    executor = str(machine.kuwa_command("kuwa-executor"))
    return [
        _command("python -c pass (for comparison)", [sys.executable, "-c", "pass"]),
        _command("kuwa-executor --list", [executor, "--list"]),
        _command("kuwa-executor debug --help", [executor, "debug", "--help"]),
        _kernel(core),
    ]


def _command(what: str, command: list[str]) -> StartUp:
    _run_once(what, command)  # fills the page cache and writes bytecode
    runs = [_run_once(what, command) for _ in range(REPEATS)]
    return StartUp(what, statistics.median(cpu for cpu, _ in runs), statistics.median(wall for _, wall in runs))


def _run_once(what: str, command: list[str]) -> tuple[float, float]:
    """Return (CPU seconds, wall seconds), child processes included."""
    begin = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise machine.NotReady(f"{what} ended with exit code {child.returncode}")
    return used.ru_utime + used.ru_stime, time.monotonic() - begin


def _kernel(core: int) -> StartUp:
    runs = [_start_kernel(core) for _ in range(REPEATS)]
    return StartUp(
        "kuwa-kernel until /livez answers",
        *(statistics.median(column) for column in zip(*runs, strict=True)),
    )


def _start_kernel(core: int) -> tuple[float, float, float, float]:
    """Return (CPU seconds and wall seconds until /livez answers, RSS in MB and CPU in ms/s when idle)."""
    port = machine.free_port()
    command: list[str | Path] = [machine.kuwa_command("kuwa-kernel"), "--port", str(port)]
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        with started("kuwa-kernel", command, port=port, core=core, folder=Path(folder)) as kernel:
            wait_until_it_answers(kernel, method="GET", path="/livez")
            wall, cpu = time.monotonic() - begin, kernel.cpu_seconds()
            idle_cpu = _idle_cpu_ms_per_s(kernel)
            return cpu, wall, kernel.rss_mb(), idle_cpu


def _idle_cpu_ms_per_s(kernel: Running) -> float:
    before = kernel.cpu_seconds()
    time.sleep(IDLE_S)  # the measurement itself: this long nothing is asked of it
    return (kernel.cpu_seconds() - before) * 1000 / IDLE_S
