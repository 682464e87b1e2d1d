"""An executor as its author wrote it in June 2024. It has to run unedited, so: never adapt it to our framework.

It uses what that interface promised: `Modelfile` beside `LLMExecutor`, `history` with OpenAI roles, the
Modelfile's system prompt, messages, template, prefix, suffix and `parameters` ("llm_" for its own keys, "_" for
the form's), and the two modules `llm_executor` and `util`. It notes each request's fate in the file `--ledger`.
"""

import asyncio
import logging
from pathlib import Path

from kuwa.executor import LLMExecutor, Modelfile
from kuwa.executor.llm_executor import extract_last_url, rectify_chat_history, to_openai_chat_format
from kuwa.executor.util import merge_config, read_config

logger = logging.getLogger(__name__)


class ScribeExecutor(LLMExecutor):
    def __init__(self):
        super().__init__()

    def extend_arguments(self, parser):
        parser.add_argument("--pause", type=float, default=0.0, help="Seconds between two lines")
        parser.add_argument("--ledger", type=str, default=None, help="File to note each request's fate in")
        parser.add_argument("--style", type=str, default=None, help="A YAML or JSON file of settings")

    def setup(self):
        if not self.LLM_name:
            self.LLM_name = "scribe"
        settings = {"mark": "-"}
        if self.args.style:
            settings = merge_config(base=settings, top=read_config(self.args.style))
        self.mark = settings["mark"]
        self.stopped = False

    def note(self, fate):
        if self.args.ledger:
            with Path(self.args.ledger).open("a") as ledger:
                ledger.write(fate + "\n")

    async def llm_compute(self, history: list[dict], modelfile: Modelfile):
        self.stopped = False
        self.note("started")
        try:
            lines = [
                f"system: {modelfile.override_system_prompt}",
                f"examples: {len(modelfile.messages)}",
                f"wrapped: {modelfile.before_prompt}{history[-1]['content'].strip()}{modelfile.after_prompt}",
                f"temperature: {modelfile.parameters['llm_'].get('temperature')}",
                f"user: {modelfile.parameters['_'].get('user_id')}",
                f"turns: {' '.join(turn['role'] for turn in history)}",
            ]
            for line in lines:
                await asyncio.sleep(self.args.pause)
                if self.stopped:
                    break
                yield f"{self.mark} {line}\n"
            self.note("done")
        finally:
            self.note("closed")

    async def abort(self):
        self.stopped = True
        self.note("aborted")
        return "Aborted"


if __name__ == "__main__":
    # The module's functions are imported to be used by name, as the authors of that time did.
    assert to_openai_chat_format([{"msg": "Hi", "isbot": False}]) == [{"role": "user", "content": "Hi"}]
    assert rectify_chat_history
    assert extract_last_url
    executor = ScribeExecutor()
    executor.run()
