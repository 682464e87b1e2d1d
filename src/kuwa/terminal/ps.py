"""`kuwa ps`: what a kernel serves, where, and how busy it is. Called by `kuwa.cli`."""

from __future__ import annotations

import asyncio
import sys
from urllib.parse import urlsplit

from kuwa.client import Client, Replica, Report
from kuwa.terminal.complaints import FAILED, complain, problem
from kuwa.terminal.config import Setting
from kuwa.wire.errors import KuwaError
from kuwa.wire.lines import printable
from kuwa.words import Words, words_in
from kuwa.words.phrases import duration

PIPE_WIDTH = 1000
STYLES = {"ready": "green", "starting": "blue", "suspect": "yellow", "draining": "yellow", "ejected": "red"}


def ps(setting: Setting, *, as_json: bool) -> int:
    """Show it; the exit code."""
    words = words_in(setting.language)
    try:
        report = asyncio.run(Client(setting.kernel_url, tls=setting.tls).report())
    except KuwaError as error:
        return complain(problem(setting, words, error), FAILED)
    try:
        if as_json:
            _show_json(report)
        else:
            _show_table(setting, words, report)
        sys.stdout.flush()
    except BrokenPipeError:
        return FAILED
    return 0


def _show_json(report: Report) -> None:
    import msgspec

    sys.stdout.write(msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n")


def _show_table(setting: Setting, words: Words, report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    if not report.replicas:
        console.print(words.ps.nothing_runs.format(url=setting.kernel_url))
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for heading in (words.access_code, words.executor, words.state, words.ps.where):
        table.add_column(heading, overflow="fold")
    for heading in (words.ps.slots, words.ps.waits, words.ps.since):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column(words.ps.load, overflow="fold")
    for code, replica in report.rows():
        table.add_row(*cells(words, report, code, replica), style=STYLES.get(replica.state_at(code), ""))
    console.print(table)


def cells(words: Words, report: Report, code: str, replica: Replica) -> tuple[str, ...]:
    """One row of the table as it is shown. `code` is one of the replica's."""
    slots = "∞" if replica.slots is None else str(replica.slots)
    texts = (
        code,
        replica.kind,
        words.states.get(replica.state_at(code), replica.state_at(code)),
        urlsplit(replica.endpoint).netloc,
        f"{replica.running}/{slots}",
        str(report.waiting(code)),
        duration(replica.since_s),
        load(words, replica),
    )
    return tuple(printable(text) for text in texts)


def load(words: Words, replica: Replica) -> str:
    """How busy it is by its own account, and what the kernel holds against it."""
    said = replica.load
    parts = [words.ps.tokens_per_s.format(rate=said.tokens_per_s)] if said.tokens_per_s >= 1 else []
    if said.waiting:
        parts.append(words.ps.waiting_there.format(count=said.waiting))
    if said.progress:
        parts.append(said.progress)
    if replica.note:
        parts.append(replica.note)
    return ", ".join(parts)
