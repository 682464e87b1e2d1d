"""Measures what gateways cost, side by side: `make bench`, or `python benchmarks/run.py --help`.

Starts a mock model server and every gateway, each gateway pinned to one core and all tools to another, then takes
turns (A B A B) workload by workload, and prints tables in Markdown. Only figures of one run compare: the machine's
speed drifts from hour to hour, so the ratios are taken within each turn.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import gateways
import machine
import startup
import workloads
from gateways import Gateway, Running
from report import Outcome
from workloads import Sample, Workload

WARM_UP_S = 0.5


def main() -> int:
    options = parse_options()
    try:
        return compare(options)
    except machine.NotReady as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="CPU cost of gateways in front of a mock model server.")
    names = list(gateways.available())
    parser.add_argument("--gateway", action="append", choices=names, help="measure only these (repeat it)")
    parser.add_argument("--only", default="", help="only workloads whose name begins so, such as W2 or 'W1 c32'")
    parser.add_argument("--rounds", type=int, default=5, help="turns per workload (default: 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one turn (default: 2)")
    parser.add_argument("--w3", action="store_true", help="also 300 steady streams (some 1.5 minutes more)")
    parser.add_argument("--no_startup", action="store_true", help="leave out the start-up costs")
    parser.add_argument("--readme", action="store_true", help="put the tables into benchmarks/README.md")
    parser.add_argument("--json", type=Path, help="where to write everything (default: benchmarks/results/<time>.json)")
    options = parser.parse_args()
    options.gateway = options.gateway or [name for name in names if name not in gateways.ON_REQUEST]
    return options


def compare(options: argparse.Namespace) -> int:
    chosen = choose_workloads(options)
    mock_program, load_program = machine.compile_tool("mock"), machine.compile_tool("load")
    compared = [gateways.available()[name]() for name in options.gateway]
    gateway_core, tools_core = machine.choose_cores()
    machine.allow_open_files()
    os.sched_setaffinity(0, {tools_core})  # ours, and by inheritance the load generator's
    begin = time.monotonic()
    with contextlib.ExitStack() as running:
        mock = start_mock(mock_program, tools_core, running)
        serving = [start_gateway(gateway, mock, gateway_core, running) for gateway in compared]
        measure = functools.partial(workloads.measure, mock=mock, load=load_program)
        samples = take_turns(chosen, serving, options, measure)
    wants_startup = "kuwa" in options.gateway and not options.no_startup
    start_ups = startup.measure(gateway_core) if wants_startup else []
    outcome = Outcome(machine.describe(), compared, chosen, samples, start_ups)
    print(f"\n{outcome.as_markdown()}")
    print(f"\nIn {time.monotonic() - begin:.0f} s. Every single figure: {outcome.write(options.json)}")
    if options.readme:
        outcome.write_readme()
    return 1 if outcome.failures() else 0


def choose_workloads(options: argparse.Namespace) -> list[Workload]:
    table = [*workloads.TABLE, workloads.STEADY_STREAMS] if options.w3 else list(workloads.TABLE)
    chosen = [workload for workload in table if workload.name.startswith(options.only)]
    if not chosen:
        raise machine.NotReady(
            f"no workload begins with {options.only!r}; there are: {'; '.join(each.name for each in table)}"
        )
    return chosen


def start_mock(program: Path, core: int, running: contextlib.ExitStack) -> Running:
    port = machine.free_port()
    folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="mock-")))
    mock = running.enter_context(gateways.started("mock", [program, str(port)], port=port, core=core, folder=folder))
    gateways.wait_until_it_answers(mock)
    return mock


def start_gateway(gateway: Gateway, mock: Running, core: int, running: contextlib.ExitStack) -> Running:
    port = machine.free_port()
    folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix=f"{gateway.name}-")))
    command = gateway.command(port, mock.port, folder)
    print(f"starting {gateway.name} {gateway.version}: {shlex.join(map(str, command))}", flush=True)
    started = running.enter_context(gateways.started(gateway.name, command, port=port, core=core, folder=folder))
    gateways.wait_until_it_answers(started)
    return started


def take_turns(
    chosen: Sequence[Workload],
    serving: Sequence[Running],
    options: argparse.Namespace,
    measure: Callable[[Workload, Running, float], Sample],
) -> list[Sample]:
    """Each workload after the other: first a warm-up of every gateway, then the rounds, A B A B."""
    samples: list[Sample] = []
    for workload in chosen:
        for gateway in serving:
            stop_at_errors(measure(workload, gateway, WARM_UP_S), gateway)
        for turn in range(options.rounds):
            for gateway in serving:
                sample = measure(workload, gateway, options.seconds)
                samples.append(sample)
                cost = f"{sample.cpu_us_per_unit:8.2f} µs/{workload.unit}"
                print(f"{workload.name:19} {turn + 1}/{options.rounds} {gateway.name:8} {cost}", flush=True)
    return samples


def stop_at_errors(sample: Sample, gateway: Running) -> None:
    if sample.load["ok"] and not sample.load["errors"] and not sample.load["hung"]:
        return
    raise machine.NotReady(
        f"{gateway.name} fails {sample.workload} already in the warm-up: {sample.load}.\n"
        f"Its output ends with:\n{gateway.last_words()}"
    )


if __name__ == "__main__":
    sys.exit(main())
