"""`kuwa chat` in a pipe: the input is one question, the output exactly the answer. Called by `kuwa.terminal.chat`."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import aclosing

from kuwa.client import Client, Refused
from kuwa.terminal.complaints import BAD_USAGE, FAILED, complain, listing, not_served, problem
from kuwa.terminal.config import Setting
from kuwa.terminal.conversation import Conversation
from kuwa.wire.errors import KuwaError
from kuwa.wire.lines import printable
from kuwa.words import Words, words_in


def piped(setting: Setting, access_code: str, system: str) -> int:
    """Answer what stands on standard input; returns the exit code."""
    words = words_in(setting.language)
    try:
        question = sys.stdin.buffer.read().decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        return complain(words.chat.not_utf8.format(position=error.start), BAD_USAGE)
    if not question.strip():
        return complain(words.chat.nothing_said, BAD_USAGE)
    try:
        asyncio.run(_answer_in_pipe(setting, words, access_code, system, question))
    except _Unclear as error:
        return complain(str(error), BAD_USAGE)
    except KuwaError as error:
        return complain(problem(setting, words, error), FAILED)
    except BrokenPipeError:
        # The reader has what it wanted (`| head -1`); nothing more may be written, at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        return complain(words.chat.cannot_write.format(reason=error.strerror), FAILED)
    return 0


class _Unclear(Exception):
    """Which model is meant cannot be known."""


async def _answer_in_pipe(setting: Setting, words: Words, access_code: str, system: str, question: str) -> None:
    client = Client(setting.kernel_url, tls=setting.tls)
    model = access_code or _only(await client.models(), words, setting)
    out = sys.stdout.buffer
    to_terminal = sys.stdout.isatty()
    last = ""
    try:
        async with aclosing(client.chat(model, Conversation(model, system).asking(question))) as deltas:
            async for delta in deltas:
                if not delta.text:
                    continue
                last = printable(delta.text) if to_terminal else delta.text
                out.write(last.encode(errors="replace"))
                out.flush()
    except Refused as error:
        if error.code != "model_not_found":
            raise
        models = await client.models()
        raise _Unclear(not_served(setting, words, model, models)) from error
    if to_terminal and not last.endswith("\n"):
        out.write(b"\n")
        out.flush()


def _only(models: Sequence[str], words: Words, setting: Setting) -> str:
    if not models:
        raise _Unclear(words.chat.none_served.format(url=setting.kernel_url))
    if len(models) > 1:
        raise _Unclear(words.chat.several_models.format(models=listing(models)))
    return models[0]
