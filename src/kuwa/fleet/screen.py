"""What the person who typed `kuwa up` sees: progress, deaths with the last lines of their logs, the table of what
is served and a command to try. Called by `kuwa.fleet.up` alone; the words come from `kuwa.words`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

from kuwa.client import Report
from kuwa.fleet.config import Settings
from kuwa.fleet.programs import KERNEL, Program
from kuwa.fleet.supervision import Abandoned, Died, Ready
from kuwa.words import words_in
from kuwa.words.phrases import curl_command

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

TAIL_LINES = 8
TAIL_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Served:
    """One line of the table. `state` is the kernel's name for it, or the phase of a program that it does not know."""

    access_code: str
    executor: str
    state: str
    endpoint: str


def rows_of(report: Report | None) -> list[Served]:
    """The lines of the replicas in the report; none without one."""
    if report is None:
        return []
    return [Served(code, replica.kind, replica.state_at(code), replica.endpoint) for code, replica in report.rows()]


class Screen:
    """Writes to one terminal or pipe; a terminal gets colours and a line that moves while something starts."""

    def __init__(self, settings: Settings) -> None:
        from rich.console import Console

        self._settings = settings
        self._words = words_in(settings.language)
        self._console: Console = Console(
            file=cast(TextIO, _Output(sys.stdout)), highlight=False, markup=False, soft_wrap=True
        )
        self._progress: Status | None = None

    def problem(self, text: str) -> None:
        """One line that needs attention."""
        self._console.print(f"kuwa: {text}", style="bold red")

    def note(self, text: str) -> None:
        self._console.print(text, style="yellow")

    def starting(self, programs: Sequence[Program]) -> None:
        """Show what is awaited; with nothing awaited, nothing moves."""
        if not self._console.is_terminal:
            return
        if not programs:
            self.still()
            return
        text = self._words.up.starting.format(names=", ".join(program.name for program in programs))
        if self._progress is None:
            self._progress = self._console.status(text)
            self._progress.start()
        self._progress.update(text)

    def still(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def ready(self, news: Ready) -> None:
        text = self._words.up.kernel_ready if news.program.name == KERNEL else self._words.up.ready
        self._console.print(
            text.format(name=news.program.name, url=self._settings.kernel_url, took_s=news.took_s), style="green"
        )

    def died(self, news: Died, log: Path) -> None:
        """The death, what follows from it, and (once) the end of the log: there stands why."""
        died = self._words.up.died.format(name=news.program.name, how=how(news.code))
        if news.again_in_s is None:
            self.problem(f"{died}; {self._words.up.given_up}")
        else:
            self.note(f"{died}; {self._words.up.again.format(again_in_s=news.again_in_s)}")
        if news.again:
            return
        lines = last_lines(log)
        self._console.print("  " + (self._words.up.last_lines if lines else self._words.up.empty_log).format(log=log))
        for line in lines:
            self._console.print("  | " + line, style="dim")

    def abandoned(self, news: Abandoned) -> None:
        self.problem(self._words.up.abandoned.format(name=news.program.name, missing=news.missing))

    def served(self, rows: Sequence[Served], suggestion: str | None, logs: Path) -> None:
        """The table, the addresses, and a command that asks the model `suggestion`."""
        from rich.table import Table

        words = self._words
        table = Table(title=words.up.served_title, title_justify="left", title_style="bold")
        for heading in (words.access_code, words.executor, words.state, words.up.endpoint):
            table.add_column(heading, overflow="fold")
        for row in rows:
            table.add_row(row.access_code, row.executor, words.states.get(row.state, row.state), row.endpoint)
        self._console.print()
        self._console.print(table, soft_wrap=False)
        url = self._settings.kernel_url
        facts = ((words.up.page, f"{url}/v1.0/worker/debug"), (words.up.api, f"{url}/v1"), (words.up.logs, str(logs)))
        for label, value in facts:
            self._console.print(label + value)
        if suggestion is not None:
            self._console.print(f"{words.up.try_it}\n")
            self._console.print(curl_command(url, suggestion, words.hello) + "\n", style="bold cyan")
        self._console.print(words.up.to_end)

    def kernel_lost(self) -> None:
        self.problem(self._words.up.kernel_lost)

    def ending(self) -> None:
        self._console.print(self._words.up.ending)

    def ended(self) -> None:
        self._console.print(self._words.up.ended)


class _Output:
    """Standard output, but that a terminal or pipe which has gone away is no reason to stop serving."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = stream.encoding
        self.isatty = stream.isatty
        self.fileno = stream.fileno

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def how(code: int) -> str:
    """An exit status in words a person knows: `exit code 3`, `SIGKILL`."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def last_lines(log: Path) -> list[str]:
    """The last lines of `log` that hold anything; empty where there is no log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-TAIL_LINES:]
