"""Where a line of text may be broken: between words, and between Chinese characters, but never before a closing mark
or behind an opening one. Pure; used by `kuwa.terminal.markdown`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

NOT_FIRST = frozenset("，。、；：！？．）〕］｝〉》」』】〗…—～‧·％,.;:!?)]}%'\"’”")
NOT_LAST = frozenset("（〔［｛〈《「『【〖([{'\"‘“")

Width = Callable[[str], int]


def breaks(text: str, width: int, width_of: Width) -> list[int]:
    """The offsets at which to begin new lines, so that none is wider than `width` cells; `width_of` measures. The
    blanks at the end of a line do not count. What has no place to be broken is broken anywhere."""
    offsets: list[int] = []
    used = 0
    for start, end in pieces(text, width_of):
        piece = text[start:end]
        cells = width_of(piece.rstrip(" "))
        if used and used + cells > width:
            offsets.append(start)
            used = 0
        if cells > width:
            for at, character in enumerate(piece.rstrip(" "), start):
                own = width_of(character)
                if used and used + own > width:
                    offsets.append(at)
                    used = 0
                used += own
            used += width_of(piece) - cells
        else:
            used += width_of(piece)
    return offsets


def pieces(text: str, width_of: Width) -> Iterator[tuple[int, int]]:
    """The parts, from offset to offset, that are not broken inside."""
    start = 0
    for at in range(1, len(text)):
        if _may_break(text[at - 1], text[at], width_of):
            yield start, at
            start = at
    if text:
        yield start, len(text)


def _may_break(before: str, after: str, width_of: Width) -> bool:
    if before == " ":
        return after != " "
    if after == " " or after in NOT_FIRST or before in NOT_LAST:
        return False
    # A mark of no width belongs to what it stands behind (an accent, a joiner between emoji).
    if width_of(after) == 0 or before == "\u200d" or width_of(before) == 0:
        return False
    return width_of(before) == 2 or width_of(after) == 2
