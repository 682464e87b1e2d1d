"""Damage to GGUF files as it happens: flipped bytes, numbers gone wild, pieces lost, doubled or cut off."""

from __future__ import annotations

import struct
from random import Random

HEADER_BYTES = 20_000
"""The part of the tiny model that is hit: its header ends before it."""

_WILD = (0, 1, 7, 255, 2**16, 2**31 - 1, 2**32 - 1, 2**63, 2**64 - 1)


def mutated(model: bytes, random: Random, most_hits: int = 4) -> bytes:
    """`model`, hit one to `most_hits` times somewhere in its header."""
    data = bytearray(model)
    for _ in range(random.randint(1, most_hits)):
        at = random.randrange(min(HEADER_BYTES, len(data) - 16))
        match random.randrange(6):
            case 0:
                data[at] = random.randrange(256)
            case 1:
                data[at : at + 8] = struct.pack("<Q", random.choice(_WILD))
            case 2:
                data[at : at + 4] = struct.pack("<I", random.choice(_WILD) & 0xFFFFFFFF)
            case 3:
                del data[at : at + random.randint(1, 64)]
            case 4:
                data[at:at] = data[at : at + random.randint(1, 64)]
            case _:
                del data[max(64, random.randrange(len(data))) :]
    return bytes(data)
