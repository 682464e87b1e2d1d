"""Measures what gateways cost, side by side: `make bench`, `make bench-peers`, or `run.py --help`.

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
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import endurance
import gateways
import machine
import startup
import workloads
from endurance import Growth, IdleStreams, Memory, MostStreams
from gateways import Gateway, Running
from report import Outcome
from workloads import Sample, Workload

import peers

WARM_UP_S = 0.5
PILLARS = ("nginx", "kuwa")  # without these two there is nothing to compare


def main() -> int:
    options = parse_options()
    try:
        return compare(options)
    except machine.NotReady as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="CPU cost of gateways in front of a mock model server.")
    ours, others = list(gateways.available()), list(peers.available())
    parser.add_argument("--gateway", action="append", choices=ours + others, help="measure only these (repeat it)")
    parser.add_argument("--peers", action="store_true", help=f"beside {' and '.join(ours)} also {', '.join(others)}")
    parser.add_argument("--long", action="store_true", help="also W3, W4 and W5 (steady streams, chats, large bodies)")
    parser.add_argument("--most", action="store_true", help="also the most W3 streams that keep up, by bisection")
    parser.add_argument("--growth", action="store_true", help="also 1 to 1,000 replicas, and RSS over 100,000 requests")
    parser.add_argument("--idle", type=int, metavar="STREAMS", default=0, help="also so many idle streams (W6: 5000)")
    parser.add_argument("--idle_s", type=float, default=60.0, help="for so long (default: 60; W6: 600)")
    parser.add_argument("--only", default="", help="only workloads whose name begins so, such as W2 or 'W1 c32'")
    parser.add_argument("--rounds", type=int, default=5, help="turns per workload (default: 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one turn (default: 2)")
    parser.add_argument("--no_startup", action="store_true", help="leave out the start-up costs")
    parser.add_argument("--readme", action="store_true", help="put the tables into benchmarks/README.md")
    parser.add_argument("--json", type=Path, help="where to write everything (default: benchmarks/results/<time>.json)")
    options = parser.parse_args()
    options.gateway = options.gateway or (ours + others if options.peers else ours)
    return options


def compare(options: argparse.Namespace) -> int:
    chosen = choose_workloads(options)
    mock_program, load_program = machine.compile_tool("mock"), machine.compile_tool("load")
    left_out: dict[str, str] = {}
    compared = prepare(options.gateway, left_out)
    gateway_core, tools_core = machine.choose_cores()
    machine.allow_open_files()
    os.sched_setaffinity(0, {tools_core})  # ours, and by inheritance the load generator's
    begin = time.monotonic()
    with contextlib.ExitStack() as running:
        mock = start_mock(mock_program, tools_core, running)
        serving = start_gateways(compared, mock, gateway_core, running, left_out)
        measure = functools.partial(workloads.measure, mock=mock, load=load_program)
        samples = take_turns(chosen, serving, options, measure, left_out)
        steadiest = [one for one in serving if one.name in PILLARS]
        kuwa = [one for one in serving if one.name == "kuwa" and options.growth]
        most, idle, memory = list[MostStreams](), list[IdleStreams](), list[Memory]()
        for one in steadiest if options.most else []:
            with leaving_out(f"{one.name}, most streams", left_out):
                most.append(endurance.most_streams(one, mock, load_program))
        for one in steadiest if options.idle else []:
            with leaving_out(f"{one.name}, idle streams", left_out):
                idle.append(
                    endurance.idle_streams(one, mock, load_program, streams=options.idle, seconds=options.idle_s)
                )
        for one in kuwa:
            with leaving_out("memory", left_out):
                memory.append(endurance.memory(one, mock, load_program))
    grown: list[Growth] = []
    if kuwa:
        with leaving_out("growth", left_out):
            grown = endurance.growth(gateway_core, tools_core, load_program, mock_program)
    wants_startup = "kuwa" in options.gateway and not options.no_startup
    start_ups = startup.measure(gateway_core) if wants_startup else []
    kept = [gateway for gateway in compared if any(one.name == gateway.name for one in serving)]
    outcome = Outcome(machine.describe(), kept, chosen, samples, start_ups, most, idle, grown, memory, left_out)
    print(f"\n{outcome.as_markdown()}")
    print(f"\nIn {time.monotonic() - begin:.0f} s. Every single figure: {outcome.write(options.json)}")
    if options.readme:
        outcome.write_readme()
    return 1 if outcome.failures() else 0


def prepare(names: Sequence[str], left_out: dict[str, str]) -> list[Gateway]:
    """Install what is missing. A peer that does not install is left out; nginx and Kuwa must be there."""
    known = {**gateways.available(), **peers.available()}
    prepared: list[Gateway] = []
    for name in names:
        try:
            prepared.append(known[name]())
        except machine.NotReady as error:
            leave_out(name, error, left_out)
    return prepared


def start_gateways(
    compared: Sequence[Gateway], mock: Running, core: int, running: contextlib.ExitStack, left_out: dict[str, str]
) -> list[Running]:
    serving: list[Running] = []
    for gateway in compared:
        try:
            serving.append(start_gateway(gateway, mock, core, running))
        except machine.NotReady as error:
            leave_out(gateway.name, error, left_out)
    return serving


def leave_out(name: str, error: machine.NotReady, left_out: dict[str, str]) -> None:
    if name in PILLARS:
        raise error
    left_out[name] = str(error).splitlines()[0]
    print(f"left out: {name}: {error}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def leaving_out(what: str, left_out: dict[str, str]) -> Iterator[None]:
    """What cannot be measured now costs nothing that has been: an hour's figures are worth keeping."""
    try:
        yield
    except machine.NotReady as error:
        leave_out(what, error, left_out)


