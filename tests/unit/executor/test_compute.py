"""Calling `llm_compute`: each historical signature, each shape it may have, and how it is closed."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from kuwa.executor import Chunk, LLMExecutor, Modelfile, Request, SetupFailed
from kuwa.executor.compute import Compute
from kuwa.executor.invocation import Invocation, invoked

pytestmark = pytest.mark.anyio


def made(kind: type[LLMExecutor], *arguments: str) -> Any:
    with invoked(Invocation(prog="test", arguments=arguments, name="test")):
        return kind()


def request(**more: Any) -> Request:
    history = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    return Request(id="r1", access_code="m", messages=history, conversation=history, **more)


async def collected(kind: type[LLMExecutor], asked: Request | None = None) -> list[Chunk]:
    return [chunk async for chunk in Compute(made(kind)).open(asked or request())]


async def test_the_form_of_may_2024() -> None:
    class May(LLMExecutor):
        async def llm_compute(self, data: dict[str, str]) -> AsyncIterator[str]:
            system, messages, template = self.parse_modelfile(data.get("modelfile", "[]"))
            yield json.dumps([json.loads(data["input"]), system, messages, template, data["openai_token"]])

    (said,) = await collected(May)
    assert json.loads(str(said)) == [[{"msg": "hi", "isbot": False}], "be kind", [], "", ""]


async def test_the_form_as_it_came_by_the_old_wire() -> None:
    class May(LLMExecutor):
        async def llm_compute(self, data: dict[str, str]) -> AsyncIterator[str]:
            yield data["input"] + data["user_id"]

    assert await collected(May, request(form={"input": "[]", "user_id": "7"})) == ["[]7"]


async def test_a_single_argument_of_any_name_is_the_form() -> None:
    class Old(LLMExecutor):
        async def llm_compute(self, form: dict[str, str]) -> AsyncIterator[str]:
            yield form["name"]

    assert await collected(Old) == ["m"]


async def test_the_history_and_modelfile_of_june_2024() -> None:
    class June(LLMExecutor):
        async def llm_compute(self, history: list[dict[str, str]], modelfile: Modelfile) -> AsyncIterator[str]:
            parameters = modelfile.parameters
            yield json.dumps([history, modelfile.override_system_prompt, parameters["llm_"], parameters["_"]["lang"]])

    (said,) = await collected(June, request(parameters={"temperature": 0.5}, language="zh-TW"))
    assert json.loads(str(said)) == [
        [{"role": "user", "content": "hi"}],
        "be kind",
        {"temperature": 0.5},
        "zh-TW",
    ]


async def test_the_request_of_today_and_optional_arguments() -> None:
    class Today(LLMExecutor):
        async def llm_compute(self, request: Request, extra: int = 3) -> AsyncIterator[str]:
            yield f"{request.id} {extra}"

    assert await collected(Today) == ["r1 3"]


async def test_a_signature_that_cannot_be_served_is_refused_at_the_start() -> None:
    class Strange(LLMExecutor):
        async def llm_compute(self, one: int, two: int) -> AsyncIterator[str]:
            yield ""

    with pytest.raises(SetupFailed, match="one, two"):
        Compute(made(Strange))


async def test_a_coroutine_that_returns_its_text() -> None:
    class Whole(LLMExecutor):
        async def llm_compute(self, request: Request) -> Any:
            return "all"

    assert await collected(Whole) == ["all"]


async def test_a_plain_function_that_returns_a_text_a_list_or_an_iterator() -> None:
    class Plain(LLMExecutor):
        def llm_compute(self, request: Request) -> Any:
            return {"hi": "text", "list": ["a", "b"], "none": None}[request.form["kind"]]

    assert await collected(Plain, request(form={"kind": "hi"})) == ["text"]
    assert await collected(Plain, request(form={"kind": "list"})) == ["a", "b"]
    assert await collected(Plain, request(form={"kind": "none"})) == []


async def test_a_blocking_generator_runs_in_a_thread_and_loses_nothing() -> None:
    class Blocking(LLMExecutor):
        def llm_compute(self, request: Request) -> Any:
            for number in range(2000):
                yield f"{threading.current_thread().name} {number}"

    chunks = await collected(Blocking)
    assert chunks == [f"kuwa-llm-compute {number}" for number in range(2000)]


async def test_an_error_in_the_thread_is_raised_to_the_request() -> None:
    class Failing(LLMExecutor):
        def llm_compute(self, request: Request) -> Any:
            yield "one"
            raise ValueError("two")

    with pytest.raises(ValueError, match="two"):
        await collected(Failing)


async def test_closing_waits_until_the_thread_has_left_the_generator() -> None:
    left: list[bool] = []

    class Endless(LLMExecutor):
        def llm_compute(self, request: Request) -> Iterator[str]:
            try:
                while True:
                    yield "x"
            finally:
                left.append(True)

    chunks: Any = Compute(made(Endless)).open(request())
    assert await anext(chunks) == "x"
    await chunks.aclose()
    assert left == [True]


async def test_a_cancelled_task_closes_an_async_generator() -> None:
    left: list[bool] = []

    class Waiting(LLMExecutor):
        async def llm_compute(self, request: Request) -> AsyncIterator[str]:
            try:
                yield "x"
                await asyncio.Event().wait()
            finally:
                left.append(True)

    chunks: Any = Compute(made(Waiting)).open(request())
    assert await anext(chunks) == "x"
    waiting = asyncio.ensure_future(anext(chunks))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert left == [True]


async def test_abort_is_called_as_it_is_declared() -> None:
    class Sync(LLMExecutor):
        def abort(self) -> str:
            return "sync"

    class Async(LLMExecutor):
        async def abort(self, request: Request) -> str:
            return request.id

    assert await Compute(made(Sync)).abort(request()) == "sync"
    assert await Compute(made(Async)).abort(request()) == "r1"
    assert await Compute(made(LLMExecutor)).abort(request()) is None
