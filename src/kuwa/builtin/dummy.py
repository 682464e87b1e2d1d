"""`dummy`: says the same text to everybody. One of the two examples to learn from.

The text shows what a front end has to render: several scripts, and the marks around a warning.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator

from kuwa import __version__
from kuwa.executor import LLMExecutor, Request

TEXT = """\
This is the dummy executor of Kuwa. Whatever you write, it answers with this text. 無論您說什麼，它都這樣回答。
<<<WARNING>>>
A front end shows these lines apart from the answer.
A warning may have more than one of them.
<<</WARNING>>>
The answer goes on after a warning, and another one may follow.
<<<WARNING>>>
Nothing here was computed by a model.
<<</WARNING>>>
That was all. 🙂
"""
PIECE = 4


class DummyExecutor(LLMExecutor):
    LLM_name = "dummy"
    description = "[Tool] Dummy executor. It will reply fixed message regardless of the user prompt."
    concurrency = 64
    capabilities = ("resume",)

    def extend_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--delay", type=float, default=0.02, help="Inter-token delay")

    def fingerprint(self) -> str:
        """Every `dummy` of this version answers alike, so another one can continue its streams."""
        return f"dummy-{__version__}"

    async def llm_compute(self, request: Request) -> AsyncIterator[str]:
        del request
        for start in range(0, len(TEXT), PIECE):
            yield TEXT[start : start + PIECE]
            await asyncio.sleep(self.args.delay)


if __name__ == "__main__":
    DummyExecutor().run()
