"""`kuwa.client` as a Python program uses it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from kuwa.client import Client, NoKernel, Refused
from kuwa.wire.errors import KuwaError
from processes import REPOSITORY, Kernel, Stage, until

pytestmark = pytest.mark.anyio
TALKER = str(REPOSITORY / "tests" / "fakes" / "talker.py")


@pytest.fixture(scope="module")
def kernel(shared_stage: Stage, shared_kernel: Kernel) -> Kernel:
    shared_stage.executor(TALKER, "--concurrency", "1", kernel=shared_kernel, access_code="talker")
    return shared_kernel


def asking(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


async def test_an_answer_comes_in_pieces_with_its_end_and_its_tokens(kernel: Kernel) -> None:
    deltas = [delta async for delta in Client(kernel.url).chat("talker", asking("think"), temperature=0)]
    assert "".join(delta.text for delta in deltas) == "the answer"
    assert "".join(delta.reasoning for delta in deltas) == "pondering"
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["stop"]
    assert deltas[-1].usage is not None


async def test_closing_an_answer_frees_its_slot(kernel: Kernel) -> None:
    async with aclosing(Client(kernel.url).chat("talker", asking("slow"))) as deltas:
        assert (await anext(deltas)).text == ""
        assert (await anext(deltas)).text == "word0 "
        assert kernel.running("talker") == 1
    await asyncio.to_thread(until, lambda: kernel.idle("talker"), "the slot was free")


async def test_what_is_served_is_told(kernel: Kernel) -> None:
    client = Client(kernel.url + "/")
    assert await client.is_live()
    assert await client.models() == ["talker"]
    report = await client.report()
    assert report.ready() == ["talker"]
    assert report.replicas[0].slots == 1


async def test_refusals_are_the_kernels_own_words(kernel: Kernel) -> None:
    with pytest.raises(Refused, match="nosuch") as refusal:
        await anext(Client(kernel.url).chat("nosuch", asking("hi")))
    assert (refusal.value.status, refusal.value.code) == (404, "model_not_found")


async def test_an_answer_that_breaks_off_raises(kernel: Kernel) -> None:
    with pytest.raises(KuwaError, match="told to fail"):
        async for _ in Client(kernel.url).chat("talker", asking("fail")):
            pass


async def test_nobody_there_is_no_kernel() -> None:
    client = Client("http://127.0.0.1:9")
    assert not await client.is_live()
    with pytest.raises(NoKernel):
        await client.models()
