"""Assembling what a model reads: system prompt, Modelfile, history, in their order; and the trimming of old turns.

The server applies the Modelfile before an executor sees a request; executors call the rest where their model has
a system prompt of its own, a template option or a limited context. Pure: a path is read by the caller.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kuwa.executor.modelfile import Modelfile
from kuwa.wire import openai
from kuwa.wire.json import is_list

Message = dict[str, Any]

SYSTEM_ROLES = ("system", "developer")
_URL = re.compile(r"https?://\S+")


class UnknownTemplate(ValueError):
    """The text given as a template is neither a template, nor a file, nor a known name."""


def text_of(message: Message) -> str:
    """The text of a message whose content is text, null or a list of parts; what is no text is left out."""
    return openai.text_of(message.get("content"))


def last_user_text(messages: Sequence[Message]) -> str:
    """The text of the last user message; empty where there is none."""
    return next((text_of(m) for m in reversed(messages) if m.get("role") == "user"), "")


def apply_modelfile(messages: Sequence[Message], modelfile: Modelfile) -> list[Message]:
    """The system prompt, the Modelfile's messages, then the history with the last user turn wrapped.

    The Modelfile's system prompt takes the place of the conversation's own.
    """
    system = [m for m in messages if m.get("role") in SYSTEM_ROLES]
    history = [m for m in messages if m.get("role") not in SYSTEM_ROLES]
    if modelfile.override_system_prompt:
        system = [{"role": "system", "content": modelfile.override_system_prompt}]
    return [*system, *modelfile.messages, *_wrap(history, modelfile.before_prompt, modelfile.after_prompt)]


def _wrap(history: list[Message], before: str, after: str) -> list[Message]:
    last = next((i for i in reversed(range(len(history))) if history[i].get("role") == "user"), None)
    if last is None or not (before or after):
        return history
    content: Any = history[last].get("content")
    if is_list(content):
        wrapped: Any = [
            *([{"type": "text", "text": before}] if before else []),
            *content,
            *([{"type": "text", "text": after}] if after else []),
        ]
    else:
        wrapped = before + (content or "") + after
    return [*history[:last], {**history[last], "content": wrapped}, *history[last + 1 :]]


def with_system_prompt(messages: Sequence[Message], system_prompt: str) -> list[Message]:
    """`messages` led by the executor's own system prompt, where they bring none."""
    if not system_prompt or any(m.get("role") in SYSTEM_ROLES for m in messages):
        return list(messages)
    return [{"role": "system", "content": system_prompt}, *messages]


def trim_oldest(messages: Sequence[Message], fits: Callable[[list[Message]], bool]) -> tuple[list[Message], int] | None:
    """Leave out the oldest turns until `fits` says yes: what is left, and how many messages were left out.

    System messages stay. What is left begins with a user turn, so that no answer stands without its question.
    None where not even the last user turn fits. `fits` is asked about log2(number of turns) times.
    """
    kept = list(messages)
    if fits(kept):
        return kept, 0
    system = [m for m in messages if m.get("role") in SYSTEM_ROLES]
    history = [m for m in messages if m.get("role") not in SYSTEM_ROLES]
    starts = [i for i, m in enumerate(history) if i > 0 and m.get("role") == "user"]
    if not starts or not fits([*system, *history[starts[-1] :]]):
        return None
    low, high = 0, len(starts) - 1
    while low < high:
        middle = (low + high) // 2
        if fits([*system, *history[starts[middle] :]]):
            high = middle
        else:
            low = middle + 1
    return [*system, *history[starts[low] :]], starts[low]


def resolve_template(given: str, file_text: str | None, known: Iterable[str] = ()) -> str:
    """The template that `given` means: template text as it stands, else the file's text, else a known name.

    `file_text` is what the caller read from the path `given`, None where there is no such file. Raises
    UnknownTemplate, since an engine that is given an unknown name may take it for the whole prompt.
    """
    if "{{" in given or "{%" in given:
        return given
    if file_text is not None:
        return file_text
    names = list(known)
    if given in names:
        return given
    choices = f", nor one of {', '.join(names)}" if names else ""
    raise UnknownTemplate(f"{given!r} is no template (text with {{{{ or {{%), no file{choices}")


# What executors of June 2024 import from `kuwa.executor.llm_executor`.


def to_openai_chat_format(history: Sequence[Message]) -> list[Message]:
    """Turns `{"msg", "isbot"}` of the v1.0 wire as OpenAI messages."""
    return [{"role": "assistant" if t.get("isbot") else "user", "content": t.get("msg") or ""} for t in history]


def rectify_chat_history(history: Sequence[Message]) -> list[Message]:
    """`history` such that its first turn after the system messages is the user's."""
    start = next((i for i, m in enumerate(history) if m.get("role") == "user"), len(history))
    return [*(m for m in history[:start] if m.get("role") in SYSTEM_ROLES), *history[start:]]


def extract_last_url(history: Sequence[Message]) -> tuple[str | None, list[Message]]:
    """The last URL that the user gave, and the history from that turn on; None and all of it without one."""
    for index in reversed(range(len(history))):
        urls = _URL.findall(text_of(history[index])) if history[index].get("role") == "user" else []
        if urls:
            return urls[-1], list(history[index:])
    return None, list(history)
