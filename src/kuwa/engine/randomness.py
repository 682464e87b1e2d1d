"""The engine's random numbers: a function of a seed and a position, with no state to keep or to share.

So a request draws the same numbers whatever is computed beside it, and one that was interrupted goes on drawing at
the position where it stopped.
"""

from __future__ import annotations

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1), uniformly distributed over positions and over seeds, with 53 random bits."""
    mixed = _mix(_mix(seed & _MASK) ^ ((position * _GOLDEN) & _MASK))
    return (mixed >> 11) * 2.0**-53


def derived_seed(seed: int, index: int) -> int:
    """The seed of one of several things that one seed was given for. Index 0 is the seed itself."""
    return seed if index == 0 else _mix(_mix(seed & _MASK) + index * _GOLDEN)


def _mix(value: int) -> int:
    """The finaliser of SplitMix64: each bit of `value` changes about half of the result's bits."""
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
