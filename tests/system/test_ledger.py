"""Many at once, some of whom leave and some of whose executors die: each request ends exactly once, its tokens in
order, without a gap, a repetition, or a token of somebody else's. The oracle numbers them; a client's ledger
tells.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from calls import Stream, post_json, stream_chat
from processes import REPOSITORY, Executor, Kernel, Stage, until

ORACLE = str(REPOSITORY / "tests" / "oracle.py")
CLIENTS = 12
REQUESTS = 120
TOKENS = 20


@dataclass
class Entry:
    """What became of one request: `outcome` is whole, left, or the code of the error it ended with."""

    label: str
    outcome: str
    text: str

    def check(self) -> None:
        tokens = self.text.split()
        assert tokens == [f"{self.label}.{number}" for number in range(len(tokens))], self
        assert len(tokens) == TOKENS or self.outcome != "whole", self


def ask(url: str, label: str, kind: str, number: int) -> Entry:
    """A request of that kind; `number` says how soon it is left and whether it begins at once."""
    script = {"id": label, "tokens": TOKENS, "delay": 0.004, "prefill": 0.02 * (number % 2)}
    if kind == "whole":
        body = {"model": "oracle", "messages": [{"role": "user", "content": "go"}], "oracle": script}
        answer = post_json(url + "/v1/chat/completions", body)
        if answer.status == 200:
            return Entry(label, "whole", answer.json()["choices"][0]["message"]["content"])
        return Entry(label, answer.error["code"], "")
    with stream_chat(url, "oracle", "go", oracle=script) as stream:
        return read(stream, label, number if kind == "left" else TOKENS + 1)


def read(stream: Stream, label: str, most: int) -> Entry:
    """Read the stream to its end, or leave it after `most` events with text."""
    if stream.status != 200:
        return Entry(label, json.loads(stream.read())["error"]["code"], "")
    pieces: list[str] = []
    for event in stream.events():
        if "error" in event:
            return Entry(label, event["error"]["code"], "".join(pieces))
        pieces += [choice["delta"].get("content") or "" for choice in event["choices"]]
        if sum(map(bool, pieces)) >= most:
            return Entry(label, "left", "".join(pieces))
    return Entry(label, "whole", "".join(pieces))


def run(kernel: Kernel, seed: int, *kinds: str) -> list[Entry]:
    chance = random.Random(seed)  # noqa: S311 - seeded, so that a failure comes again
    with ThreadPoolExecutor(CLIENTS) as clients:
        asked = [
            clients.submit(ask, kernel.url, f"s{seed}r{number}", chance.choice(kinds), chance.randrange(TOKENS))
            for number in range(REQUESTS)
        ]
        return [entry.result() for entry in asked]


def replica(stage: Stage, kernel: Kernel) -> Executor:
    return stage.executor(ORACLE, "--concurrency", "4", kernel=kernel, access_code="oracle")


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_many_at_once_some_of_whom_leave(stage: Stage, kernel: Kernel, seed: int) -> None:
    for _ in range(2):
        replica(stage, kernel)
    entries = run(kernel, seed, "stream", "whole", "left")
    for entry in entries:
        entry.check()
    assert set(Counter(entry.outcome for entry in entries)) == {"whole", "left"}
    until(lambda: kernel.idle("oracle"), "all slots were freed")
    assert kernel.metric("kuwa_queue_depth", access_code="oracle") == 0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_executor_that_dies_costs_only_what_it_had_begun(stage: Stage, kernel: Kernel, seed: int) -> None:
    """Every request is answered whole by a replica, but for one that was on both when they died: it may be what killed
    them."""
    dying = [replica(stage, kernel) for _ in range(3)]
    with ThreadPoolExecutor(1) as clients:
        running = clients.submit(run, kernel, seed, "stream", "whole")
        for executor in dying[:2]:
            until(lambda: kernel.running("oracle") >= 4, "requests were under way")
            executor.process.kill()
        entries = running.result()
    for entry in entries:
        entry.check()
    outcomes = Counter(entry.outcome for entry in entries)
    assert set(outcomes) <= {"whole", "request_quarantined"}, outcomes
    assert outcomes["request_quarantined"] <= 4
    until(lambda: kernel.idle("oracle"), "all slots were freed")
