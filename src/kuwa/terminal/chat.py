"""`kuwa chat`: talks to one model at a terminal. Called by `kuwa.cli`.

Each answer is a run of one event loop, so that Ctrl-C cancels exactly that answer: the connection is cut, and with it
the slot at the executor is free. What is no terminal is left to `kuwa.terminal.piped`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

from kuwa.client import Client, Message, Usage
from kuwa.terminal.complaints import BAD_USAGE, FAILED, complain, not_served, problem
from kuwa.terminal.config import Setting
from kuwa.terminal.conversation import COMMANDS, REMOVE, Conversation, Entry, command
from kuwa.terminal.lines import Lines
from kuwa.terminal.piped import piped
from kuwa.wire.errors import KuwaError
from kuwa.wire.lines import printable
from kuwa.words import words_in

if TYPE_CHECKING:
    from kuwa.terminal.markdown import AnswerView


def chat(setting: Setting, access_code: str, system: str) -> int:
    """Talk until the person ends it, or answer what stands in the pipe. Returns the exit code."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        return Session(setting, system).run(access_code)
    return piped(setting, access_code, system)


class Session:
    """One conversation at a terminal."""

    def __init__(self, setting: Setting, system: str) -> None:
        from rich.console import Console

        self._setting = setting
        self._words = words_in(setting.language)
        self._client = Client(setting.kernel_url, tls=setting.tls)
        self._console = Console(highlight=False, markup=False)
        self._lines = Lines(setting.folders.data / "chat_history", self._completions)
        self._conversation = Conversation("", system)
        self._models: list[str] = []
        self._saved: set[Path] = set()

    def run(self, access_code: str) -> int:
        """Until the person ends it; the exit code."""
        with asyncio.Runner() as runner:
            self._runner = runner
            try:
                self._models = runner.run(self._client.models())
            except KuwaError as error:
                return complain(problem(self._setting, self._words, error), FAILED)
            model = self._choose(access_code)
            if not model:
                return BAD_USAGE
            self._conversation.model = model
            self._console.print(self._words.chat.greeting.format(model=model), style="bold")
            self._console.print(self._words.chat.hint, style="dim")
            with self._lines:
                self._talk()
        return 0

    def _choose(self, access_code: str) -> str:
        """The model to talk to: the one named, the only one, or the one chosen from the list; empty for none."""
        words, models = self._words, self._models
        if access_code:
            if access_code in models:
                return access_code
            complain(not_served(self._setting, words, access_code, models), BAD_USAGE)
            return ""
        if not models:
            complain(words.chat.none_served.format(url=self._setting.kernel_url), FAILED)
            return ""
        if len(models) == 1:
            return models[0]
        self._console.print(words.chat.which_model, style="bold")
        for number, code in enumerate(models, start=1):
            self._console.print(f"{number:>3}  {code}")
        while True:
            try:
                given = self._lines.ask(words.chat.choose).strip()
            except (EOFError, KeyboardInterrupt):
                self._console.print()
                return ""
            if given in models:
                return given
            if given.isdecimal() and 0 < int(given) <= len(models):
                return models[int(given) - 1]
            if given:
                self._note(words.chat.not_in_list)

    def _talk(self) -> None:
        while True:
            try:
                entry = self._read()
            except EOFError:
                self._console.print()
                return
            except KeyboardInterrupt:
                self._console.print()
                self._note(self._words.chat.bye)
                continue
            if not entry.text.strip():
                continue
            self._lines.remember(entry.text)
            if not entry.is_command:
                self._ask(entry.text.strip())
            elif not self._obey(*command(entry.text)):
                return

    def _read(self) -> Entry:
        entry = Entry()
        while not entry.complete:
            entry.add(self._lines.ask("… " if entry.begun else "› "))
        return entry

    def _ask(self, text: str) -> None:
        from kuwa.terminal.markdown import AnswerView

        answer = Answer()
        begun = time.monotonic()
        messages = self._conversation.asking(text)
        error = None
        stopped = False
        try:
            with AnswerView(self._console, self._words.chat.waiting) as view:
                self._runner.run(answer.receive(self._client, self._conversation.model, messages, view))
        except KuwaError as refusal:
            error = refusal
        except KeyboardInterrupt:
            stopped = True
        if error is not None:
            self._problem(problem(self._setting, self._words, error))
            self._note(self._words.chat.not_kept)
            return
        if stopped:
            self._note(self._words.chat.stopped)
        if stopped and not answer.text:
            self._note(self._words.chat.not_kept)
            return
        self._conversation.keep(text, answer.text)
        if answer.finish_reason == "length":
            self._note(self._words.chat.cut_off)
        if answer.usage is not None:
            took_s = time.monotonic() - begun
            self._note(self._words.chat.figures.format(tokens=answer.usage.completion_tokens, took_s=took_s))

    # Commands

    def _obey(self, name: str, rest: str) -> bool:
        """Do what a command says; False for the end."""
        match name:
            case "/quit" | "/exit" | "/bye":
                return False
            case "/help" | "/?":
                self._console.print(self._words.chat.help)
            case "/system":
                self._system(rest)
            case "/model":
                self._model(rest)
            case "/save":
                self._save(rest)
            case "/clear":
                self._conversation.turns.clear()
                self._note(self._words.chat.cleared)
            case _:
                self._problem(self._words.chat.unknown_command.format(name=name))
        return True

    def _system(self, text: str) -> None:
        conversation, words = self._conversation, self._words
        if not text:
            shown = (
                words.chat.system_is.format(system=conversation.system)
                if conversation.system
                else words.chat.system_none
            )
            self._note(shown)
        elif text == REMOVE:
            conversation.system = ""
            self._note(words.chat.system_gone)
        else:
            conversation.system = text
            self._note(words.chat.system_set)

    def _model(self, code: str) -> None:
        words = self._words
        try:
            self._models = self._runner.run(self._client.models())
        except KuwaError as error:
            self._problem(problem(self._setting, words, error))
            return
        if not code:
            self._console.print(words.chat.models)
            for model in self._models:
                self._console.print(f"{'*' if model == self._conversation.model else ' '} {model}")
        elif code in self._models:
            self._conversation.model = code
            self._note(words.chat.model_set.format(model=code))
        else:
            self._problem(not_served(self._setting, words, code, self._models))

    def _save(self, name: str) -> None:
        """Write the conversation. What another program or an earlier chat left there is never overwritten."""
        words = self._words
        if not name:
            self._note(words.chat.save_where)
            return
        path = Path(name).expanduser()
        text = self._conversation.as_json() if path.suffix == ".json" else self._conversation.as_markdown()
        try:
            with path.open("w" if path.absolute() in self._saved else "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            self._problem(words.chat.save_exists.format(path=path))
        except OSError as error:
            self._problem(words.chat.save_failed.format(path=path, reason=error.strerror))
        else:
            self._saved.add(path.absolute())
            self._note(words.chat.saved.format(path=path))

    def _completions(self, line: str) -> list[str]:
        """What the Tab key offers for `line`."""
        if line.startswith("/model "):
            return [f"/model {code}" for code in self._models]
        return [f"{name} " for name in COMMANDS] if line.startswith("/") else []

    def _note(self, text: str) -> None:
        self._console.print(text, style="dim")

    def _problem(self, text: str) -> None:
        self._console.print(text, style="bold red")


class Answer:
    """One answer as it comes. What has come is there however it ends."""

    def __init__(self) -> None:
        self.text = ""
        self.finish_reason = ""
        self.usage: Usage | None = None

    async def receive(self, client: Client, model: str, messages: Sequence[Message], view: AnswerView) -> None:
        async with aclosing(client.chat(model, messages)) as deltas:
            async for delta in deltas:
                if delta.reasoning:
                    view.think(printable(delta.reasoning))
                if delta.text:
                    self.text += delta.text
                    view.add(printable(delta.text))
                self.finish_reason = delta.finish_reason or self.finish_reason
                self.usage = delta.usage or self.usage
