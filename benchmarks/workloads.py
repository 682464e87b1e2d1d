"""The workloads, and one measured run of one of them against one gateway.

run.py chooses among `TABLE` and `LONG_TABLE`; a run starts the load generator, reads the gateway's CPU time before
and after, and returns a `Sample`.
"""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import machine
from gateways import Running, ask

# What an OpenAI SDK sends beside Host, Content-Type, Accept and Content-Length: thirteen in all.
SDK_HEADERS = (
    "Accept-Encoding: gzip, deflate",
    "Connection: keep-alive",
    "User-Agent: OpenAI/Python 3.54.0",
    "Authorization: Bearer sk-benchmark-0123456789abcdef0123456789abcdef",
    "X-Stainless-Lang: python",
    "X-Stainless-Package-Version: 3.54.0",
    "X-Stainless-OS: Linux",
    "X-Stainless-Arch: x64",
    "X-Stainless-Runtime: CPython",
)
RSS_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Workload:
    name: str
    about: str
    connections: int
    unit: Literal["request", "chunk"] = "request"  # what CPU is counted per
    headers: tuple[str, ...] = ()
    chunks: int = 0  # of each streamed answer; 0: not streamed
    delay_us: int = 0  # between the chunks of one stream
    ttft_us: int = 0  # before the first one
    body_bytes: int = 0  # of each request, at least
    leave_percent: int = 0  # clients that go away after half of the chunks
    ramp_ms: int = 0  # connections start spread over this time
    min_seconds: float = 0.0

    def load_arguments(self, seconds: float) -> list[str]:
        seconds = max(seconds, self.min_seconds)
        arguments = ["-c", str(self.connections), "-n", "1000000000", "-d", str(seconds), "-r", str(self.ramp_ms)]
        if self.chunks:
            arguments += ["-s", "-e", str(self.chunks), "-a", str(self.leave_percent)]
        if self.body_bytes:
            arguments += ["-b", str(self.body_bytes)]
        for header in self.headers:
            arguments += ["-H", header]
        return arguments


@dataclass(frozen=True, slots=True)
class Sample:
    workload: str
    gateway: str
    cpu_us_per_unit: float
    cpu_seconds: float
    peak_rss_mb: float
    others_cpu_seconds: float  # CPU that neither gateway nor tools used meanwhile: the machine's noise
    load: dict[str, float]  # what the load generator printed


def _whole_answers() -> list[Workload]:
    kinds = (("4 headers", ()), ("13 headers", SDK_HEADERS))
    return [
        Workload(f"W1 c{count}, {label}", f"not streamed, {count} connections, {label}", count, headers=headers)
        for label, headers in kinds
        for count in (1, 32, 128)
    ]


TABLE = (
    *_whole_answers(),
    Workload("W2 c32", "50-chunk streams without delay, 32 connections", 32, unit="chunk", chunks=50),
)


def steady(streams: int) -> Workload:
    """W3: so many streams at once, 100 chunks each at 50 a second. One that keeps up takes 1,980 ms."""
    return Workload(
        f"W3-{streams}",
        f"{streams} streams at once, 100 chunks each at 50 a second",
        streams,
        unit="chunk",
        chunks=100,
        delay_us=20_000,
        ramp_ms=2000,
        min_seconds=6.0,
    )


def _bodies() -> list[Workload]:
    sizes = (("32 KB", 32 * 1024, 32), ("1 MB", 1024 * 1024, 8))
    return [Workload(f"W5 {name}", f"not streamed, bodies of {name}", n, body_bytes=size) for name, size, n in sizes]


REALISTIC = Workload(
    "W4",
    "1,000 chats at once: 4 KB of prompt, first token after 200 ms, 40 a second, one client in ten leaves midway",
    1000,
    unit="chunk",
    headers=SDK_HEADERS,
    chunks=120,
    delay_us=25_000,
    ttft_us=200_000,
    body_bytes=4096,
    leave_percent=10,
    ramp_ms=2000,
    min_seconds=6.0,
)
STEADY = (steady(100), steady(300), steady(1000))
LONG_TABLE = (*TABLE, *STEADY, REALISTIC, *_bodies())


def measure(workload: Workload, gateway: Running, seconds: float, *, mock: Running, load: Path) -> Sample:
    """Run the workload once. `seconds`: how long requests are started; streams then run to their end."""
    pace = f"chunks={workload.chunks or 50}&delay={workload.delay_us}&ttft={workload.ttft_us}"
    ask(mock.port, "GET", f"/cfg?{pace}&pad=0&pings=0")
    cpu_before, mock_before, busy_before = gateway.cpu_seconds(), mock.cpu_seconds(), machine.busy_seconds()
    peak_rss_mb = gateway.rss_mb()
    with subprocess.Popen(
        [load, str(gateway.port), *workload.load_arguments(seconds)], stdout=subprocess.PIPE, text=True
    ) as running:
        started = time.monotonic()
        while running.poll() is None:
            try:
                running.wait(RSS_EVERY_S)
            except subprocess.TimeoutExpired:
                peak_rss_mb = max(peak_rss_mb, gateway.rss_mb())
            if time.monotonic() - started > 120:
                running.kill()
                raise machine.NotReady(f"{workload.name} against {gateway.name} did not end within 120 s")
        assert running.stdout is not None  # noqa: S101 -- PIPE above
        printed: dict[str, Any] = json.loads(running.stdout.read())
    cpu = max(0.0, gateway.cpu_seconds() - cpu_before)
    if not cpu:
        raise machine.NotReady(
            f"{workload.name}: {gateway.name} used less CPU than the 10 ms that can be told; give longer --seconds"
        )
    tools = mock.cpu_seconds() - mock_before + printed["load_cpu_s"]
    units = printed["ok"] if workload.unit == "request" else printed["chunks"]
    return Sample(
        workload.name,
        gateway.name,
        cpu * 1e6 / units if units else float("nan"),
        cpu,
        max(peak_rss_mb, gateway.rss_mb()),
        max(0.0, machine.busy_seconds() - busy_before - cpu - tools),
        printed,
    )
