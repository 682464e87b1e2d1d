"""The remote providers of tests: the servers in `tests/fakes`, each a process that remembers what it was asked."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Literal

from calls import fetch
from processes import REPOSITORY, Process, Stage


@dataclass(frozen=True)
class Provider:
    process: Process
    base_url: str

    @property
    def origin(self) -> str:
        return self.base_url.removesuffix("/v1")

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The requests for answers that it was sent, oldest first: method, path, headers, body, outcome."""
        return [record for record in fetch(self.origin + "/recorded").json() if record["method"] == "POST"]

    @property
    def last(self) -> dict[str, Any]:
        return self.asked[-1]


def start_provider(stage: Stage, name: Literal["openai_server", "gemini_server"], *flags: str) -> Provider:
    program = REPOSITORY / "tests" / "fakes" / f"{name}.py"
    process = stage.process([sys.executable, str(program), "--port", str(stage.port()), *flags], name=name)
    return Provider(process, process.wait_for(lambda: process.log.partition("\n")[0], "it said its URL"))
