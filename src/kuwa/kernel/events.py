"""The events of an OpenAI stream, cut and looked into. Pure; for `relay` and `resume`."""

from __future__ import annotations

import msgspec

from kuwa.kernel.refusals import Usage

EMPTY = (b'""', b"null", b"[]", b"{}")


class Choice(msgspec.Struct, gc=False):
    delta: dict[str, msgspec.Raw] = {}
    text: str = ""
    finish_reason: str | None = None


class Event(msgspec.Struct):
    """What the kernel reads of an event."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: dict[str, msgspec.Raw] | str | None = None

    @property
    def has_content(self) -> bool:
        """Whether it carries more than the role."""
        return any(
            choice.text
            or choice.finish_reason is not None
            or any(bytes(value) not in EMPTY for name, value in choice.delta.items() if name != "role")
            for choice in self.choices
        )

    @property
    def finishes(self) -> bool:
        return any(choice.finish_reason is not None for choice in self.choices)


_decode = msgspec.json.Decoder(Event).decode


def whole_events(data: bytes) -> int:
    """How many bytes of `data` are whole events: up to the last blank line."""
    lf = data.rfind(b"\n\n") + 2
    crlf = data.rfind(b"\r\n\r\n") + 4
    return max(lf if lf >= 2 else 0, crlf if crlf >= 4 else 0)


def blocks_of(events: bytes) -> list[bytes]:
    """Whole events one by one, each with the blank line that ends it."""
    separator = b"\n\n" if b"\r" not in events else b"\r\n\r\n"
    parts = events.split(separator)
    last = parts.pop()
    blocks = [part + separator for part in parts]
    if last:
        blocks.append(last)
    return blocks


def data_of(block: bytes) -> bytes:
    """The data of an event; of several data lines, joined."""
    if block.startswith(b"data: ") and block.find(b"\n", 0, len(block) - 2) < 0:
        return block[6:].strip()
    return b"\n".join(line[5:].removeprefix(b" ") for line in block.splitlines() if line.startswith(b"data:")).strip()


def event_in(data: bytes) -> Event | None:
    """The event's message, or None for comments, [DONE] and what is no JSON object."""
    if not data.startswith(b"{"):
        return None
    try:
        return _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
