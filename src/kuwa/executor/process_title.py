"""Blots secrets out of the argument list that every user of the machine can read (`ps`). `run` calls it first.

Between the start of the process and this call the list shows them: a file or the environment has no such moment.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from kuwa.executor.invocation import Invocation

BLOT = "***"

log = logging.getLogger("kuwa.executor")


def hide(started: Invocation, secret_options: Sequence[str]) -> None:
    """Replace the process's title where the command line gave one of `secret_options`; say what to do better."""
    arguments = blotted(started.arguments, secret_options)
    if arguments == list(started.arguments):
        return
    given = next(option for option in secret_options if option_given(started.arguments, option))
    advice = f"{given}_file keeps the key off the command line"
    try:
        from setproctitle import setproctitle
    except ImportError:
        log.warning("the key stays readable in the list of processes, for want of setproctitle; %s", advice)
        return
    setproctitle(" ".join([started.prog, *arguments]))
    log.info("the key was blotted out of the list of processes; %s from the start", advice)


def blotted(arguments: Sequence[str], secret_options: Sequence[str]) -> list[str]:
    """`arguments` with the value of each of `secret_options` blotted out, in either spelling."""
    shown: list[str] = []
    secret_next = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if secret_next:
            argument = BLOT
        elif equals and name in secret_options:
            argument = f"{name}={BLOT}"
        secret_next = not secret_next and argument in secret_options
        shown.append(argument)
    return shown


def option_given(arguments: Sequence[str], option: str) -> bool:
    return any(argument.partition("=")[0] == option for argument in arguments)
