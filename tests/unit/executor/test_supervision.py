"""An engine in a process of its own: started again when it dies, whatever is in the way, until it is given up aloud."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from kuwa.executor import supervision
from kuwa.executor.supervision import Child, Supervisor
from kuwa.wire.errors import EngineLost

ENGINE = """
import json, sys
told = json.loads(sys.stdin.readline())
print("loading", told["model"], file=sys.stderr, flush=True)
print(json.dumps({"url": "http://127.0.0.1:1", "system": told["model"]}), flush=True)
sys.stdin.read()
"""
IN_TIME_S = 30.0

pytestmark = pytest.mark.anyio

Start = Callable[[], Awaitable[Child]]


class Told(msgspec.Struct):
    model: str


@pytest.fixture
def start_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    (tmp_path / "engine_of_a_test.py").write_text(ENGINE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def start() -> Awaitable[Child]:
        return Child.start("engine_of_a_test", Told("small"), name="test", api_key="k", cause=re.compile("error: "))

    return start


async def comes_back(engine: Supervisor) -> Child:
    """Kill the child that answers now, and wait for the next one that does."""
    first = engine.child()
    os.kill(first.pid, signal.SIGKILL)
    while True:
        with suppress(EngineLost):
            if (child := engine.child()) is not first:
                return child
        await asyncio.sleep(0.01)


async def test_an_engine_that_is_killed_is_started_again(start_child: Start) -> None:
    engine = Supervisor("test", "small", start_child)
    await engine.start()
    try:
        child = await asyncio.wait_for(comes_back(engine), IN_TIME_S)
        assert child.alive
        assert engine.system == "small"
    finally:
        await engine.stop()
    assert not child.alive


async def test_a_start_that_fails_in_a_way_nobody_foresaw_is_tried_again(
    start_child: Start, caplog: pytest.LogCaptureFixture
) -> None:
    starts = 0

    async def start() -> Child:
        nonlocal starts
        starts += 1
        if starts == 2:
            raise RuntimeError("the loop is in a mood")
        return await start_child()

    engine = Supervisor("test", "small", start)
    await engine.start()
    try:
        child = await asyncio.wait_for(comes_back(engine), IN_TIME_S)
        assert child.alive
        assert starts == 3
        assert "the loop is in a mood" in caplog.text
    finally:
        await engine.stop()


async def test_an_engine_that_cannot_be_started_any_more_is_given_up_aloud(
    start_child: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "LAST_BACKOFF_S", 0.0)
    well = True

    async def start() -> Child:
        if not well:
            raise RuntimeError("the loop is in a mood")
        return await start_child()

    engine = Supervisor("test", "small", start)
    given_up: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    engine.gave_up = given_up.set_result
    await engine.start()
    try:
        well = False
        os.kill(engine.child().pid, signal.SIGKILL)
        reason = await asyncio.wait_for(given_up, IN_TIME_S)
        assert "given up after 8 starts in a row" in reason
        assert "the loop is in a mood" in reason
        with pytest.raises(EngineLost, match="given up"):
            engine.child()
    finally:
        await engine.stop()
