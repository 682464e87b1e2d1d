"""Clients that leave, dawdle, flood, or never say what they want. Rows C8, C9, C11, C12, C15, C22; the fair queue."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time

import psutil
import pytest

from calls import fetch, post_json, stream_chat
from chaos.conftest import Row, Scale
from crowd import arrive, ask, keep_asking, outcomes, percentile
from processes import REPOSITORY, Kernel, Stage, until

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("chaos-clients")]
ORACLE = str(REPOSITORY / "tests" / "oracle.py")


def replica(stage: Stage, kernel: Kernel, *flags: str) -> None:
    stage.executor(ORACLE, *flags, kernel=kernel, access_code="oracle")


async def idle(kernel: Kernel, timeout_s: float = 10.0) -> None:
    await asyncio.to_thread(until, lambda: kernel.idle("oracle"), "no slot was held", timeout_s=timeout_s)


async def test_c8_clients_leave_at_any_moment(
    stage: Stage, kernel: Kernel, row: Row, scale: Scale, leaves_nothing: None
) -> None:
    count = scale.of(200, 1000)
    replica(stage, kernel, "--concurrency", "8")
    await keep_asking(kernel.port, count // 2, 24, "s", tokens=50, delay=0.005, leave_after=2)
    begun = [
        asyncio.create_task(ask(kernel.port, f"w{n}", tokens=2000, stream=n % 2 == 0, prefill=60.0, timeout_s=0.3))
        for n in range(count // 2)
    ]
    await asyncio.gather(*begun)
    left = time.monotonic()
    await idle(kernel)
    took = time.monotonic() - left
    assert kernel.metric("kuwa_queue_depth", access_code="oracle") == 0
    fine = await ask(kernel.port, "fine", tokens=3)
    row(
        "C8 clients leave",
        f"{count}: streaming, queued, in prefill",
        f"all slots free {took * 1000:.0f} ms after the last",
    )
    assert fine.outcome == "whole"
    assert took <= 1.0


def test_c8_a_request_is_cancelled_by_its_id(stage: Stage, kernel: Kernel, row: Row) -> None:
    replica(stage, kernel, "--concurrency", "1")
    script = {"tokens": 2000, "delay": 0.01}
    with (
        stream_chat(kernel.url, "oracle", "go", oracle=script, user="ann") as running,
        stream_chat(kernel.url, "oracle", "go", {"x-kuwa-progress": "1"}, oracle=script, user="bob") as queued,
    ):
        running.first_text()
        first_id, queued_id = running.header("x-kuwa-request-id"), queued.header("x-kuwa-request-id")

        def cancel(request_id: str | None, user: str) -> int:
            return post_json(f"{kernel.url}/v1/requests/{request_id}/cancel", {"user": user}).status

        assert cancel(queued_id, "ann") == 404
        assert cancel("req_none", "ann") == 404
        assert fetch(f"{kernel.url}/v1/requests/{queued_id}").json()["state"] == "queued"
        assert cancel(queued_id, "bob") == 200
        assert list(queued.events())[-1]["error"]["code"] == "request_cancelled"
        assert kernel.running("oracle") == 1
        began = time.monotonic()
        assert cancel(first_id, "ann") == 200
        until(lambda: kernel.idle("oracle"), "the slot was freed", every_s=0.001)
        took = time.monotonic() - began
        assert list(running.events())[-1]["error"]["code"] == "request_cancelled"
    row("C8 cancel by id", "one running, one queued", f"slot free after {took * 1000:.0f} ms; a stranger gets 404")
    assert took <= 0.1


async def test_the_waiting_is_told_to_who_asks_for_it(stage: Stage, kernel: Kernel) -> None:
    replica(stage, kernel, "--concurrency", "1")
    first = asyncio.create_task(ask(kernel.port, "first", tokens=300, delay=0.01))
    await asyncio.to_thread(until, lambda: kernel.running("oracle"), "the slot was taken")
    told = await ask(kernel.port, "told", tokens=2, prefill=1.6, headers={"x-kuwa-progress": "1"})
    assert any(comment.startswith("queued position=0 wait_s=") for comment in told.comments), told.comments
    assert any(comment.startswith("running wait_s=") for comment in told.comments), told.comments
    told.check()
    assert (await first).outcome == told.outcome == "whole"


async def test_c9_slow_readers_hold_up_nobody_and_little_memory(
    stage: Stage, kernel: Kernel, row: Row, scale: Scale, leaves_nothing: None
) -> None:
    count = scale.of(60, 500)
    replica(stage, kernel, "--concurrency", str(count + 8))
    calm = await keep_asking(kernel.port, 60, 4, "calm", tokens=5, delay=0.002)
    before = psutil.Process(kernel.process.pid).memory_info().rss
    slow: list[socket.socket] = []
    body = (
        b'{"model":"oracle","stream":true,"messages":[{"role":"user","content":"go"}],'
        b'"oracle":{"tokens":100000,"delay":0,"chunk":200}}'
    )
    for _ in range(count):
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.connect(("127.0.0.1", kernel.port))
        one.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body))
        one.sendall(body)
        slow.append(one)
    # First what they cause while their buffers fill, then what others see beside them.
    await asyncio.sleep(scale.of(4, 15))
    beside = await keep_asking(kernel.port, 60, 4, "beside", tokens=5, delay=0.002)
    held = (psutil.Process(kernel.process.pid).memory_info().rss - before) / count / 1024
    end = "left by themselves"
    if scale.full:
        began = time.monotonic()
        await idle(kernel, 60)
        end = f"cut {time.monotonic() - began + 15:.0f} s after they began"
    for one in slow:
        one.close()
    await idle(kernel)
    p99 = [percentile([entry.seconds for entry in entries], 0.99) for entries in (calm, beside)]
    row(
        "C9 slow readers",
        f"{count} that read nothing",
        f"{held:.0f} KiB each, {end}; others' p99 {p99[0] * 1000:.0f} -> {p99[1] * 1000:.0f} ms",
    )
    assert {entry.outcome for entry in beside} == {"whole"}
    assert held <= 700


async def test_c11_ten_times_as_many_as_can_be_served(
    stage: Stage, kernel: Kernel, row: Row, scale: Scale, leaves_nothing: None
) -> None:
    """Capacity: 8 slots of 0.1 s each, 80 requests a second. The queue is what one principal may fill."""
    seconds = scale.of(6, 60)
    replica(stage, kernel, "--concurrency", "8")
    script = {"tokens": 1, "delay": 0.1}
    alone = await keep_asking(kernel.port, 160, 8, "alone", **script)
    capacity = len(alone) / (max(e.ended for e in alone) - min(e.started for e in alone))
    began = time.monotonic()
    entries = await arrive(kernel.port, scale.of(200, 400), seconds, "r", **script)
    took = max(entry.ended for entry in entries) - began
    refused = [entry for entry in entries if entry.status == 429]
    whole = [entry for entry in entries if entry.outcome == "whole"]
    goodput = len(whole) / took / capacity
    began = time.monotonic()
    after = await ask(kernel.port, "after", **script)
    slowest = percentile([entry.seconds for entry in refused], 0.99)
    row(
        "C11 overload",
        f"{len(entries)} requests in {seconds} s, {capacity:.0f}/s can be served",
        f"{len(whole)} whole, {len(refused)} refused within {slowest * 1000:.0f} ms (p99), goodput {goodput:.0%}, "
        f"after it {after.seconds:.2f} s",
    )
    assert len(whole) + len(refused) == len(entries), outcomes(entries)
    assert all(int(entry.retry_after) >= 1 for entry in refused)
    assert refused
    assert goodput >= 0.9
    assert after.seconds <= 2


async def test_one_principals_many_do_not_delay_the_others(
    stage: Stage, kernel: Kernel, row: Row, scale: Scale
) -> None:
    replica(stage, kernel, "--concurrency", "4")
    service_s = 0.1
    script = {"tokens": 1, "delay": service_s}
    one_each = [{"user": f"u{n}", "model": "oracle"} for n in range(30)]

    async def thirty(name: str) -> float:
        asked = [ask(kernel.port, f"{name}{n}", body=body, **script) for n, body in enumerate(one_each)]
        return percentile([entry.seconds for entry in await asyncio.gather(*asked)], 0.95)

    alone = await thirty("alone")
    greedy = [asyncio.create_task(ask(kernel.port, f"g{n}", body={"user": "greedy"}, **script)) for n in range(500)]
    await asyncio.to_thread(
        until, lambda: kernel.metric("kuwa_queue_depth", access_code="oracle") >= 400, "they waited"
    )
    beside = await thirty("beside")
    row("fair queue", "500 of one, 30 others, 4 slots", f"p95 of the 30: {alone:.2f} s alone, {beside:.2f} s beside")
    for task in greedy:
        task.cancel()
    await asyncio.gather(*greedy, return_exceptions=True)
    assert beside <= 2 * alone + service_s


async def test_c12_silent_and_creeping_connections_are_closed(
    stage: Stage, kernel: Kernel, row: Row, scale: Scale, leaves_nothing: None
) -> None:
    count = scale.of(200, 2000)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n"

    async def connection(number: int) -> float:
        reader, writer = await asyncio.open_connection("127.0.0.1", kernel.port)
        began = time.monotonic()
        kind = number % 3 if scale.full else number % 2  # a body may take 30 s, which is long for every test run
        writer.write([b"", head[:20], head + b"\r\n{"][kind])
        creeping = asyncio.create_task(_creep(writer))
        with contextlib.suppress(OSError):
            while await reader.read(4096):
                pass
        creeping.cancel()
        writer.transport.abort()
        return (1 if kind == 2 else -1) * (time.monotonic() - began)

    open_ones = [asyncio.create_task(connection(number)) for number in range(count)]
    health: list[float] = []
    while not all(task.done() for task in open_ones):
        began = time.monotonic()
        assert (await asyncio.to_thread(fetch, kernel.url + "/livez")).status == 200
        health.append(time.monotonic() - began)
        await asyncio.sleep(0.1)
    times = [task.result() for task in open_ones]
    heads, bodies = max(-t for t in times if t < 0), max((t for t in times if t > 0), default=0.0)
    p99 = percentile(health, 0.99)
    row(
        "C12 silent connections",
        f"{count}: nothing, half a head, a creeping body",
        f"closed after {heads:.1f} s and {bodies:.1f} s; health p99 {p99 * 1000:.0f} ms",
    )
    assert heads <= 14  # 10 s, then the answer lingers for a client that still sends
    assert bodies <= 34


async def _creep(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while True:
            await asyncio.sleep(5)
            writer.write(b"x")


async def test_c15_a_kernel_that_runs_out_of_files_recovers(stage: Stage, row: Row) -> None:
    port = stage.port()
    # The limit is the shell's to set, so that it holds for the kernel alone.
    argv = ["/bin/sh", "-c", f"ulimit -n 256; exec {sys.executable} -m kuwa.kernel.cli --port {port}"]
    process = stage.process(argv, name="kernel-256", tolerates_tracebacks=True)
    kernel = Kernel(process, port)
    process.wait_for(lambda: _live(kernel), "it answered")
    replica(stage, kernel)
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(400)]
    await asyncio.sleep(1)
    busy = psutil.Process(process.pid).cpu_percent(interval=1.0)
    for one in held:
        one.close()
    began = time.monotonic()
    await asyncio.to_thread(until, lambda: _live(kernel), "it answered again", timeout_s=15)
    entry = await ask(port, "again", tokens=2)
    row(
        "C15 256 files",
        "400 connections",
        f"{busy:.0f} % CPU meanwhile, answers again after {time.monotonic() - began:.1f} s",
    )
    assert entry.outcome == "whole"
    assert busy < 60


def _live(kernel: Kernel) -> bool:
    try:
        return fetch(kernel.url + "/livez", timeout_s=2).status == 200
    except OSError:
        return False


async def test_c22_long_streams_dropped_at_once_do_not_hold_up_the_loop(
    stage: Stage, kernel: Kernel, row: Row, leaves_nothing: None
) -> None:
    replica(stage, kernel, "--concurrency", "64")
    streams = [
        asyncio.create_task(ask(kernel.port, f"big{n}", tokens=60_000, chunk=500, delay=0, timeout_s=3))
        for n in range(30)
    ]
    await asyncio.gather(*streams)
    lags: list[float] = []
    for _ in range(40):
        began = time.monotonic()
        assert (await asyncio.to_thread(fetch, kernel.url + "/livez")).status == 200
        lags.append(time.monotonic() - began)
    p99 = percentile(lags, 0.99)
    row("C22 long streams dropped", "30 at once", f"health p99 {p99 * 1000:.0f} ms right after")
    assert p99 <= 0.25
    await idle(kernel)
