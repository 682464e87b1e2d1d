"""With which command line an executor was started. `executor/cli` sets it, `LLMExecutor.__init__` reads it.

A context variable carries it, because the interface lets an executor's `__init__` take no arguments.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


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
