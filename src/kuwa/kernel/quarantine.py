"""Requests under which executors die, kept from killing more of them. Pure; `kernel/chat` asks and reports.

A request that was running on two replicas when they died, without having been answered (or got past the place of
the first death) in between, is refused for a minute wherever it comes from. It is known by a digest of its access
code and body, so the same words sent again are the same request. While nothing has died lately, none of this costs
a request anything.
"""

from __future__ import annotations

import hashlib

from kuwa.wire.errors import RequestQuarantined

MAX_DEATHS = 2
WINDOW_S = 60.0
MAX_SUSPECTS = 1024
_DIGEST_BYTES = 16

Digest = bytes
_NOBODY: frozenset[str] = frozenset()


class Quarantine:
    """The requests that something has died under within the last minute, and how often.

    While there are no `suspects` there is nothing to ask or report but deaths.
    """

    def __init__(self) -> None:
        self.suspects: dict[Digest, tuple[frozenset[str], float]] = {}

    def died(self, access_code: str, body: bytes, replica_id: str, now: float) -> None:
        """A replica died under this request. Of several such requests that were alike, one death counts once."""
        digest = digest_of(access_code, body)
        dead = self._dead(digest, now) | {replica_id}
        self.suspects.pop(digest, None)
        if len(self.suspects) >= MAX_SUSPECTS:
            del self.suspects[next(iter(self.suspects))]
        self.suspects[digest] = (dead, now + WINDOW_S)

    def cleared(self, access_code: str, body: bytes) -> None:
        """The request was answered: it does not kill."""
        self.suspects.pop(digest_of(access_code, body), None)

    def check(self, access_code: str, body: bytes, now: float) -> None:
        """Raises RequestQuarantined."""
        if len(self._dead(digest_of(access_code, body), now)) >= MAX_DEATHS:
            raise RequestQuarantined(
                f"{MAX_DEATHS} executors of the model {access_code!r} died while they computed this request, so it "
                f"is refused for {WINDOW_S:g} s. Send another one, or look at the executors' logs."
            )

    def sweep(self, now: float) -> None:
        """Forget what is over."""
        for digest in [digest for digest, (_, until) in self.suspects.items() if until <= now]:
            del self.suspects[digest]

    def _dead(self, digest: Digest, now: float) -> frozenset[str]:
        dead, until = self.suspects.get(digest, (_NOBODY, 0.0))
        return dead if now < until else _NOBODY


def digest_of(access_code: str, body: bytes) -> Digest:
    """By what a request is known again when it is sent again."""
    return hashlib.blake2b(access_code.encode() + b"\0" + body, digest_size=_DIGEST_BYTES).digest()
