"""Shows how far a download has come, on standard error: a bar on a terminal, else a line now and then.

`kuwa pull` and the executors that download models give the report that this makes to `hub`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kuwa.executor.hub import Progress, Report

if TYPE_CHECKING:
    from rich.progress import TaskID

LINE_EVERY_S = 10.0


@contextmanager
def shown() -> Generator[Report]:
    if sys.stderr.isatty():
        with _bar() as report:
            yield report
    else:
        yield _lines()


def _lines() -> Report:
    """Begin, end, and a line every ten seconds."""
    last: tuple[str, float] = ("", 0.0)

    def report(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        ended = progress.done >= progress.total
        if progress.file == last[0] and not ended and now - last[1] < LINE_EVERY_S:
            return
        last = (progress.file, now)
        share = 100 * progress.done // max(1, progress.total)
        sys.stderr.write(f"{progress.file}: {progress.done / 1e6:.0f} of {progress.total / 1e6:.0f} MB, {share} %\n")
        sys.stderr.flush()

    return report


@contextmanager
def _bar() -> Generator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    tasks: dict[str, TaskID] = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:

        def report(progress: Progress) -> None:
            task = tasks.get(progress.file)
            if task is None:
                # What was there before counts as done, not as speed.
                task = tasks[progress.file] = bars.add_task(
                    progress.file, total=progress.total, completed=progress.done
                )
            bars.update(task, completed=progress.done)

        yield report
