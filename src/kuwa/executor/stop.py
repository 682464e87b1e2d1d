"""Cuts an answer at its stop strings, for executors that do not do so themselves. Pure; used by `answer`."""

from __future__ import annotations

from collections.abc import Sequence


class StopCutter:
    """Takes an answer piece by piece and gives back what may be shown.

    The end of a piece that could be the beginning of a stop string is held back until it is known not to be one,
    so that no part of a stop string is ever given out. Where several match, the one that begins first counts.
    """

    __slots__ = ("_held", "_longest", "_stops", "stopped")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops: tuple[str, ...] = tuple(dict.fromkeys(stop for stop in stops if stop))
        self._longest = max(map(len, self._stops), default=0)
        self._held: str = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """What may be shown now that `text` has come; nothing once `stopped`."""
        if self.stopped:
            return ""
        text = self._held + text
        first = min((at for stop in self._stops if (at := text.find(stop)) >= 0), default=-1)
        if first >= 0 and not self._may_begin_earlier(text, first):
            self.stopped = True
            self._held = ""
            return text[:first]
        keep = self._begun(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """The answer has ended: what was held back, cut at a stop string that a longer candidate had kept open."""
        text, self._held = self._held, ""
        first = min((at for stop in self._stops if (at := text.find(stop)) >= 0), default=-1)
        if first >= 0:
            self.stopped = True
            return text[:first]
        return text

    def _may_begin_earlier(self, text: str, first: int) -> bool:
        """Whether a stop string that is still incomplete began before `first`."""
        return len(text) - self._begun(text) < first

    def _begun(self, text: str) -> int:
        """The length of the longest end of `text` with which a stop string begins."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            tail = text[len(text) - length :]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
