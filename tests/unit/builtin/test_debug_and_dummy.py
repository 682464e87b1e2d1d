"""The two examples: `debug` says the last user message back, `dummy` says its text."""

from __future__ import annotations

from typing import Any

import pytest

from kuwa.builtin import dummy
from kuwa.builtin.debug import DebugExecutor
from kuwa.builtin.dummy import DummyExecutor
from kuwa.executor import LLMExecutor, Request
from kuwa.executor.invocation import Invocation, invoked

pytestmark = pytest.mark.anyio


async def said(kind: type[LLMExecutor], *messages: dict[str, Any]) -> str:
    with invoked(Invocation("test", ["--delay", "0"])):
        executor = kind()
    request = Request(id="r1", access_code="m", messages=list(messages))
    return "".join([str(piece) async for piece in executor.llm_compute(request)])


@pytest.mark.parametrize("text", ["Hello", "你好 🙂\n second line ", "", " "])
async def test_debug_reflects_exactly_the_last_user_message(text: str) -> None:
    earlier = {"role": "user", "content": "earlier"}
    last = {"role": "user", "content": text}
    assert await said(DebugExecutor, {"role": "system", "content": "s"}, earlier, last) == text
    assert await said(DebugExecutor, earlier, last, {"role": "assistant", "content": "after"}) == text


async def test_dummy_says_its_text_whatever_it_is_asked() -> None:
    assert await said(DummyExecutor, {"role": "user", "content": "x"}) == dummy.TEXT
    assert dummy.TEXT.count("<<<WARNING>>>") == dummy.TEXT.count("<<</WARNING>>>") == 2
