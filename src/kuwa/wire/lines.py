"""What strangers wrote, as a terminal or a log may show it. Pure; every program's log is made of such lines.

A model's answer, an error of another server or a name inside a model file must not move the cursor, set the title,
turn the direction of the text, or begin a line of the log that nobody logged.
"""

from __future__ import annotations

import logging
import re
from types import TracebackType

from kuwa.wire.redaction import Redactor

# The C0 and C1 controls, the ones that turn the direction of the text, and the separators that Unicode calls lines.
_OBEYED = "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
_IN_TEXT = re.compile(f"(?![\n\t])[{_OBEYED}]")
_IN_LINE = re.compile(f"[{_OBEYED}]")
_INDENT = "    "

LINE_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def printable(text: str) -> str:
    """`text` without what a terminal would obey; line breaks and tabs stay."""
    return _IN_TEXT.sub("", text)


def one_line(text: str) -> str:
    """`text` with what a terminal or a reader of lines would obey written out, such as `\\n` and `\\x1b`."""
    return _IN_LINE.sub(_written_out, text)


def indented(text: str) -> str:
    """Several lines of which none can be taken for one that a program logged."""
    return "\n".join(_INDENT + line for line in printable(text).split("\n"))


class LineFormatter(logging.Formatter):
    """One line for each record; a traceback follows on lines that are indented.

    `hidden` among the record's extras are keys that the line must not show.
    """

    def __init__(self) -> None:
        super().__init__(LINE_FORMAT)

    def format(self, record: logging.LogRecord) -> str:
        return Redactor(*getattr(record, "hidden", ()))(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the standard library's name
        return one_line(super().formatMessage(record))

    def formatException(self, ei: _ExcInfo) -> str:  # noqa: N802 - the standard library's name
        return indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802 - the standard library's name
        return indented(super().formatStack(stack_info))


def _written_out(found: re.Match[str]) -> str:
    return found.group().encode("unicode_escape").decode("ascii")