def choose_workloads(options: argparse.Namespace) -> list[Workload]:
    table = workloads.LONG_TABLE if options.long else workloads.TABLE
    chosen = [workload for workload in table if workload.name.startswith(options.only)]
    if not chosen:
        raise machine.NotReady(
            f"no workload begins with {options.only!r}; there are: {'; '.join(each.name for each in table)}"
        )
    return chosen


def start_mock(program: Path, core: int, running: contextlib.ExitStack) -> Running:
    return gateways.serve("mock", lambda port, _: [program, str(port)], core, running)


def start_gateway(gateway: Gateway, mock: Running, core: int, running: contextlib.ExitStack) -> Running:
    def command(port: int, folder: Path) -> list[str | Path]:
        words = gateway.command(port, mock.port, folder)
        print(f"starting {gateway.name} {gateway.version}: {shlex.join(map(str, words))}", flush=True)
        return words

    return gateways.serve(gateway.name, command, core, running)


def take_turns(
    chosen: Sequence[Workload],
    serving: Sequence[Running],
    options: argparse.Namespace,
    measure: Callable[[Workload, Running, float], Sample],
    left_out: dict[str, str],
) -> list[Sample]:
    """Each workload after the other: first a warm-up of every gateway, then the rounds, A B A B.

    A peer that fails a workload already in the warm-up has no figure for it, and the report says so.
    """
    samples: list[Sample] = []
    for workload in chosen:
        able: list[Running] = []
        for gateway in serving:
            sample = measure(workload, gateway, WARM_UP_S)
            if sample.load["ok"] and not sample.load["errors"] and not sample.load["hung"]:
                able.append(gateway)
                continue
            shown = {key: sample.load[key] for key in ("ok", "errors", "hung", "last_bad_status")}
            failed = machine.NotReady(f"fails in the warm-up: {shown}\nIts output ends with:\n{gateway.last_words()}")
            if gateway.name in PILLARS:
                raise failed
            leave_out(f"{gateway.name}, {workload.name}", failed, left_out)
        for turn in range(options.rounds):
            for gateway in able:
                sample = measure(workload, gateway, options.seconds)
                samples.append(sample)
                cost = f"{sample.cpu_us_per_unit:8.2f} µs/{workload.unit}"
                print(f"{workload.name:19} {turn + 1}/{options.rounds} {gateway.name:13} {cost}", flush=True)
    return samples


if __name__ == "__main__":
    sys.exit(main())
