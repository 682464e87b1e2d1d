"""When each access code was first served, bounded in number. Pure: `now` is passed in."""

from __future__ import annotations

from collections.abc import Container, Iterator

MAX_REMEMBERED_CODES = 10_000


class FirstServed:
    """`served` contains the access codes that have replicas: the others are the first to be forgotten."""

    def __init__(self, served: Container[str]) -> None:
        self._served = served
        self._first: dict[str, float] = {}

    def get(self, access_code: str) -> float | None:
        """When the access code was first registered, or None if it never was."""
        return self._first.get(access_code)

    def note(self, access_code: str, now: float) -> None:
        """The access code is served; repeating it changes nothing."""
        if access_code not in self._first:
            self._first[access_code] = now
            if len(self._first) > MAX_REMEMBERED_CODES:
                del self._first[next(self._oldest_absent())]

    def _oldest_absent(self) -> Iterator[str]:
        yield from (code for code in self._first if code not in self._served)
        yield from self._first
