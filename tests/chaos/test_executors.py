"""Executors that die, freeze, restart, or meet a request that kills them. Rows C1 to C4, C7, C18, C19."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import signal
import time
from collections.abc import Callable

import pytest

from calls import chat, post_form, stream_chat
from chaos.conftest import Allowance, Row, Scale
from crowd import Entry, arrive, ask, keep_asking, outcomes, percentile
from processes import REPOSITORY, Executor, Kernel, Stage, until

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("chaos-executors")]
ORACLE = str(REPOSITORY / "tests" / "oracle.py")


def replica(stage: Stage, kernel: Kernel, *flags: str, port: int | None = None, wait: bool = True) -> Executor:
    return stage.executor(ORACLE, *flags, kernel=kernel, access_code="oracle", port=port, wait=wait)


def state_of(kernel: Kernel, executor: Executor) -> str:
    return next((r["state"] for r in kernel.replicas("oracle") if f":{executor.port}/" in r["endpoint"]), "gone")


def sent_again(kernel: Kernel) -> float:
    """How many requests and streams were given to another replica so far."""
    return kernel.metric("kuwa_retries_total") + kernel.metric("kuwa_resumes_total")


async def soon(condition: Callable[[], bool], what: str, timeout_s: float) -> float:
    """How long it took until `condition` held."""
    began = time.monotonic()
    await asyncio.to_thread(until, condition, what, timeout_s=timeout_s)
    return time.monotonic() - began


async def test_c1_executors_are_killed_one_after_another(
    stage: Stage, kernel: Kernel, row: Row, scale: Scale, leaves_nothing: Allowance
) -> None:
    count = scale.of(600, 10_000)
    executors = [replica(stage, kernel, "--concurrency", "8") for _ in range(4)]
    calm = await keep_asking(kernel.port, count // 4, 12, "calm", tokens=8, delay=0.01, prefill=0.05)
    chance = random.Random(1)  # noqa: S311 - seeded, so that a failure comes again
    kills = 0
    stop = asyncio.Event()

    async def killer() -> None:
        nonlocal kills
        while not stop.is_set():
            place = chance.randrange(len(executors))
            victim = executors[place]
            await asyncio.to_thread(victim.process.kill)
            kills += 1
            executors[place] = await asyncio.to_thread(
                replica, stage, kernel, "--concurrency", "8", port=victim.port, wait=False
            )
            await asyncio.sleep(2)

    killing = asyncio.create_task(killer())
    entries = await keep_asking(kernel.port, count, 12, "r", tokens=8, delay=0.01, prefill=0.05)
    stop.set()
    await killing
    for entry in entries:
        entry.check()
    failed = [entry for entry in entries if entry.outcome != "whole"]
    without_token = [entry for entry in failed if not entry.text]
    added = percentile([e.seconds for e in entries], 0.99) - percentile([e.seconds for e in calm], 0.99)
    row(
        "C1 executors killed",
        f"{count} requests, {kills} kills",
        f"{len(without_token)} of those without a token failed, {len(failed)} of all, p99 {added * 1000:+.0f} ms",
    )
    assert not without_token, outcomes(without_token)
    assert kills >= 2
    assert added <= 0.5
    await soon(lambda: kernel.ready("oracle", 4), "all were back", 30)


def test_c2_a_stream_that_cannot_go_on_says_so_at_once(
    stage: Stage, kernel: Kernel, row: Row, scale: Scale, leaves_nothing: Allowance
) -> None:
    times: list[float] = []
    port = stage.port()
    for number in range(scale.of(4, 30)):
        executor = stage.executor("debug", "--delay", "0.01", kernel=kernel, access_code="debug", port=port)
        with stream_chat(kernel.url, "debug", f"{number} word " * 300) as stream:
            stream.first_text()
            killed = time.monotonic()
            executor.process.kill()
            events = list(stream.events())
            times.append(time.monotonic() - killed)
        assert events[-1]["error"]["code"] == "upstream_lost"
    row("C2 killed mid-stream", f"{len(times)} streams", f"error event after at most {max(times) * 1000:.0f} ms")
    assert max(times) <= 0.25


@pytest.mark.parametrize("kind", ["greedy", "seeded"])
async def test_c3_streams_outlive_their_executors(
    stage: Stage, kernel: Kernel, row: Row, scale: Scale, leaves_nothing: Allowance, kind: str
) -> None:
    """Streams that began at different moments, half of them on the executor that is killed; with the token ids beside
    the events every other time."""
    wanted, at_once, tokens, delay_s = scale.of(6, 500), 8, 60, 0.005
    executors = [replica(stage, kernel) for _ in range(2)]
    chance = random.Random(3)  # noqa: S311 - seeded
    entries: list[Entry] = []
    kills, resumed = 0, 0.0

    async def one(label: str, wait_s: float) -> Entry:
        await asyncio.sleep(wait_s)
        script = {"seeded": kind == "seeded", "ids": bool(kills % 2)}
        return await ask(kernel.port, label, tokens=tokens, delay=delay_s, body={"seed": 5}, **script)

    while resumed < wanted:
        asked = [asyncio.create_task(one(f"r{kills}.{i}", 0.2 * chance.random())) for i in range(at_once)]
        await asyncio.sleep(0.25 + 0.2 * chance.random())
        place = kills % 2
        await asyncio.to_thread(executors[place].process.kill)
        kills += 1
        entries += await asyncio.gather(*asked)
        executors[place] = await asyncio.to_thread(replica, stage, kernel, port=executors[place].port)
        # A fifth of all requests may be sent again: these are the others.
        entries += await keep_asking(kernel.port, 5 * at_once, 8, f"other{kills}.", tokens=1, delay=0.0)
        resumed = kernel.metric("kuwa_resumes_total")
        assert kills <= wanted, "streams are cut at all"
    assert set(outcomes(entries)) == {"whole"}, outcomes(entries)
    streams = [entry for entry in entries if entry.tokens == tokens]
    for entry in streams:
        entry.check()
        if kind == "seeded":
            draws = [token.partition("~")[2] for token in entry.text.split()]
            assert draws == [hashlib.sha256(f"5/{number}".encode()).hexdigest()[:4] for number in range(tokens)]
    gap = percentile([max(entry.gaps) for entry in streams], 0.99)
    row(
        f"C3 streams resumed, {kind}",
        f"{len(streams)} streams, {resumed:g} of them cut by {kills} kills",
        f"all whole and as without it, gap p99 {gap:.2f} s",
    )
    assert kernel.metric("kuwa_resumes_total", outcome="resumed") == resumed
    assert gap <= (1 if scale.full else 3) + tokens * delay_s


async def test_c4_a_frozen_executor_is_left_alone_and_comes_back(
    stage: Stage, kernel: Kernel, row: Row, scale: Scale, leaves_nothing: Allowance
) -> None:
    frozen, other = replica(stage, kernel), replica(stage, kernel)
    began = [
        asyncio.create_task(ask(kernel.port, f"r{n}", tokens=400, delay=0.02, prefill=3.0 if n % 2 else 0.0))
        for n in range(8)
    ]
    await asyncio.sleep(0.5)
    frozen.process.send(signal.SIGSTOP)
    ejected = await soon(lambda: state_of(kernel, frozen) != "ready", "it was left alone", 10)
    later = [await ask(kernel.port, f"later{n}", tokens=2) for n in range(4)]
    gone = ejected + await soon(lambda: state_of(kernel, frozen) == "gone", "it was given up", 10)
    entries = await asyncio.gather(*began)
    frozen.process.send(signal.SIGCONT)
    back = await soon(lambda: kernel.ready("oracle", 2), "it was back", 10)
    moved = sent_again(kernel)
    after = await asyncio.gather(*(ask(kernel.port, f"after{n}", tokens=50, delay=0.02) for n in range(8)))
    assert sent_again(kernel) == moved, "it is as good as before"
    for entry in [*entries, *later, *after]:
        entry.check()
        assert entry.outcome == "whole", entry
    assert other.process.exit_code is None
    row(
        "C4 frozen executor",
        f"{len(entries)} streams under way",
        f"no requests after {ejected:.1f} s, given up after {gone:.1f} s, all streams whole, back after {back:.1f} s",
    )
    assert ejected <= 5
    assert back <= 3


async def test_c4_a_slow_beginning_and_a_blocked_model_are_no_freeze(stage: Stage, row: Row, scale: Scale) -> None:
    """The deadline is time without progress: a prompt may take longer to read, and silence may not. In short it is
    4 s instead of 120."""
    deadline_s = scale.of(4, 120)
    kernel = stage.kernel(*([] if scale.full else ["--first_token_s", str(deadline_s)]))
    executor = replica(stage, kernel)
    slow_s = deadline_s + 6
    slow = asyncio.create_task(ask(kernel.port, "slow", tokens=2, prefill=slow_s, progress=True, timeout_s=slow_s + 30))
    silent = asyncio.create_task(ask(kernel.port, "silent", tokens=2, prefill=slow_s, timeout_s=slow_s + 30))
    blocked = await ask(kernel.port, "blocked", tokens=1, block=7.0) if scale.full else None
    entry, given_up = await slow, await silent
    row(
        "C4 slow, not frozen",
        f"{slow_s} s before the first token with signs of progress, as long in silence, 7 s blocked",
        f"{entry.outcome} after {entry.seconds:.1f} s, {given_up.error} after {given_up.seconds:.1f} s, "
        f"{blocked.outcome if blocked else 'not tried'}; the executor is {state_of(kernel, executor)}",
    )
    assert entry.outcome == "whole", entry
    assert (given_up.status, given_up.error) == (504, "upstream_timeout"), given_up
    assert deadline_s - 0.5 <= given_up.seconds <= deadline_s + 3  # the kernel looks four times a second
    assert blocked is None or blocked.outcome == "whole", blocked
    assert state_of(kernel, executor) == "ready"


async def test_c7_executors_are_restarted_one_by_one(
    stage: Stage, kernel: Kernel, row: Row, scale: Scale, leaves_nothing: Allowance
) -> None:
    executors = [replica(stage, kernel) for _ in range(scale.of(2, 4))]
    seconds = scale.of(6, 20)
    load = asyncio.create_task(arrive(kernel.port, 40, seconds, "r", tokens=20, delay=0.01))
    for place, executor in enumerate(executors):
        assert await asyncio.to_thread(executor.process.stop) == 0
        executors[place] = await asyncio.to_thread(replica, stage, kernel, port=executor.port)
    entries = await load
    for entry in entries:
        entry.check()
    row("C7 rolling restart", f"{len(executors)} executors, {len(entries)} requests", f"{dict(outcomes(entries))}")
    assert outcomes(entries) == {"whole": len(entries)}


def test_c18_the_newer_process_of_an_executor_wins(stage: Stage, kernel: Kernel, row: Row) -> None:
    """The same id by two processes: the older is refused, its requests run on; the limit is the executor's own."""
    executor = replica(stage, kernel, "--concurrency", "1")
    (known,) = kernel.replicas("oracle")
    executor_id, _, incarnation = known["id"].rpartition(".")

    def register(number: int) -> int:
        fields = {
            "executor_id": executor_id,
            "incarnation": number,
            "access_codes": ["oracle"],
            "dialects": {"openai": executor.url + "/v1", "v1.0": executor.url + "/chat"},
            "concurrency": 1,
        }
        form = {"name": "oracle", "endpoint": executor.url + "/chat", "kuwa": json.dumps(fields)}
        return post_form(kernel.url + "/v1.0/worker/register", form, {"accept": "application/json"}).status

    assert register(int(incarnation) - 1) == 400
    with stream_chat(kernel.url, "oracle", "go", oracle={"tokens": 50, "delay": 0.02}) as stream:
        stream.first_text()
        assert register(int(incarnation) + 1) == 200
        # The kernel counts a free slot there now; the executor holds its limit by itself.
        assert chat(kernel.url, "oracle", "go", oracle={"tokens": 1}).status == 429
        assert len(stream.text().split()) == 49
    row("C18 an id twice", "an older and a newer process", "the older is refused, the newer taken, the limit held")


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("warm", [0, 18], ids=["over new connections", "over kept connections"])
@pytest.mark.parametrize("place", [0, 3])
async def test_c19_a_request_that_kills_kills_no_more_than_two(
    stage: Stage,
    kernel: Kernel,
    row: Row,
    scale: Scale,
    leaves_nothing: Allowance,
    place: int,
    warm: int,
    stream: bool,
) -> None:
    executors = [replica(stage, kernel) for _ in range(6)]
    for entry in await asyncio.gather(*(ask(kernel.port, f"warm {number}", tokens=2) for number in range(warm))):
        assert entry.outcome == "whole"
    poison = {"tokens": 5, "exit_after": place, "stream": stream}
    first = await ask(kernel.port, "poison", **poison)
    again = [await ask(kernel.port, "poison", **poison) for _ in range(5)]
    harmless = await ask(kernel.port, "fine", tokens=3)
    # A process that is ending closes its connections before it has ended.
    await soon(lambda: sum(e.process.exit_code is not None for e in executors) >= 2, "they had ended", 5)
    dead = sum(executor.process.exit_code is not None for executor in executors)
    how = f"{'streamed' if stream else 'whole'}, connections {'kept' if warm else 'new'}"
    row(f"C19 deadly at token {place}", f"6 times to 6 executors, {how}", f"{dead} died, then {again[-1].status}")
    assert dead == 2
    assert first.error == "request_quarantined"
    assert {entry.status for entry in again} == {422}
    assert harmless.outcome == "whole"
