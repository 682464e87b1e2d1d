"""What was said in one `kuwa chat`, and what the person's lines mean. Pure: `kuwa.terminal.chat` reads the keys,
asks the model and shows the answer."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

Message = dict[str, str]

COMMANDS = ("/system", "/model", "/save", "/clear", "/help", "/quit")
FENCE = '"""'
REMOVE = "-"


@dataclass(slots=True)
class Conversation:
    """`turns` are the messages of user and assistant in turn; a question whose answer failed is not among them."""

    model: str
    system: str = ""
    turns: list[Message] = field(default_factory=list[Message])

    def asking(self, text: str) -> list[Message]:
        """The messages to send for `text`."""
        return [*self.messages(), {"role": "user", "content": text}]

    def keep(self, asked: str, answered: str) -> None:
        self.turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]

    def messages(self) -> list[Message]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.turns]

    def as_json(self) -> str:
        """As a request holds it, so that it can be sent again."""
        return json.dumps({"model": self.model, "messages": self.messages()}, ensure_ascii=False, indent=2) + "\n"

    def as_markdown(self) -> str:
        """For people: one heading for each message."""
        parts = [f"## {message['role']}\n\n{message['content'].rstrip()}\n" for message in self.messages()]
        return "\n".join([f"# {self.model}\n", *parts])


class Entry:
    """One thing a person says, which may have several lines: a line ends in a backslash to be continued, or the text
    stands between two marks of three quotes."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._fenced = False
        self.complete = False

    def add(self, line: str) -> None:
        """Take the next line; `complete` says whether it was the last."""
        if not self._lines and line.lstrip().startswith(FENCE):
            self._fenced = True
            line = line.lstrip().removeprefix(FENCE)
        if self._fenced:
            self.complete = line.rstrip().endswith(FENCE)
            self._lines.append(line.rstrip().removesuffix(FENCE) if self.complete else line)
        else:
            continues = line.endswith("\\")
            self.complete = not continues
            self._lines.append(line[:-1] if continues else line)

    @property
    def begun(self) -> bool:
        return bool(self._lines)

    @property
    def text(self) -> str:
        return "\n".join(self._lines).strip("\n") if self._fenced else "\n".join(self._lines)

    @property
    def is_command(self) -> bool:
        """Whether it begins with a stroke. Text that is to begin with one is put between quotes or behind a blank."""
        return not self._fenced and self.text.startswith("/")


def command(text: str) -> tuple[str, str]:
    """A command and what stands behind it."""
    name, _, rest = text.partition(" ")
    return name.strip(), rest.strip()
