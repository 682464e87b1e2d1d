"""Ties the programs that an executor starts to the executor's own life. They call it first of all."""

from __future__ import annotations

import ctypes
import os
import signal
import sys


def die_with(parent: int) -> None:
    """Ask Linux to kill this process when its parent dies: even while a load holds the interpreter's lock."""
    if sys.platform != "linux":
        return
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the request to be told
        os._exit(1)
