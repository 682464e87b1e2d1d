"""The breaker, and what the registry makes of it: ejected, asked again, on trial, and never the last one."""

from __future__ import annotations

import pytest

from kuwa.kernel.breaker import FAILURES, LONGEST_PAUSE_S, Breaker
from kuwa.kernel.registry import Registry
from kuwa.kernel.replica import Replica
from kuwa.wire.lease import Dialects, Registration


def house(*names: str, slots: int = 4) -> Registry:
    registry = Registry()
    for number, name in enumerate(names):
        renew(registry, name, 0.0, number, slots)
    return registry


def renew(registry: Registry, name: str, now: float, number: int = 0, slots: int = 4) -> None:
    dialects = Dialects(openai=f"http://127.0.0.1:{4000 + number}/v1", v1_0=f"http://127.0.0.1:{4000 + number}/chat")
    registry.register(
        Registration(executor_id=name, incarnation=1, access_codes=["m"], dialects=dialects, concurrency=slots), now
    )


def replica(registry: Registry, name: str) -> Replica:
    return next(one for one in registry.replicas("m") if one.executor_id == name)


def fail(registry: Registry, name: str, now: float, times: int = FAILURES) -> Replica:
    it = replica(registry, name)
    for _ in range(times):
        registry.failed(it, now, "it sends garbage")
    return it


def test_three_failures_in_a_row_eject_a_replica_and_a_success_in_between_does_not() -> None:
    registry = house("a", "b")
    it = fail(registry, "a", 1.0, FAILURES - 1)
    registry.worked(it)
    assert fail(registry, "a", 1.0, FAILURES - 1).state == "ready"
    assert fail(registry, "a", 1.0, 1).state == "ejected"
    assert it.note == "it sends garbage"


def test_the_last_one_is_never_ejected() -> None:
    registry = house("a", "b")
    fail(registry, "a", 1.0)
    assert fail(registry, "b", 1.0, 20).state == "ready"


def test_a_renewal_does_not_end_an_ejection_and_a_drain_does() -> None:
    registry = house("a", "b")
    it = fail(registry, "a", 1.0)
    renew(registry, "a", 1.5)
    assert it.state == "ejected"


def test_it_is_asked_after_a_pause_that_doubles_and_comes_back_on_trial() -> None:
    registry = house("a", "b")
    it = fail(registry, "a", 1.0)
    assert registry.polls_due(1.9) == []
    assert registry.polls_due(2.0) == [it]
    registry.health(it, "silent", 2.0, "no answer")
    assert registry.polls_due(3.9) == []
    assert registry.polls_due(4.0) == [it]
    registry.health(it, "ok", 4.0)
    assert (it.state, it.admits) == ("ready", 1)
    assert fail(registry, "a", 4.1, 1).state == "ejected"
    assert registry.polls_due(8.0) == []
    assert registry.polls_due(8.1) == [it]
    registry.health(it, "ok", 8.1)
    registry.worked(it)
    assert (it.state, it.admits) == ("ready", 4)


def test_while_nothing_else_is_ready_it_is_asked_every_second() -> None:
    registry = house("a", "b")
    it = fail(registry, "a", 1.0)
    for moment in (2.0, 4.0, 8.0):
        registry.polls_due(moment)
        registry.health(it, "silent", moment)
    assert registry.polls_due(9.5) == []
    registry.unregister("m", "http://127.0.0.1:4001/chat", 9.5)
    assert registry.polls_due(9.6) == [it]


def test_a_broken_connection_raises_doubt_that_its_health_or_a_renewal_ends() -> None:
    registry = house("a")
    it = replica(registry, "a")
    registry.doubt(it, 1.0)
    assert it.state == "suspect"
    assert registry.polls_due(1.0) == [it]
    registry.health(it, "refused", 1.1)
    assert it.state == "suspect"
    renew(registry, "a", 2.0)
    assert it.state == "ready"
    registry.doubt(it, 3.0)
    assert registry.polls_due(3.0) == [it]
    registry.health(it, "ok", 3.1)
    assert it.state == "ready"


def test_a_silent_one_is_lost_and_one_that_leaves_is_not() -> None:
    registry = house("a", "b")
    left, silent = replica(registry, "a"), replica(registry, "b")
    registry.unregister("m", "http://127.0.0.1:4000/chat", 1.0)
    for tick in range(30):
        registry.expire(tick / 4)
    assert (left.state, left.lost) == ("gone", False)
    assert (silent.state, silent.lost) == ("gone", True)


@pytest.mark.parametrize("times", [1, 3, 40])
def test_the_pause_has_an_end(times: int) -> None:
    breaker = Breaker()
    pauses = [breaker.open() for _ in range(times)]
    assert pauses[0] == 1.0
    assert max(pauses) <= LONGEST_PAUSE_S
    assert pauses == sorted(pauses)
