"""Servers that break the rules, cannot be reached, or all fail at once. Rows C13, C14, C20."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time

import psutil
import pytest

from calls import post_form
from chaos.conftest import Row, Scale
from crowd import arrive, ask, outcomes, percentile
from processes import REPOSITORY, Kernel, Process, Stage, until

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("chaos-upstreams")]
ORACLE = str(REPOSITORY / "tests" / "oracle.py")
HOSTILE = str(REPOSITORY / "tests" / "fakes" / "hostile_upstream.py")

ODD_STATUSES = ["418", "444", "460", "507", "521", "530", "561", "599"]
BEFORE_CONTENT = [
    "garbage",
    "bad_first_chunk",
    "html",
    "two_lengths",
    "endless_head",
    "error_event",
    "failing",
    "reset",
    *ODD_STATUSES,
]
MIDWAY = ["bad_chunk", "early_end", "clean_end_without_finish", "endless_line", "huge_event"]


def hostile(stage: Stage, kind: str) -> tuple[Process, str]:
    port = stage.port()
    process = stage.process([sys.executable, HOSTILE, str(port), kind], name=f"hostile-{kind}")
    base = f"http://127.0.0.1:{port}/v1"

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    process.wait_for(listens, "it listened")
    return process, base


async def test_c13_what_is_no_answer_never_reaches_the_client(stage: Stage, row: Row) -> None:
    kinds = BEFORE_CONTENT + MIDWAY
    flags = [flag for kind in kinds for flag in ("--upstream", f"{kind}={hostile(stage, kind)[1]}")]
    kernel = stage.kernel(*flags)
    memory = psutil.Process(kernel.process.pid).memory_info
    until(lambda: all(kernel.ready(kind) for kind in kinds), "all were ready")
    before = memory().rss
    for kind in kinds:
        entry = await ask(kernel.port, "r", model=kind, timeout_s=20)
        if kind in BEFORE_CONTENT:
            assert entry.status in ((int(kind),) if kind in ODD_STATUSES else (500, 502)), (kind, entry)
            assert entry.error, (kind, entry)
        else:
            # What comes in one read with the broken part may be dropped with it.
            assert (entry.status, entry.text) in ((200, "word "), (502, "")), (kind, entry)
            assert entry.error in ("bad_upstream", "upstream_lost"), (kind, entry)
    grown = (memory().rss - before) / 1e6
    row("C13 broken answers", f"{len(kinds)} kinds", f"502 or an error event each, kernel {grown:+.0f} MB")
    assert grown < 30


async def test_c13_the_breaker_opens_and_closes_again(stage: Stage, row: Row) -> None:
    _, bad = hostile(stage, "garbage")
    kernel = stage.kernel("--upstream", f"oracle={bad}")
    stage.executor(ORACLE, kernel=kernel, access_code="oracle")
    until(lambda: kernel.ready("oracle", 2), "both were ready")
    entries = [await ask(kernel.port, f"r{n}", tokens=1) for n in range(12)]
    states = sorted(replica["state"] for replica in kernel.replicas("oracle"))
    row("C13 breaker", "one of two sends garbage, 12 requests", f"{dict(outcomes(entries))}, states {states}")
    assert outcomes(entries) == {"whole": 12}
    assert states == ["ejected", "ready"]


async def test_c14_a_replica_that_cannot_be_reached_costs_two_seconds_at_most(stage: Stage, row: Row) -> None:
    """A listener whose backlog is full takes no connection and refuses none."""
    hole = socket.socket()
    hole.bind(("127.0.0.1", 0))
    hole.listen(0)
    address = hole.getsockname()
    fillers = [socket.socket() for _ in range(4)]
    try:
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        _, reset = hostile(stage, "reset")
        kernel = stage.kernel()
        stage.executor(ORACLE, kernel=kernel, access_code="oracle")
        _register(kernel, f"http://127.0.0.1:{address[1]}/v1")
        entries = [await ask(kernel.port, f"r{n}", tokens=1) for n in range(6)]
        slowest = max(entry.seconds for entry in entries)
        _register(kernel, reset, "exe_reset")
        entries += [await ask(kernel.port, f"q{n}", tokens=1) for n in range(6)]
    finally:
        for one in [hole, *fillers]:
            one.close()
    row("C14 black hole, reset", f"{len(entries)} requests", f"{dict(outcomes(entries))}, slowest {slowest:.2f} s")
    assert outcomes(entries) == {"whole": 12}
    assert slowest <= 2.5


def _register(kernel: Kernel, base_url: str, executor_id: str = "exe_hole") -> None:
    endpoint = base_url.removesuffix("/v1") + "/chat"
    fields = {
        "executor_id": executor_id,
        "incarnation": 1,
        "access_codes": ["oracle"],
        "dialects": {"openai": base_url, "v1.0": endpoint},
        "concurrency": 64,
    }
    form = {"name": "oracle", "endpoint": endpoint, "kuwa": json.dumps(fields)}
    answer = post_form(kernel.url + "/v1.0/worker/register", form, {"accept": "application/json"})
    assert answer.status == 200, answer


async def test_c14_a_host_that_vanished_is_found_within_six_seconds(stage: Stage, row: Row) -> None:
    _, base = hostile(stage, "vanish")
    kernel = stage.kernel("--upstream", f"lost={base}")
    until(lambda: kernel.ready("lost"), "it was ready")
    entry = await ask(kernel.port, "r", model="lost", timeout_s=20)
    silent = entry.ended - entry.first_at
    row("C14 half-open connection", "its peer vanished without a word", f"{entry.error} after {silent:.1f} s")
    assert entry.error == "upstream_lost"
    assert silent <= 6.5


async def test_c20_when_all_fail_they_are_not_asked_more_often(stage: Stage, row: Row, scale: Scale) -> None:
    count = scale.of(200, 2000)
    failing = [hostile(stage, "failing") for _ in range(3)]
    kernel = stage.kernel(*[flag for _, base in failing for flag in ("--upstream", f"oracle={base}")])
    until(lambda: kernel.ready("oracle", 3), "all were taken for well")
    entries = await arrive(kernel.port, 100, count / 100, "r", tokens=1, timeout_s=10)
    asked = sum(process.log.count("asked") for process, _ in failing)
    slowest = percentile([entry.seconds for entry in entries], 0.99)
    found = outcomes(entries)
    executor = stage.executor(ORACLE, kernel=kernel, access_code="oracle")
    began = time.monotonic()
    while (await ask(kernel.port, "again", tokens=1)).outcome != "whole":
        assert time.monotonic() - began < 10
        await asyncio.sleep(0.05)
    recovered = time.monotonic() - began
    row(
        "C20 all fail",
        f"{count} requests to 3 replicas",
        f"{asked / count:.2f} calls each, {dict(found)} within {slowest * 1000:.0f} ms (p99), "
        f"back in {recovered:.2f} s",
    )
    # Until each of the three has failed three times, it may be the request's bad luck: 502. Then it is 503.
    assert {entry.status for entry in entries} <= {502, 503}
    assert found["bad_upstream"] <= 9
    assert all(int(entry.retry_after) >= 1 for entry in entries if entry.status == 503)
    assert asked <= 1.2 * count
    assert slowest <= (0.1 if scale.full else 0.5)
    assert recovered <= 2
    assert executor.process.exit_code is None
