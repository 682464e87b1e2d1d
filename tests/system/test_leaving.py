"""An executor that is told to leave does leave, whatever its model's code does."""

from __future__ import annotations

import signal
from pathlib import Path

from calls import stream_chat
from processes import Stage

CUT = 1

STUCK = """
import asyncio, time
from kuwa.executor import LLMExecutor

class Stuck(LLMExecutor):
    def extend_arguments(self, parser):
        parser.add_argument("--how", default="")

    async def llm_compute(self, history, modelfile):
        yield "begun"
        if self.args.how == "blocks":
            time.sleep(600)
        while True:
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                pass

    async def shutdown(self):
        await asyncio.sleep(600)

if __name__ == "__main__":
    Stuck().run()
"""


def test_code_that_blocks_or_cannot_be_cancelled_does_not_keep_an_executor_alive(stage: Stage, tmp_path: Path) -> None:
    script = tmp_path / "stuck.py"
    script.write_text(STUCK)
    executors = [
        stage.executor(str(script), f"--how={how}", kernel=None, access_code="stuck") for how in ("blocks", "persists")
    ]
    for executor in executors:
        with stream_chat(executor.url, "stuck", "hi") as stream:
            assert stream.first_text() == "begun"
            # Two of one kind sent together may arrive as one.
            executor.process.send(signal.SIGTERM)
            executor.process.send(signal.SIGINT)
    for executor in executors:
        assert executor.process.wait(timeout_s=40) == CUT
        assert "did not end when told to" in executor.process.log
