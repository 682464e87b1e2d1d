"""A stream that is cut anywhere goes on elsewhere by its token ids: the same bytes, after one prefill.

Two executors of the same model, in this process; what the kernel does is done by its own code. 30 streams are cut,
with `--full_chaos` 300.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kuwa.builtin.huggingface import HuggingfaceExecutor
from kuwa.executor.events import Events
from kuwa.executor.intake import Intake
from kuwa.executor.invocation import Invocation, invoked
from kuwa.executor.resumable import announcement
from kuwa.kernel.resume import Replay
from kuwa.wire import resume
from kuwa.wire.errors import ResumeMismatch
from kuwa.wire.sse import blocks_of, data_of
from tiny_models import make_folder

pytestmark = pytest.mark.anyio

TOKENS = 48
SCHEMA = {
    "type": "object",
    "properties": {"port": {"type": "string"}, "tides": {"type": "array", "items": {"type": "integer"}}},
}
TOOL = {"type": "function", "function": {"name": "tide", "parameters": SCHEMA}}
KINDS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1.3, "seed": 11},
    {"temperature": 0.9, "top_p": 0.95, "top_k": 40, "repetition_penalty": 1.2, "seed": 5},
    {"temperature": 1.0},
    {"temperature": 1.2, "seed": 3, "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
    {"temperature": 1.2, "seed": 4, "tools": [TOOL], "tool_choice": "required"},
    {"temperature": 1.4, "seed": 8, "stop": ["e", "燈"]},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder("tiny-llama", tmp_path_factory.mktemp("models") / "tiny-llama")


class Served:
    """An executor, and what the server around it would write."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        argv = ["--model_path", str(folder), "--access_code", "m", "--dtype", "float32", *arguments]
        with invoked(Invocation("kuwa-executor huggingface", argv, {}, "m")):
            self.executor = HuggingfaceExecutor()
        self.executor.setup()
        self.intake = Intake(["m"], self.executor.capabilities, trim_history=False)

    async def events(self, body: bytes) -> AsyncGenerator[bytes]:
        """The stream of a request, in the pieces in which it is made; the announcement is the first."""
        request = self.intake.chat("r1", body)
        announced = announcement(request, self.executor.fingerprint(), self.executor.own_seed())
        assert announced is not None
        yield resume.announce(announced)
        answer = Events(request, created=7, cuts_stops=False, shows_ids=True)
        async with aclosing(self.executor.llm_compute(request)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                if data := answer.take(chunk):
                    yield data
        yield answer.finish()

    async def whole(self, body: bytes) -> list[bytes]:
        return [piece async for piece in self.events(body)]

    @property
    def steps(self) -> int:
        return self.executor.serving.engine.steps


@pytest.fixture
async def pair(folder: Path) -> AsyncGenerator[tuple[Served, Served]]:
    """Two of them; the second one has never been asked anything."""
    both = Served(folder), Served(folder)
    for served in both:
        await served.executor.serve_startup()
    yield both
    for served in both:
        await served.executor.shutdown()


def body(text: str, **fields: Any) -> bytes:
    messages = [{"role": "user", "content": text}]
    return msgspec.json.encode({"model": "m", "messages": messages, "stream": True, "max_tokens": TOKENS, **fields})


def datas(pieces: list[bytes]) -> list[bytes]:
    return [data for block in blocks_of(b"".join(pieces)) if (data := data_of(block))]


def said(events: list[bytes]) -> bytes:
    """What a client puts together of the events, byte for byte: each event without how it was cut."""
    found: list[Any] = []
    for event in events:
        if event == b"[DONE]":
            found.append("done")
            continue
        for choice in msgspec.json.decode(event)["choices"]:
            delta = {name: value for name, value in choice["delta"].items() if value}
            found.append((choice["finish_reason"], delta))
    return msgspec.json.encode(found)


async def gone_on(second: Served, asked: bytes, delivered: list[bytes]) -> list[bytes]:
    """What the second executor adds, as the kernel lets it pass."""
    announced = resume.announcement_in(delivered[0])
    assert announced is not None
    replay = Replay(announced, b"".join(delivered[1:]))
    came = b"".join((await second.whole(replay.request(asked)))[1:])
    new = [block if replay.done else replay.take(block) for block in blocks_of(came)]
    assert replay.done
    return new


async def test_a_stream_cut_anywhere_goes_on_elsewhere(
    pair: tuple[Served, Served], pytestconfig: pytest.Config
) -> None:
    first, second = pair
    assert first.executor.fingerprint() == second.executor.fingerprint() != ""
    chance = random.Random(23)  # noqa: S311 - seeded, so that a failure comes again
    for number in range(300 if pytestconfig.getoption("full_chaos") else 30):
        kind = KINDS[number % len(KINDS)]
        asked = body(f"Tell me of ship {number % 40}, 燈塔 {number % 7}", **kind)
        whole = await first.whole(asked)
        if "seed" not in kind:
            announced = resume.announcement_in(whole[0])
            assert announced is not None
            assert announced.seed >= 0
        cut = chance.randrange(1, len(whole))
        delivered = whole[:cut]
        known = sum(len(resume.ids_in(block)) for block in blocks_of(b"".join(delivered)))
        total = sum(len(resume.ids_in(block)) for block in blocks_of(b"".join(whole)))
        before = second.steps
        new = await gone_on(second, asked, delivered)
        # A step draws one token: none of the known ones was computed but by the prefill. Behind a stop string the
        # engine goes on until it is told, which on a busy machine takes some steps.
        drawn = TOKENS if "stop" in kind else total
        assert second.steps - before <= drawn - known + 1
        assert said(datas(delivered + new)) == said(datas(whole)), (number, cut)


async def test_a_stream_is_cut_twice(pair: tuple[Served, Served]) -> None:
    first, second = pair
    asked = body("Tell me of the sea", temperature=1.2, seed=9)
    whole = await first.whole(asked)
    delivered = whole[:9]
    new = await gone_on(second, asked, delivered)
    again = [piece for piece in delivered + new if piece][:20]
    assert said(datas(again + await gone_on(first, asked, again))) == said(datas(whole))


async def test_ids_of_another_model_are_refused(pair: tuple[Served, Served]) -> None:
    first, second = pair
    asked = body("Tell me of the sea")
    announced = resume.announcement_in((await first.whole(asked))[0])
    assert announced is not None
    for ids in ([10**6], [-1], list(range(TOKENS + 1))):
        request = resume.ResumeRequest(
            seed=1, fingerprint=announced.fingerprint, prompt_hash=announced.prompt_hash, ids=ids
        )
        with pytest.raises(ResumeMismatch):
            await second.whole(asked[:-1] + b',"kuwa_resume":' + msgspec.json.encode(request) + b"}")


async def test_what_answers_otherwise_has_another_fingerprint(folder: Path, tmp_path: Path) -> None:
    words = {
        Served(folder, *flags).executor.fingerprint()
        for flags in ([], ["--temperature", "0.5"], ["--system_prompt", "Be brief."], ["--engine", "interleave"])
    }
    words.add(Served(make_folder("tiny-qwen3", tmp_path / "other")).executor.fingerprint())
    assert len(words) == 5
