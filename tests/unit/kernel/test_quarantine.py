"""A request under which two executors died is refused for a minute; anything less is not held against it."""

from __future__ import annotations

import pytest

from kuwa.kernel.quarantine import MAX_SUSPECTS, WINDOW_S, Quarantine
from kuwa.wire.errors import RequestQuarantined


def refuses(quarantine: Quarantine, now: float, code: str = "m", body: bytes = b"x") -> bool:
    try:
        quarantine.check(code, body, now)
    except RequestQuarantined:
        return True
    return False


def test_two_deaths_within_a_minute_quarantine_it_for_a_minute() -> None:
    quarantine = Quarantine()
    assert not quarantine.suspects
    quarantine.died("m", b"x", "a", 0.0)
    assert not refuses(quarantine, 1.0)
    quarantine.died("m", b"x", "b", 30.0)
    assert refuses(quarantine, 30.0)
    assert not refuses(quarantine, 30.0, body=b"y")
    assert not refuses(quarantine, 30.0, code="n")
    assert refuses(quarantine, 30.0 + WINDOW_S - 1)
    assert not refuses(quarantine, 30.0 + WINDOW_S)
    quarantine.sweep(30.0 + WINDOW_S)
    assert not quarantine.suspects


def test_many_alike_on_one_replica_that_died_are_one_death() -> None:
    quarantine = Quarantine()
    for _ in range(20):
        quarantine.died("m", b"x", "a", 0.0)
    assert not refuses(quarantine, 0.0)


def test_an_answer_clears_it() -> None:
    quarantine = Quarantine()
    quarantine.died("m", b"x", "a", 0.0)
    quarantine.cleared("m", b"x")
    quarantine.died("m", b"x", "b", 1.0)
    assert not refuses(quarantine, 1.0)


def test_a_death_long_ago_is_forgotten() -> None:
    quarantine = Quarantine()
    quarantine.died("m", b"x", "a", 0.0)
    quarantine.died("m", b"x", "b", WINDOW_S + 1)
    assert not refuses(quarantine, WINDOW_S + 1)


@pytest.mark.parametrize("count", [MAX_SUSPECTS + 100])
def test_what_is_remembered_is_bounded(count: int) -> None:
    quarantine = Quarantine()
    for number in range(count):
        quarantine.died("m", b"%d" % number, "a", 0.0)
    quarantine.died("m", b"0", "b", 0.0)
    assert not refuses(quarantine, 0.0, body=b"0")
