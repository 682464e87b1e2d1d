"""By what answers of this executor are computed, as one word: two executors with the same word answer alike.

The weights are sampled (their beginning, with all of the header, and blocks spread over the rest) and not read
whole: a file of many gigabytes is told from another in milliseconds, and the size counts too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

HEAD_BYTES = 4 * 1024 * 1024
BLOCKS = 64
BLOCK_BYTES = 64 * 1024


def fingerprint(path: Path, settings: Iterable[object]) -> str:
    """`settings`: whatever else the answers depend on, each as its `repr`. Raises OSError."""
    digest = hashlib.blake2b(digest_size=16)
    size = path.stat().st_size
    digest.update(f"{size} {version('xllamacpp')} {list(settings)!r}".encode())
    with path.open("rb") as file:
        digest.update(file.read(HEAD_BYTES))
        for number in range(BLOCKS):
            file.seek(max(0, size - BLOCK_BYTES) * number // (BLOCKS - 1))
            digest.update(file.read(BLOCK_BYTES))
    return f"llamacpp-{digest.hexdigest()}"
