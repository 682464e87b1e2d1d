"""What a provider behind Kuwa costs: kernel and the executor `chatgpt` beside LiteLLM's proxy, both before one mock.

    .venv/bin/python benchmarks/cloud.py            # 5 minutes; --no_litellm: 3
    .venv/bin/python benchmarks/cloud.py --readme   # the same, and writes the tables into benchmarks/README.md

Kernel and executor are two programs on one core, LiteLLM has the same core for itself; mock and load run on another.
LiteLLM comes from `make peers` (`.venv-litellm`), or is installed by peers.py. Only figures of one run compare.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gateways
import machine
from gateways import Running, ask

import peers

ROUNDS = 3
SECONDS = 2.0
SPACED_CHUNKS, SPACED_MS = 120, 50
STREAM_MS = (SPACED_CHUNKS - 1) * SPACED_MS  # what a spaced stream takes that keeps up
LATE = 1.05
RAMP_MS = 2000
FEWEST, MOST = 50, 4000
NEAR = 0.08  # the bisection ends when its bounds are this near
SUITE_S = 120
LITELLM_READY_S = 240.0
MARKS = ("<!-- cloud: written by cloud.py --readme -->\n", "<!-- end of cloud -->")


@dataclass(frozen=True, slots=True)
class Tools:
    mock: Running
    load: Path

    def run(self, port: int, *arguments: object, chunks: int = 50, delay_ms: int = 0) -> dict[str, Any]:
        """One run of the load generator, and what it printed."""
        ask(self.mock.port, "GET", f"/cfg?chunks={chunks}&delay={delay_ms * 1000}&ttft=0&pad=0&pings=0")
        command = [str(word) for word in (self.load, port, *arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SUITE_S)
        return json.loads(done.stdout)


@dataclass(frozen=True, slots=True)
class Way:
    """A way to the mock: the programs on it, the first of which is asked."""

    name: str
    programs: tuple[Running, ...]

    @property
    def port(self) -> int:
        return self.programs[0].port

    def cpu_seconds(self) -> list[float]:
        return [program.cpu_seconds() for program in self.programs]


@dataclass(frozen=True, slots=True)
class Sample:
    cpu_us: list[float]  # per unit, of each program of the way
    load: dict[str, Any]


WORKLOADS = {
    "whole answers, 32 connections": ("request", ("-c", 32), 0, 0),
    "streams of 50 chunks without delay, 8 at once": ("chunk", ("-c", 8, "-s", "-e", 50), 50, 0),
    "streams of 40 chunks, one each 50 ms, 24 at once": ("chunk", ("-c", 24, "-s", "-e", 40, "-r", 500), 40, 50),
}


def measure(way: Way, tools: Tools, unit: str, arguments: Sequence[object], chunks: int, delay_ms: int) -> Sample:
    before = way.cpu_seconds()
    printed = tools.run(way.port, *arguments, chunks=chunks or 50, delay_ms=delay_ms)
    if printed["errors"] or printed["hung"]:
        raise machine.NotReady(f"{way.name} fails: {printed}\n{way.programs[0].last_words()}")
    units = printed["ok"] if unit == "request" else printed["chunks"]
    used = [after - since for after, since in zip(way.cpu_seconds(), before, strict=True)]
    return Sample([seconds * 1e6 / max(units, 1) for seconds in used], printed)


def compare(ways: Sequence[Way], tools: Tools) -> list[list[str]]:
    rows = [["workload", "per", *(f"{way.name} µs" for way in ways)]]
    if len(ways) > 1:
        rows[0].append("times cheaper")
    for name, (unit, arguments, chunks, delay_ms) in WORKLOADS.items():
        totals: dict[str, list[float]] = {way.name: [] for way in ways}
        parts: list[list[float]] = []
        for turn in range(ROUNDS + 1):  # the first one warms up
            for way in ways:
                seconds = ("-n", 1_000_000_000, "-d", SECONDS)
                try:
                    sample = measure(way, tools, unit, (*arguments, *seconds), chunks, delay_ms)
                except machine.NotReady as error:
                    if way is ways[0]:
                        raise
                    print(f"{name}: left out: {error}", file=sys.stderr, flush=True)
                    continue
                if turn:
                    totals[way.name].append(sum(sample.cpu_us))
                    print(f"{name}: {way.name} {sum(sample.cpu_us):.1f} µs a {unit}", flush=True)
                if turn and way is ways[0]:
                    parts.append(sample.cpu_us)
        kernel, executor = (statistics.median(column) for column in zip(*parts, strict=True))
        shown = [_spread(totals[way.name]) for way in ways]
        shown[0] += f": kernel {kernel:.1f}, executor {executor:.1f}"
        if len(ways) > 1:
            pairs = zip(totals[ways[1].name], totals[ways[0].name], strict=False)
            shown.append(_spread([theirs / ours for theirs, ours in pairs]))
        rows.append([name, unit, *shown])
    return rows


def first_token(ways: Sequence[Way], tools: Tools) -> list[list[str]]:
    """Time to the first token at one connection, over what the mock itself takes."""
    took: dict[str, list[float]] = {name: [] for name in ("the mock alone", *(way.name for way in ways))}
    for _ in range(ROUNDS):
        for name, port in (("the mock alone", tools.mock.port), *((way.name, way.port) for way in ways)):
            printed = tools.run(port, "-c", 1, "-n", 300, "-d", SECONDS, "-s", "-e", 50)
            took[name].append(printed["first_token_ms_p50"])
    alone = statistics.median(took["the mock alone"])
    rows = [["one connection", "first token ms p50", "added ms"]]
    for name, values in took.items():
        added = "" if name == "the mock alone" else f"{statistics.median(values) - alone:.2f}"
        rows.append([name, _spread(values, 2), added])
    return rows


def steady(ours: Way, direct: Way, tools: Tools) -> list[list[str]]:
    """Spaced chunks: what each program spends, and how many streams keep up."""
    rows = [["streams, a chunk each 50 ms", "kernel µs a chunk", "executor µs a chunk", "stream ms p99 (5,950)", ""]]

    def probe(way: Way, streams: int) -> bool:
        arguments = ("-c", streams, "-n", streams, "-d", 60, "-r", RAMP_MS, "-s", "-e", SPACED_CHUNKS)
        sample = measure(way, tools, "chunk", arguments, SPACED_CHUNKS, SPACED_MS)
        late = sample.load["request_ms_p99"]
        keeps_up = late <= STREAM_MS * LATE
        kernel = f"{sample.cpu_us[0]:.1f}" if len(sample.cpu_us) == 2 else ""
        verdict = "keeps up" if keeps_up else "falls behind"
        rows.append([f"{streams:,} {way.name}", kernel, f"{sample.cpu_us[-1]:.1f}", f"{late:,.0f}", verdict])
        print(*rows[-1], flush=True)
        return keeps_up

    probe(direct, 100)
    probe(direct, 500)
    for way in (ours, direct):
        low, high = 0, 500
        while high < MOST and probe(way, high):
            low, high = high, high * 2
        while high > FEWEST and high - low > NEAR * high:
            middle = (low + high) // 2
            low, high = (middle, high) if probe(way, middle) else (low, middle)
        rows.append(
            [f"**most {way.name}**", "", "", "", f"{low:,} streams: {low * 1000 // SPACED_MS:,} chunks a second"]
        )
    return rows


def _spread(values: Sequence[float], digits: int = 1) -> str:
    if not values:
        return "fails"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, f"|{' --- |' * len(rows[0])}", *body])


@contextlib.contextmanager
def program(name: str, core: int, words: Sequence[object], port: int) -> Iterator[Running]:
    with (
        tempfile.TemporaryDirectory(prefix="cloud-") as folder,
        gateways.started(name, [str(word) for word in words], port=port, core=core, folder=Path(folder)) as running,
    ):
        yield running


def main() -> int:
    parser = argparse.ArgumentParser(description="CPU cost of a provider behind Kuwa, beside LiteLLM's proxy.")
    parser.add_argument("--no_litellm", action="store_true", help="Kuwa alone")
    parser.add_argument("--readme", action="store_true", help="put the tables into benchmarks/README.md")
    options = parser.parse_args()
    try:
        report = run(with_litellm=not options.no_litellm)
    except machine.NotReady as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    print(f"\n{report}")
    if options.readme:
        readme = machine.HERE / "README.md"
        before, _, rest = readme.read_text().partition(MARKS[0])
        readme.write_text(f"{before}{MARKS[0]}{report}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")
    return 0


def run(*, with_litellm: bool) -> str:
    mock_program, load = machine.compile_tool("mock"), machine.compile_tool("load")
    core, tools_core = machine.choose_cores()
    machine.allow_open_files()
    os.sched_setaffinity(0, {tools_core})
    with contextlib.ExitStack() as stack:
        port = machine.free_port()
        mock = stack.enter_context(program("mock", tools_core, [mock_program, port], port))
        gateways.wait_until_it_answers(mock)
        tools = Tools(mock, load)
        kernel_port, own_port = machine.free_port(), machine.free_port()
        serve = [sys.executable, "-m", "kuwa.kernel.cli", "--port", kernel_port]
        kernel = stack.enter_context(program("kernel", core, serve, kernel_port))
        gateways.wait_until_it_answers(kernel, method="GET", path="/health")
        words = [
            *(sys.executable, "-m", "kuwa.executor.cli", "chatgpt", "--access_code", "mock", "--model", "mock"),
            *("--base_url", f"http://127.0.0.1:{mock.port}/v1", "--api_key", "dummy", "--host", "127.0.0.1"),
            *("--port", own_port, "--kernel_url", f"http://127.0.0.1:{kernel_port}/"),
            *("--concurrency", 10_000, "--log", "WARNING"),
        ]
        executor = stack.enter_context(program("chatgpt", core, words, own_port))
        gateways.wait_until_it_answers(kernel)
        ours = Way("kernel + chatgpt", (kernel, executor))
        ways = [ours]
        if with_litellm:
            gateway = peers.available()["litellm"]()
            litellm = gateways.serve(
                "litellm",
                lambda port, folder: gateway.command(port, mock.port, folder),
                core,
                stack,
                within_s=LITELLM_READY_S,
            )
            ways.append(Way(f"LiteLLM {gateway.version}", (litellm,)))
        busy = os.getloadavg()[0]
        tables = [compare(ways, tools), first_token(ways, tools)]
        tables.append(steady(ours, Way("chatgpt alone", (executor,)), tools))
        about = "\n".join(f"- {name}: {value}" for name, value in machine.describe().items())
    return "\n\n".join([f"{about}\n- load average at the start: {busy:.1f}", *map(table, tables)])


if __name__ == "__main__":
    sys.exit(main())
