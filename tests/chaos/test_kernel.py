"""The kernel itself dies, drains, restarts, loses the time of day, or runs for long. Rows C5, C6, C17, C21."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from calls import fetch
from chaos.conftest import Footprint, Row, Scale, watching
from crowd import Entry, arrive, ask, keep_asking, outcomes
from processes import REPOSITORY, Kernel, Process, Stage, until

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("chaos-kernel")]
ORACLE = str(REPOSITORY / "tests" / "oracle.py")
FAKES = REPOSITORY / "tests" / "fakes"


def test_c5_fifty_executors_are_back_after_the_kernel_was_killed(
    stage: Stage, kernel: Kernel, row: Row, scale: Scale
) -> None:
    """Fifty leases, of which as many as the scale says are processes of their own."""
    count = scale.of(4, 50)
    for _ in range(count):
        stage.executor("debug", kernel=kernel, access_code="parrot", wait=False)
    if count < 50:
        leases = [sys.executable, str(FAKES / "leases.py"), kernel.url + "/", str(50 - count)]
        stage.process(leases, name="leases")
    until(lambda: kernel.ready("parrot", 50), "all were there", timeout_s=90, every_s=0.2)
    ids = {replica["id"] for replica in kernel.replicas("parrot")}
    times: list[float] = []
    for _ in range(scale.of(2, 10)):
        kernel.process.kill()
        kernel = stage.kernel(port=kernel.port)
        listening = time.monotonic()
        until(lambda again=kernel: again.ready("parrot", 50), "all were back", timeout_s=10, every_s=0.05)
        times.append(time.monotonic() - listening)
        assert {replica["id"] for replica in kernel.replicas("parrot")} == ids
    row(
        "C5 kernel killed",
        f"{len(times)} times, 50 executors, {count} of them processes",
        f"all back within {max(times):.1f} s, same ids",
    )
    assert max(times) <= (3 if scale.full else 6)


async def test_c6_a_kernel_that_is_told_to_stop_loses_nothing_that_it_admitted(
    stage: Stage, kernel: Kernel, row: Row, scale: Scale
) -> None:
    stage.executor(ORACLE, kernel=kernel, access_code="oracle")
    per_second = scale.of(60, 200)
    load = asyncio.create_task(arrive(kernel.port, per_second, 3.0, "r", tokens=20, delay=0.04))
    with watching(stage, kernel, "/readyz") as watch:
        await asyncio.sleep(1.5)
        kernel.process.send(signal.SIGTERM)
        told = time.monotonic()
        entries = await load
        unready = next(seen.at for seen in watch.sights() if seen.status == 503 and seen.at > told) - told
    for entry in entries:
        if entry.status:
            entry.check()
    found = outcomes(entries)
    code = await asyncio.to_thread(kernel.process.wait)
    row(
        "C6 SIGTERM under load",
        f"{per_second}/s",
        f"{dict(found)}, /readyz 503 after {unready * 1000:.0f} ms, exit {code}",
    )
    assert set(found) <= {"whole", "draining", "unconnected"}
    assert found["whole"] >= 1.2 * per_second
    assert found["draining"] > 0
    assert unready <= (0.1 if scale.full else 1.0)
    assert code == 0


async def test_c6_at_the_deadline_the_rest_is_told(stage: Stage, row: Row) -> None:
    kernel = stage.kernel("--drain_s", "1")
    stage.executor(ORACLE, kernel=kernel, access_code="oracle")
    long = [asyncio.create_task(ask(kernel.port, f"r{n}", tokens=5000, delay=0.02)) for n in range(5)]
    await asyncio.to_thread(until, lambda: kernel.running("oracle") == 5, "they ran")
    began = time.monotonic()
    await asyncio.to_thread(kernel.process.stop)
    took = time.monotonic() - began
    entries = await asyncio.gather(*long)
    row("C6 hard stop", "5 streams, deadline 1 s", f"{dict(outcomes(entries))} after {took:.1f} s")
    assert outcomes(entries) == {"draining": 5}
    assert took <= 3


async def test_c6_a_restart_on_an_inherited_socket_is_no_gap_to_clients(stage: Stage, row: Row, scale: Scale) -> None:
    port = stage.port()
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(1024)
    os.set_inheritable(listener.fileno(), True)

    def start() -> Process:
        command = f"exec {sys.executable} -m kuwa.kernel.cli --listen_fd {listener.fileno()}"
        return stage.process(["/bin/sh", "-c", command], name="kernel", inherited=(listener.fileno(),))

    process = start()
    kernel = Kernel(process, port)
    try:
        process.wait_for(lambda: _live(kernel), "it answered")
        stage.executor(ORACLE, kernel=kernel, access_code="oracle")
        load = asyncio.create_task(arrive(port, 40, scale.of(8, 20), "r", tokens=20, delay=0.02))
        await asyncio.sleep(2)
        process.send(signal.SIGTERM)
        successor = start()
        entries = await load
        first = await asyncio.to_thread(process.wait)
    finally:
        listener.close()
    for entry in entries:
        entry.check()
    slowest = max(entry.first_at - entry.started for entry in entries)
    row(
        "C6 restart, socket kept",
        f"{len(entries)} requests",
        f"{dict(outcomes(entries))}, longest wait {slowest:.1f} s",
    )
    assert outcomes(entries) == {"whole": len(entries)}
    assert first == 0
    assert successor.exit_code is None


def _live(kernel: Kernel) -> bool:
    try:
        return fetch(kernel.url + "/livez", timeout_s=2).status == 200
    except OSError:
        return False


@pytest.mark.skipif(shutil.which("cc") is None, reason="the clock is moved by a few lines of C")
async def test_c17_the_time_of_day_may_jump(stage: Stage, row: Row, scale: Scale) -> None:
    library, clock = stage.folder / "clock.so", stage.folder / "clock"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, str(FAKES / "clock.c")], check=True)
    clock.write_text("0")
    moved = {"LD_PRELOAD": str(library), "KUWA_TEST_CLOCK": str(clock)}
    kernel = stage.kernel(**moved)
    stage.executor(ORACLE, kernel=kernel, access_code="oracle", **moved)
    entries: list[Entry] = []
    for number, day in enumerate((86_400, -86_400, 0)):
        under_way = asyncio.create_task(ask(kernel.port, f"long{number}", tokens=100, delay=0.02))
        await asyncio.sleep(0.3)
        clock.write_text(str(day))
        entries += [await ask(kernel.port, f"r{number}.{n}", tokens=3) for n in range(3)]
        await asyncio.sleep(scale.of(2, 8))
        assert kernel.ready("oracle")
        entries.append(await under_way)
    row("C17 clock", "a day ahead, a day back, right again", f"{dict(outcomes(entries))}, lease kept")
    assert outcomes(entries) == {"whole": 12}


async def test_c21_hours_of_it(stage: Stage, kernel: Kernel, row: Row, scale: Scale) -> None:
    """Executors killed, clients leaving, all the time; what the kernel holds does not grow."""
    minutes = scale.soak_minutes if scale.full else 0.3
    executors = [stage.executor(ORACLE, "--concurrency", "8", kernel=kernel, access_code="oracle") for _ in range(2)]
    chance = random.Random(21)  # noqa: S311 - seeded
    await keep_asking(kernel.port, 200, 12, "warm", tokens=5, delay=0.005)
    base = Footprint.of(kernel)
    samples: list[tuple[float, float]] = []
    asked = kills = 0
    seen: set[str] = set()
    began = time.monotonic()
    while time.monotonic() - began < minutes * 60:
        burst = asyncio.gather(
            keep_asking(kernel.port, 100, 8, f"a{asked}.", tokens=10, delay=0.01),
            keep_asking(kernel.port, 50, 4, f"b{asked}.", tokens=50, delay=0.01, leave_after=1 + chance.randrange(20)),
        )
        await asyncio.sleep(0.5)
        place = chance.randrange(2)
        await asyncio.to_thread(executors[place].process.kill)
        kills += 1
        executors[place] = await asyncio.to_thread(
            lambda place=place: stage.executor(
                ORACLE,
                "--concurrency",
                "8",
                kernel=kernel,
                access_code="oracle",
                port=executors[place].port,
            )
        )
        for entries in await burst:
            asked += len(entries)
            for entry in entries:
                entry.check()
                seen.add(entry.outcome)
        samples.append((time.monotonic() - began, Footprint.of(kernel).rss_mb))
    until(lambda: kernel.idle("oracle"), "no slot was held")
    until(lambda: Footprint.of(kernel).fds <= base.fds + 4, "its files were closed", timeout_s=45)
    after = Footprint.of(kernel)
    slope = _slope(samples[len(samples) // 4 :]) * 600
    row(
        "C21 soak",
        f"{minutes:g} min, {asked} requests, {kills} kills",
        f"{sorted(seen)}, RSS {base.rss_mb:.0f} -> {after.rss_mb:.0f} MB ({slope:+.1f} MB/10 min), "
        f"fds {base.fds} -> {after.fds}, threads {base.threads} -> {after.threads}, "
        f"tasks {base.tasks} -> {after.tasks}",
    )
    assert seen <= {"whole", "left", "upstream_lost", "request_quarantined"}
    assert after.threads <= base.threads + 1
    assert after.tasks <= base.tasks + 1
    if scale.full:
        assert slope <= 1
    assert after.rss_mb <= base.rss_mb + 40


def _slope(samples: list[tuple[float, float]]) -> float:
    """Least squares, in units of the second per unit of the first."""
    if len(samples) < 2:
        return 0.0
    mean_x = sum(x for x, _ in samples) / len(samples)
    mean_y = sum(y for _, y in samples) / len(samples)
    spread = sum((x - mean_x) ** 2 for x, _ in samples)
    return sum((x - mean_x) * (y - mean_y) for x, y in samples) / spread if spread else 0.0
