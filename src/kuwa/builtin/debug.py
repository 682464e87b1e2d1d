"""`debug`: says the last user message back, a few characters at a time. One of the two examples to learn from."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator

from kuwa import __version__
from kuwa.executor import LLMExecutor, Request
from kuwa.executor.prompt import last_user_text

PIECE = 4


class DebugExecutor(LLMExecutor):
    LLM_name = "debug"
    description = "[Tool] Debugging executor. It will reflect the last input."
    concurrency = 64
    capabilities = ("resume",)

    def extend_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--delay", type=float, default=0.02, help="Inter-token delay")

    def fingerprint(self) -> str:
        """Every `debug` of this version answers a request alike, so another one can continue its streams."""
        return f"debug-{__version__}"

    async def llm_compute(self, request: Request) -> AsyncIterator[str]:
        text = last_user_text(request.messages)
        for start in range(0, len(text), PIECE):
            yield text[start : start + PIECE]
            await asyncio.sleep(self.args.delay)


if __name__ == "__main__":
    DebugExecutor().run()
