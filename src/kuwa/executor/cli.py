"""The command `kuwa-executor`: lists the executors, starts one of them, or a file that defines one."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from kuwa.clash import check_clash
from kuwa.executor import catalog
from kuwa.executor.invocation import Invocation, command_line, environment, invoked

PROG = "kuwa-executor"
USAGE = f"""usage: {PROG} [-h] [--list] executor ...

Start a model executor: one of the list, or a Python file that defines one (./my_executor.py).

  -h, --help  show this help message and exit
  --list      list the available executors

Use "{PROG} [executor] --help" to get more information.
"""


def main() -> None:
    """The console script."""
    check_clash()
    sys.exit(start(command_line(), environment()))


def start(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Do what the command line says; the exit code."""
    first = arguments[0] if arguments else ""
    if first in ("-h", "--help"):
        _say(USAGE, sys.stdout)
        return 0
    if first == "--list":
        _say(listing(), sys.stdout)
        return 0
    if not first:
        _say(USAGE, sys.stderr)
        return 2
    if first.startswith("-"):
        _say(f"{PROG}: unknown option {first} (see {PROG} --help)\n", sys.stderr)
        return 2
    return _run(first, arguments[1:], environment)


def listing() -> str:
    """What `--list` prints."""
    entries = catalog.entries()
    width = max((len(entry.name) for entry in entries), default=0)
    lines = "".join(f"{entry.name:<{width}}: {entry.description()}\n" for entry in entries)
    return f'Available model executors:\n\n{lines}\nUse "{PROG} [executor] --help" to get more information.\n'


def _run(name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    is_file = catalog.is_file(name)
    invocation = Invocation(
        prog=f"{PROG} {name}",
        arguments=arguments,
        environment=environment,
        name=Path(name).stem if is_file else name,
    )
    try:
        with invoked(invocation):
            executor_class = catalog.load_file(name) if is_file else catalog.find(name).load()
            executor_class().run()
    except catalog.CannotLoad as error:
        _say(f"{PROG}: {error}\n", sys.stderr)
        return 2
    return 0


def _say(text: str, stream: TextIO) -> None:
    """Write to a stream whose reader may have gone (`kuwa-executor --list | head -1`)."""
    with suppress(BrokenPipeError):
        stream.write(text)
        stream.flush()


if __name__ == "__main__":
    main()
