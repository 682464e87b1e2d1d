"""The program that downloads a model: `python -m kuwa.builtin.llamacpp.pull hf://<repo>?<file>`.

`kuwa pull` becomes this program; the executor starts it for an `hf://` model path, with `--report`, and reads one
line of JSON (`Pulled`) from its standard output. Progress goes to standard error: a bar on a terminal, else a line
now and then. It ends with its parent.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from kuwa.builtin.llamacpp.child import die_with
from kuwa.builtin.llamacpp.hub import CannotDownload, Progress, Report, cached, download, parse

if TYPE_CHECKING:
    from rich.progress import TaskID

FAILED = 1
LINE_EVERY_S = 10.0


class Pulled(msgspec.Struct, frozen=True):
    """How it went: the `path` of the file, or an `error`."""

    path: str = ""
    error: str = ""


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 or 1; an error is one line."""
    parser = argparse.ArgumentParser(prog="kuwa pull", description="Download a GGUF model from the Hugging Face hub.")
    parser.add_argument("model", metavar="hf://REPO?FILE")
    parser.add_argument("--report", type=int, metavar="PID", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    for_executor = args.report is not None
    if for_executor:
        die_with(args.report)
    outcome = _pull(args.model, use_cached=for_executor)
    if for_executor:
        sys.stdout.buffer.write(msgspec.json.encode(outcome) + b"\n")
    elif outcome.error:
        sys.stderr.write(f"kuwa pull: {outcome.error}\n")
    else:
        sys.stdout.write(f"{outcome.path}\n")
    return FAILED if outcome.error else 0


async def pulled(model: str) -> Pulled:
    """Run this program for `model`, and end it with the caller's own task."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "kuwa.builtin.llamacpp.pull", model, "--report", str(os.getpid())),
        stdin=DEVNULL,
        stdout=PIPE,
        start_new_session=True,
    )
    try:
        said, _ = await process.communicate()
        return msgspec.json.decode(said, type=Pulled)
    except msgspec.MsgspecError:
        return Pulled(error=f"the download of {model} ended without a word (status {process.returncode})")
    finally:
        if process.returncode is None:
            process.kill()


def _pull(model: str, *, use_cached: bool) -> Pulled:
    """The executor takes a file that is there as it is: a model that was served yesterday needs no network."""
    try:
        wanted = parse(model)
        paths = [cached(part) for part in wanted.parts()] if use_cached and wanted.file else [None]
        if all(paths):
            return Pulled(path=str(cached(wanted)))
        with _shown() as report:
            return Pulled(path=str(_absolute(download(wanted, report))))
    except CannotDownload as error:
        return Pulled(error=str(error))
    except KeyboardInterrupt:
        return Pulled(error="interrupted; what has come is kept, give the same command again to go on.")


def _absolute(path: Path) -> Path:
    """Without following the cache's links: a split model's parts are found beside each other by their names."""
    return path.absolute()


@contextmanager
def _shown() -> Generator[Report]:
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


if __name__ == "__main__":
    sys.exit(main())
