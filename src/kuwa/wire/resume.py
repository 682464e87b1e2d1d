"""How a stream is gone on with by another executor: what the first one writes into it, what the next one is asked.

The kernel asks for it by the header `kuwa-resume: 1`. The stream then begins with the comment
`: r <fingerprint> <prompt hash> <prompt tokens> <seed>`, and an executor that has them writes the ids of the
tokens that it has consumed since the event before as `: k 12,7,99`, a line before the event's data. Comments are
trusted only where the executor registered the capability `resume`; model text cannot forge one, since JSON
escapes line breaks. The request to another executor is the first one's body with the field `kuwa_resume`.
"""

from __future__ import annotations

import msgspec

HEADER = b"kuwa-resume"
FIELD = "kuwa_resume"
_ANNOUNCED = b": r "
_IDS = b": k "


class Announcement(msgspec.Struct, frozen=True):
    """By what a stream is computed. Executors that announce the same compute the same."""

    fingerprint: str
    prompt_hash: str
    prompt_tokens: int
    seed: int


class ResumeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Compute the same stream again. `ids`: the tokens that were delivered, where they are known; an executor may
    take them as computed. `created` is the first stream's."""

    v: int = 1
    seed: int
    fingerprint: str
    prompt_hash: str
    created: int = 0
    ids: list[int] = []


def announce(announced: Announcement) -> bytes:
    """The comment, with the blank line that ends it."""
    return b"%b%b %b %d %d\n\n" % (
        _ANNOUNCED,
        announced.fingerprint.encode(),
        announced.prompt_hash.encode(),
        announced.prompt_tokens,
        announced.seed,
    )


def announcement_in(block: bytes) -> Announcement | None:
    """The announcement that a block of a stream is, or None."""
    if not block.startswith(_ANNOUNCED):
        return None
    words = block.strip().decode("ascii", "replace").split()[2:]
    try:
        fingerprint, prompt_hash, prompt_tokens, seed = words
        return Announcement(fingerprint, prompt_hash, int(prompt_tokens), int(seed))
    except ValueError:
        return None


def ids_line(ids: list[int]) -> bytes:
    """The comment line that stands before an event's data."""
    return b"%b%b\n" % (_IDS, ",".join(map(str, ids)).encode())


def ids_in(block: bytes) -> list[int]:
    """The token ids beside an event. Raises ValueError where they are none."""
    if _IDS not in block:
        return []
    lines = [line[len(_IDS) :] for line in block.splitlines() if line.startswith(_IDS)]
    return [int(number) for line in lines for number in line.split(b",")]
