"""How failures are told: one line that says what to do. Used by every command of `kuwa.terminal`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from kuwa.client import NoKernel
from kuwa.terminal.config import Setting
from kuwa.wire.errors import KuwaError
from kuwa.wire.lines import printable
from kuwa.words import Words

FAILED = 1
BAD_USAGE = 2
NAMED_AT_MOST = 20


def problem(setting: Setting, words: Words, error: KuwaError) -> str:
    """An error in one line that says what to do."""
    if isinstance(error, NoKernel):
        return words.no_kernel.format(url=setting.kernel_url)
    return printable(" ".join(error.message.split()))


def not_served(setting: Setting, words: Words, model: str, models: Sequence[str]) -> str:
    """That `model` is none of `models`, and which there are."""
    if not models:
        return words.chat.none_served.format(url=setting.kernel_url)
    return words.chat.not_served.format(model=model, models=listing(models))


def listing(models: Sequence[str]) -> str:
    shown = ", ".join(models[:NAMED_AT_MOST])
    return f"{shown}, …" if len(models) > NAMED_AT_MOST else shown


def complain(text: str, code: int) -> int:
    """Say `text` where errors go; returns the exit code."""
    sys.stderr.write(f"kuwa: {text}\n")
    return code
