"""Markdown that is shown while it is being written. `kuwa.terminal.chat` feeds it.

What is finished is printed once and scrolls away as any output does; only the block that is still growing is drawn
anew. So a long answer flickers nowhere, and what stands in the scroll-back is right. rich is imported here at the
top: this module itself is imported late.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, ClassVar

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import CodeBlock, Heading, Markdown, MarkdownElement, Paragraph
from rich.segment import Segment
from rich.spinner import Spinner
from rich.syntax import Syntax
from rich.text import Text

from kuwa.terminal.wrapping import breaks

REFRESH_PER_S = 12
MARGIN_LINES = 2
CODE_THEME = "ansi_dark"  # the terminal's own colours, on its own background


class _Paragraph(Paragraph):
    """A paragraph whose lines are broken as Chinese is, too."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines: list[Text] = []
        for line in self.text.split("\n", allow_blank=True):
            lines += line.divide(breaks(line.plain, options.max_width, cell_len))
        for line in lines:
            line.rstrip()
        yield Text("\n", no_wrap=True, overflow="ignore").join(lines)


class _Heading(Heading):
    """A heading where the eye is: at the left."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        yield self.text


class _Code(CodeBlock):
    """Code without a frame, so that what is copied is the code and nothing else."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = self.text.plain.rstrip()
        text = Syntax(code, self.lexer_name, theme=self.theme).highlight(code)
        text.rstrip()
        if self.lexer_name == "text":
            text.stylize("cyan")
        # Long lines are left to the terminal to wrap, and so are copied whole; inside a list they would be cut off.
        outermost = options.max_width == console.width
        text.no_wrap, text.overflow = (True, "ignore") if outermost else (False, "fold")
        yield text


class Prose(Markdown):
    """Markdown as people write it in a chat: line breaks are kept, and `<tags>` are shown, not swallowed. Links show
    where they lead."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "heading_open": _Heading,
        "paragraph_open": _Paragraph,
        "fence": _Code,
        "code_block": _Code,
    }

    def __init__(self, text: str) -> None:
        super().__init__("", code_theme=CODE_THEME, hyperlinks=False)
        self.markup = text
        self.parsed = list(_parse(text))


def _parser() -> MarkdownIt:
    # A definition of a link's target would be swallowed, and what refers to it may be printed already.
    return MarkdownIt("commonmark", {"html": False}).enable("table").enable("strikethrough").disable("reference")


def _parse(text: str) -> Iterator[Token]:
    for token in _parser().parse(text):
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"
        yield token


def blocks(text: str) -> list[str]:
    """Cut `text` into its outermost blocks: paragraphs, lists, tables, pieces of code. Joined they are `text` again."""
    starts = [
        token.map[0]
        for token in _parser().parse(text)
        if token.level == 0 and token.map is not None and token.nesting >= 0
    ]
    lines = text.split("\n")
    edges = [0, *starts[1:], len(lines)]
    parts = ["\n".join(lines[start:end]) for start, end in pairwise(edges)]
    return [part + "\n" for part in parts[:-1]] + parts[-1:]


def finished(text: str) -> tuple[list[str], str]:
    """The blocks of `text` that cannot change any more, and the rest, which still grows.

    A block is finished when another one has begun, and that is sure when the other's first line is complete.
    """
    complete, newline, begun = text.rpartition("\n")
    *done, growing = blocks(complete + newline)
    return done, growing + begun


class AnswerView:
    """One answer on a terminal, from the wait for its first word to its end. A context manager."""

    def __init__(self, console: Console, waiting: str) -> None:
        self._console = console
        self._spinner = Spinner("dots", text=Text(waiting, style="dim"), style="dim")
        self._rest = ""
        self._thought = ""
        self._printed = False
        self._live = Live(
            get_renderable=self._growing, console=console, refresh_per_second=REFRESH_PER_S, transient=True
        )

    def __enter__(self) -> AnswerView:
        self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        """Whatever ended it, what has come stays on the screen."""
        rest, self._rest = self._rest, ""
        self._live.stop()
        self._print_thought()
        for block in blocks(rest) if rest.strip() else ():
            self._print(Prose(block))

    def think(self, text: str) -> None:
        """More of what the model says to itself."""
        self._thought += text

    def add(self, text: str) -> None:
        """More of the answer."""
        self._print_thought()
        self._rest += text
        if "\n" in text:
            done, self._rest = finished(self._rest)
            for block in done:
                self._print(Prose(block))

    def _print_thought(self) -> None:
        thought, self._thought = self._thought.strip(), ""
        if thought:
            self._print(Text(thought, style="dim italic"))

    def _print(self, content: RenderableType) -> None:
        first, self._printed = not self._printed, True
        # What is printed above the growing part draws that part as it was drawn last: so draw it anew first.
        self._live.refresh()
        if not first:
            self._console.print()
        self._console.print(_Trimmed(content), crop=False)

    def _growing(self) -> RenderableType:
        if self._thought:
            body: RenderableType = Text(self._thought.strip(), style="dim italic")
        elif self._rest.strip():
            body = Prose(self._rest)
        elif self._printed:
            return Text("")
        else:
            return self._spinner
        return _Tail(Group(Text(""), _Trimmed(body)) if self._printed else _Trimmed(body))


class _Trimmed:
    """Something without the empty lines above and below it."""

    def __init__(self, content: RenderableType) -> None:
        self._content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = [list(line) for line in Segment.split_lines(console.render(self._content, options))]
        while lines and _is_empty(lines[0]):
            del lines[0]
        while lines and _is_empty(lines[-1]):
            del lines[-1]
        for line in lines:
            yield from line
            yield Segment.line()


def _is_empty(line: list[Segment]) -> bool:
    return not "".join(segment.text for segment in line).strip()


class _Tail:
    """The last lines of something that may be higher than the screen."""

    def __init__(self, content: RenderableType) -> None:
        self._content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._content, options.update(height=None), pad=False)
        for line in lines[-max(1, options.size.height - MARGIN_LINES) :]:
            yield from line
            yield Segment.line()
