"""Whose fault a failure is: the replica's, the model's at one replica, or the request's."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest

from calls import post_form
from crowd import Entry, ask, outcomes
from processes import REPOSITORY, Kernel, Process, Stage, listens, until

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("blame")]
ORACLE = str(REPOSITORY / "tests" / "oracle.py")
HOSTILE = str(REPOSITORY / "tests" / "fakes" / "hostile_upstream.py")


def states(kernel: Kernel, code: str) -> list[str]:
    return sorted("ejected" if code in replica["ejected"] else replica["state"] for replica in kernel.replicas(code))


async def test_a_thousand_bad_bodies_of_one_client_eject_nobody(stage: Stage, kernel: Kernel) -> None:
    """Every replica fails on them; another client's requests are answered all the while."""
    for _ in range(3):
        stage.executor(ORACLE, kernel=kernel, access_code="oracle").process.tolerates_tracebacks = True
    until(lambda: kernel.ready("oracle", 3), "all were ready")
    seen: set[str] = set()
    good: list[Entry] = []

    async def bad(lane: int) -> list[Entry]:
        return [await ask(kernel.port, f"bad{lane}-{n}", raise_after=0, tokens=1) for n in range(100)]

    async def others() -> None:
        while True:
            good.append(await ask(kernel.port, f"good{len(good)}", tokens=1))
            seen.update(await asyncio.to_thread(states, kernel, "oracle"))

    asking = asyncio.create_task(others())
    answers = [entry for lane in await asyncio.gather(*map(bad, range(10))) for entry in lane]
    asking.cancel()
    assert {entry.status for entry in answers} <= {500, 503}
    assert seen == {"ready"}
    assert good
    assert set(outcomes(good)) == {"whole"}
    assert "ejected" not in kernel.process.log


async def test_one_broken_model_of_two_leaves_the_other_without_an_error(stage: Stage, kernel: Kernel) -> None:
    two = [two_models(stage, kernel, kind) for kind in ("failing:m", "failing:none")]
    entries = [await ask(kernel.port, f"r{n}", model=model) for model in "mn" for n in range(12)]
    assert outcomes(entries) == {"whole": 24}
    assert "ejected" in kernel.process.log
    assert states(kernel, "n") == ["ready", "ready"]
    broken = two[0].log.count("asked")
    assert [entry.outcome for entry in [await ask(kernel.port, f"q{n}", model="n") for n in range(4)]] == ["whole"] * 4
    assert two[0].log.count("asked") == broken + 2, "its other model still takes turns there"


def two_models(stage: Stage, kernel: Kernel, kind: str) -> Process:
    """An executor of the models `m` and `n`."""
    port = stage.port()
    process = stage.process([sys.executable, HOSTILE, str(port), kind], name=kind.replace(":", "-"))
    process.wait_for(lambda: listens(port), "it listened")
    base = f"http://127.0.0.1:{port}"
    fields = {
        "executor_id": f"two_{port}",
        "incarnation": 1,
        "access_codes": ["m", "n"],
        "dialects": {"openai": f"{base}/v1", "v1.0": f"{base}/chat"},
        "concurrency": 8,
    }
    form = {"name": "m", "endpoint": f"{base}/chat", "kuwa": json.dumps(fields)}
    answer = post_form(kernel.url + "/v1.0/worker/register", form, {"accept": "application/json"})
    assert answer.status == 200, answer
    return process
