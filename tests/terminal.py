"""A program in a terminal of its own: keys go in, what it shows comes out. For tests of what depends on a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

import psutil

# The terminal has to be the program's own, or Ctrl-C would reach nobody.
OWN_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)
ESCAPE = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[=>])")
CTRL_C = "\x03"
CTRL_D = "\x04"
UP = "\x1b[A"
TIMEOUT_S = 20.0


class Terminal:
    """A context manager; its end ends the program. Of `columns` by `rows` characters."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], *, columns: int = 80, rows: int = 24) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._popen = subprocess.Popen(
            [sys.executable, "-c", OWN_TERMINAL, *argv],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**env, "TERM": "xterm-256color"},
            start_new_session=True,
        )
        os.close(theirs)
        self._shown = b""
        self._looked = 0

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._popen.poll() is None:
            self._popen.kill()
            self._popen.wait()
        os.close(self._ours)

    @property
    def raw(self) -> str:
        """Everything the program wrote, escape sequences included."""
        self._read(0)
        return self._shown.decode(errors="replace")

    @property
    def text(self) -> str:
        """Everything the program wrote, without escape sequences and carriage returns."""
        return ESCAPE.sub("", self.raw).replace("\r", "")

    def press(self, keys: str) -> None:
        """Press keys once the program waits for something: what it shows, it shows before it does. A Ctrl-C that comes
        in between readline neither sees nor is woken by; a person presses it again.
        """
        deadline = time.monotonic() + TIMEOUT_S
        while self._popen.poll() is None and psutil.Process(self._popen.pid).status() != psutil.STATUS_SLEEPING:
            assert time.monotonic() < deadline, f"busy for {TIMEOUT_S:g} s; shown: {self.text!r}"
        self._looked = len(self.text)
        os.write(self._ours, keys.encode())

    def say(self, line: str) -> None:
        """Type a line and the return key."""
        self.press(line + "\r")

    def see(self, words: str, *, timeout_s: float = TIMEOUT_S) -> str:
        """Wait until `words` have been shown since the last key; return what was shown since then."""
        deadline = time.monotonic() + timeout_s
        while words not in (shown := self.text[self._looked :]):
            assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {words!r}; shown: {self.text!r}"
            self._read(0.05)
        return shown

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        """The exit code, once it has ended; what it still shows is read meanwhile."""
        deadline = time.monotonic() + timeout_s
        while self._popen.poll() is None:
            assert time.monotonic() < deadline, f"it did not end; shown: {self.text!r}"
            self._read(0.05)
        return self._popen.returncode

    def _read(self, timeout_s: float) -> None:
        while select.select([self._ours], [], [], timeout_s)[0]:
            try:
                data = os.read(self._ours, 65536)
            except OSError:  # what Linux says when the program has ended
                time.sleep(timeout_s)
                return
            if not data:
                return
            self._shown += data
            timeout_s = 0
