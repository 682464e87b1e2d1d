"""With which command line an executor was started. `executor/cli` sets it, `LLMExecutor.__init__` reads it.

This is the executors' one place that reads the process's command line and environment; everything else is given
an `Invocation`. A context variable carries it, because the interface lets an executor's `__init__` take no arguments.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Invocation:
    """`prog` is what the usage line begins with; `name` is the access code where nobody chose another one."""

    prog: str
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    name: str = ""


_invocation: ContextVar[Invocation | None] = ContextVar("kuwa_invocation", default=None)


def current() -> Invocation | None:
    return _invocation.get()


@contextmanager
def invoked(invocation: Invocation) -> Generator[None]:
    """Executors constructed inside read their arguments from `invocation`."""
    token = _invocation.set(invocation)
    try:
        yield
    finally:
        _invocation.reset(token)


def of_script() -> Invocation:
    """How a file that is run as a program (`python my_executor.py …`) was started."""
    script, *arguments = sys.argv  # noqa: TID251 - this is the one place
    path = Path(script)
    return Invocation(prog=path.name, arguments=arguments, environment=environment(), name=path.stem)


def command_line() -> list[str]:
    """The arguments of the command `kuwa-executor`."""
    return sys.argv[1:]  # noqa: TID251 - this is the one place


def environment() -> Mapping[str, str]:
    return dict(os.environ)  # noqa: TID251 - this is the one place
