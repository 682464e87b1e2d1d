"""`LLMExecutor`: the class that every executor extends. It reads the command line and starts what serves it.

A subclass writes `llm_compute` and perhaps other hooks of `interface.Executor`. `run()` hands the object to
`executor/run`, which serves it.
"""

from __future__ import annotations

import argparse
from typing import Any

from kuwa.executor import invocation
from kuwa.executor.arguments import ExecutorParser, UsageError, further_options, general_options, read_settings
from kuwa.executor.interface import Executor
from kuwa.executor.modelfile import Modelfile


class LLMExecutor(Executor):
    """An executor serves one model under one or more access codes.

    The object is made once; the command line has been parsed when `super().__init__()` returns (`self.args`, and
    the general options in `self.settings`). `self.environment` is the process's, for what belongs on no command
    line. Then `setup()` is called, in a thread, while the executor is already announced as starting. After it
    `llm_compute` is called once per request, up to `concurrency` at a time.

    The attributes and hooks that a subclass may set are those of `interface.Executor`.
    """

    def __init__(self) -> None:
        started = invocation.current() or invocation.of_script()
        self.environment = started.environment
        parser = ExecutorParser(started.prog)
        general_options(parser, started.environment, type(self).LLM_name or started.name)
        self.extend_arguments(parser)
        further_options(parser, started.environment, type(self).concurrency)
        self.args = parser.parse(started.arguments)
        try:
            self.settings = read_settings(self.args, type(self).concurrency)
        except UsageError as error:
            parser.error(str(error))
        self.concurrency = self.settings.concurrency
        self.prog = started.prog
        self.default_name = started.name
        self.invocation = started
        self.on_give_up = _ignore
        self._adopt_old_names()

    def _adopt_old_names(self) -> None:
        """Executors of 2024 read these instead of the options' own names."""
        codes = self.settings.access_codes
        self.args.access_code = codes[0] if codes else None
        if codes:
            self.LLM_name = codes[0]
        self.kernel_url = self.settings.kernel_url
        self.log_level = self.settings.log

    def extend_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add command-line options of your own, with argparse's methods on `parser`."""

    def in_debug(self) -> bool:
        return self.settings.log == "DEBUG"

    def parse_modelfile(self, text: str) -> tuple[str, list[dict[str, Any]], str]:
        """The Modelfile as executors of May 2024 read it: system prompt, messages `{"msg", "isbot"}`, template."""
        modelfile = Modelfile.from_json(text)
        messages = [{"msg": m["content"], "isbot": m["role"] == "assistant"} for m in modelfile.messages]
        return modelfile.override_system_prompt, messages, modelfile.template

    def run(self) -> None:
        """Serve until a signal ends it. Raises SystemExit with the exit code where that is not 0."""
        from kuwa.executor.run import run

        code = run(self)
        if code:
            raise SystemExit(code)


def _ignore(reason: str) -> None:
    """Nobody serves this executor."""
    del reason
