"""Runs one program so that it never outlives `kuwa up`: `python -m kuwa.fleet.leash MODULE ARGUMENT…`.

`kuwa up` holds the writing end of this process's standard input and never writes. The end of file therefore means
that `kuwa up` is gone, however it went (SIGKILL included), and works on every POSIX system. The program is then
asked to end as a person would ask it, and after a grace ended by force.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

GRACE_S = 10.0


def main() -> None:
    module = sys.argv[1]  # noqa: TID251 - this is the entry point of a process of its own
    threading.Thread(target=_end_when_let_go, name="leash", daemon=True).start()
    sys.argv[:] = sys.argv[1:]  # noqa: TID251 - the module reads its own arguments from there
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end_when_let_go() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    main()
