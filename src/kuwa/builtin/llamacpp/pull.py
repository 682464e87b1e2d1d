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
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path

import msgspec

from kuwa.executor.hub import CannotDownload, cached, download, parse
from kuwa.executor.hub_progress import shown
from kuwa.executor.leash import die_with
from kuwa.wire.json import BadJson, decode

FAILED = 1


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
        return decode(said, Pulled)
    except BadJson:
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
        with shown() as report:
            return Pulled(path=str(_absolute(download(wanted, report))))
    except CannotDownload as error:
        return Pulled(error=str(error))
    except KeyboardInterrupt:
        return Pulled(error="interrupted; what has come is kept, give the same command again to go on.")


def _absolute(path: Path) -> Path:
    """Without following the cache's links: a split model's parts are found beside each other by their names."""
    return path.absolute()


if __name__ == "__main__":
    sys.exit(main())
