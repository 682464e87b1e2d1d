"""Exact counts of tokens, where the model's own tokenizer lies on this machine (`--tokenizer`).

A file `tokenizer.json`, or a folder that holds it; with a chat template in its `tokenizer_config.json` (or a file
`chat_template.jinja`) whole conversations are counted as the model will read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import msgspec

from kuwa.executor import SetupFailed
from kuwa.executor.arguments import UsageError
from kuwa.executor.prompt import Message
from kuwa.executor.provider.context import TOKENS_PER_MEDIUM, TOKENS_PER_MESSAGE
from kuwa.wire.json import BadJson, Fields, decode, is_object
from kuwa.wire.openai import parts_of, text_of

if TYPE_CHECKING:
    from jinja2 import Template


class LocalTokenizer:
    """Counts with the tokenizer at `path`. Raises UsageError where there is none, SetupFailed without its package."""

    def __init__(self, path: Path) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise SetupFailed(
                f"--tokenizer needs the tokenizers package, which is not installed ({error}): "
                "pip install 'kuwa[chatgpt]'"
            ) from error
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise UsageError(f"--tokenizer: there is no file {file}")
        try:
            self._tokenizer: Any = Tokenizer.from_file(str(file))
        except Exception as error:  # the package raises nothing narrower
            raise UsageError(f"--tokenizer: {file} is no tokenizer: {error}") from error
        self._tokenizer.no_truncation()
        self._config = _read_config(file.parent)
        self._template = _template(file.parent, self._config)

    def text_tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def count(self, messages: Sequence[Message]) -> int:
        """What the conversation takes, with the opening of the answer behind it."""
        texts = [{**message, "content": _text(message)} for message in messages]
        media = sum(_media(message) for message in messages) * TOKENS_PER_MEDIUM
        rendered = self._render(texts)
        if rendered is not None:
            return self.text_tokens(rendered) + media
        shown = (str(message["content"]) + _calls(message) for message in texts)
        return sum(self.text_tokens(text) + TOKENS_PER_MESSAGE for text in shown) + media

    def _render(self, messages: list[Message]) -> str | None:
        """The conversation as the template writes it; None where there is none or it refuses this conversation."""
        if self._template is None:
            return None
        from jinja2 import TemplateError

        special = {name: self._config.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        tokens = {
            name: token.get("content", "") if is_object(token) else token or "" for name, token in special.items()
        }
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **tokens)
        except (TemplateError, TypeError, ValueError):
            return None


def _template(folder: Path, config: Fields) -> Template | None:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    file = folder / "chat_template.jinja"
    text: Any = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
    if not isinstance(text, str):
        return None
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    cast("Fields", environment.globals)["raise_exception"] = _refuse
    return environment.from_string(text)


def _refuse(message: str) -> NoReturn:
    """What templates call for conversations they do not take."""
    raise ValueError(message)


def _read_config(folder: Path) -> Fields:
    file = folder / "tokenizer_config.json"
    try:
        return decode(file.read_bytes(), Fields) if file.is_file() else {}
    except (BadJson, OSError) as error:
        raise UsageError(f"--tokenizer: {file} cannot be read: {error}") from error


def _text(message: Message) -> str:
    content = message.get("content")
    return text_of(content)


def _media(message: Message) -> int:
    content = message.get("content")
    return sum("text" not in part for part in parts_of(content))


def _calls(message: Message) -> str:
    calls = message.get("tool_calls")
    return msgspec.json.encode(calls).decode() if calls else ""
