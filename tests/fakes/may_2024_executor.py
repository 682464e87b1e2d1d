"""An executor as its author wrote it in May 2024. It has to run unedited, so: never adapt it to our framework.

It uses what that interface promised: `LLMExecutor` alone, `self.args` right after `super().__init__()`,
`LLM_name` as the access code with its default set in `setup`, the form in `data`, `parse_modelfile`,
`in_debug`, an `abort` without arguments. It writes down what became of each request in the file `--ledger`, for
the test to read.
"""

import asyncio
import json
import logging
from pathlib import Path

from kuwa.executor import LLMExecutor

logger = logging.getLogger(__name__)


class ParrotExecutor(LLMExecutor):
    def __init__(self):
        super().__init__()
        self.greeting = self.args.greeting

    def extend_arguments(self, parser):
        parser.add_argument("--greeting", type=str, default="Squawk", help="Said before everything else")
        parser.add_argument("--pause", type=float, default=0.0, help="Seconds between two words")
        parser.add_argument("--ledger", type=str, default=None, help="File to note each request's fate in")

    def setup(self):
        if not self.LLM_name:
            self.LLM_name = "parrot"
        self.stopped = False

    def note(self, fate):
        if self.args.ledger:
            with Path(self.args.ledger).open("a") as ledger:
                ledger.write(fate + "\n")

    async def llm_compute(self, data):
        self.stopped = False
        self.note("started")
        try:
            turns = json.loads(data.get("input"))
            system, messages, _template = self.parse_modelfile(data.get("modelfile", "[]"))
            said = [turn["msg"] for turn in messages + turns if turn["msg"] and not turn["isbot"]]
            if self.in_debug():
                logger.debug("user %s of history %s", data.get("user_id"), data.get("history_id"))
            yield f"{self.greeting}!"
            if system:
                yield f" ({system})"
            for word in said[-1].split():
                await asyncio.sleep(self.args.pause)
                if self.stopped:
                    break
                yield f" {word}"
            self.note("done")
        except Exception:
            logger.exception("the parrot is unwell")
            yield "unwell"
        finally:
            self.note("closed")

    async def abort(self):
        self.stopped = True
        self.note("aborted")
        return "Aborted"


if __name__ == "__main__":
    executor = ParrotExecutor()
    executor.run()
