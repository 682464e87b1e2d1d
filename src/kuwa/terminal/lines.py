"""Reads lines at a terminal: editing, history and Tab by the standard library's readline, which knows the width of
Chinese characters. Used by `kuwa.terminal.chat`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

KEPT = 1000
PRIVATE = 0o600


class Lines:
    """Lines with a history that is kept in a file; an entry may have several lines. A context manager, whose end
    writes the history. Without readline (some Pythons lack it) lines are read all the same."""

    def __init__(self, history: Path, completions: Callable[[str], list[str]]) -> None:
        self._path = history
        self._completions = completions
        self._offered: list[str] = []
        self._said: list[str] = []
        try:
            import readline
        except ImportError:
            self._readline = None
        else:
            self._readline = readline

    def __enter__(self) -> Lines:
        readline = self._readline
        if readline is None:
            return self
        readline.set_auto_history(False)
        readline.set_completer(self._complete)
        readline.set_completer_delims("")
        editline = "libedit" in (readline.__doc__ or "")  # macOS; readline.backend came with Python 3.13
        readline.parse_and_bind("bind ^I rl_complete" if editline else "tab: complete")
        if not editline:
            # What is pasted arrives whole, line breaks included, instead of as so many questions.
            readline.parse_and_bind("set enable-bracketed-paste on")
        with suppress(OSError, ValueError):
            for line in self._path.read_text(encoding="utf-8").splitlines()[-KEPT:]:
                readline.add_history(str(json.loads(line)))
        return self

    def __exit__(self, *_: object) -> None:
        if not self._said:
            return
        # What one says to a model is nobody else's business. A history that cannot be kept is no reason to fail.
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            number = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, PRIVATE)
            with os.fdopen(number, "w", encoding="utf-8") as file:
                file.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in self._said)

    def ask(self, prompt: str) -> str:
        """The next line; bytes that are no UTF-8 are marked. Raises EOFError at Ctrl-D, KeyboardInterrupt at Ctrl-C."""
        return input(prompt).encode(errors="replace").decode()

    def remember(self, entry: str) -> None:
        """Let the arrow keys bring `entry` back, now and in chats to come."""
        if self._said[-1:] == [entry]:
            return
        self._said.append(entry)
        if self._readline is not None:
            self._readline.add_history(entry)

    def _complete(self, text: str, state: int) -> str | None:
        if state == 0:
            self._offered = [offer for offer in self._completions(text) if offer.startswith(text)]
        return self._offered[state] if state < len(self._offered) else None
