"""The breakers, and what the registry makes of them: ejected, asked again, on trial, and never the last one."""

from __future__ import annotations

from itertools import count

import pytest

from kuwa.kernel.breaker import FAILURES, LONGEST_PAUSE_S, Breaker
from kuwa.kernel.dispatcher import Dispatcher
from kuwa.kernel.queue import Ticket
from kuwa.kernel.registry import Registry
from kuwa.kernel.replica import Replica
from kuwa.wire.errors import NoReplica
from kuwa.wire.lease import Dialects, ExecutorState, Registration

REQUESTS = count()


def house(*names: str, slots: int = 4) -> Registry:
    registry = Registry()
    for number, name in enumerate(names):
        renew(registry, name, 0.0, number, slots)
    return registry


def renew(registry: Registry, name: str, now: float, number: int = 0, slots: int = 4) -> None:
    registry.register(registration(name, number, slots), now)


def registration(
    name: str, number: int = 0, slots: int = 4, *codes: str, state: ExecutorState = "ready"
) -> Registration:
    return Registration(
        executor_id=name,
        incarnation=1,
        access_codes=list(codes or ("m",)),
        dialects=Dialects(openai=f"http://127.0.0.1:{4000 + number}/v1", v1_0=f"http://127.0.0.1:{4000 + number}/chat"),
        concurrency=slots,
        state=state,
    )


def room(registry: Registry, it: Replica, code: str = "m") -> int:
    """How many requests for the code are given to it at once."""
    dispatcher = Dispatcher(registry)
    dispatcher.changed(registry.all_replicas(), 0.0)
    others = frozenset(other.id for other in registry.replicas(code) if other is not it)
    tickets = [Ticket(code, "p", excluded=others) for _ in range(it.slots + 1)]
    for ticket in tickets:
        dispatcher.acquire(ticket, 0.0)
    given = [ticket for ticket in tickets if ticket.replica is it]
    for ticket in sorted(tickets, key=lambda ticket: not ticket.queued):
        dispatcher.cancel(ticket, 0.0)
    return len(given)


def pause_of(breaker: Breaker) -> float:
    """How long the breaker stays open if it is opened now, in half seconds."""
    breaker.open(0.0, "")
    return next(half / 2 for half in count(1) if breaker.due(half / 2, hurried=False))


def replica(registry: Registry, name: str) -> Replica:
    return next(one for one in registry.replicas("m") if one.executor_id == name)


def fail(registry: Registry, name: str, now: float, times: int = FAILURES, code: str = "m") -> Replica:
    it = replica(registry, name)
    for _ in range(times):
        registry.faults.failed(it, code, b"%d" % next(REQUESTS), now, "it sends garbage")
    return it


def test_three_failures_in_a_row_eject_a_replica_and_a_success_in_between_does_not() -> None:
    registry = house("a", "b")
    it = fail(registry, "a", 1.0, FAILURES - 1)
    registry.faults.worked(it, "m")
    assert fail(registry, "a", 1.0, FAILURES - 1).state_at("m") == "ready"
    assert fail(registry, "a", 1.0, 1).state_at("m") == "ejected"
    assert it.note_at("m") == "it sends garbage"


def test_the_last_one_is_never_ejected() -> None:
    registry = house("a", "b")
    fail(registry, "a", 1.0)
    assert fail(registry, "b", 1.0, 20).state_at("m") == "ready"


def test_a_renewal_does_not_end_an_ejection_and_a_drain_does() -> None:
    registry = house("a", "b")
    it = fail(registry, "a", 1.0)
    renew(registry, "a", 1.5)
    assert it.state_at("m") == "ejected"
    registry.register(registration("a", state="draining"), 2.0)
    assert it.state_at("m") == "draining"


def test_it_is_asked_after_a_pause_that_doubles_and_comes_back_on_trial() -> None:
    registry = house("a", "b")
    it = fail(registry, "a", 1.0)
    assert registry.polls_due(1.9) == []
    assert registry.polls_due(2.0) == [it]
    registry.health(it, "silent", 2.0, "no answer")
    assert registry.polls_due(3.9) == []
    assert registry.polls_due(4.0) == [it]
    registry.health(it, "ok", 4.0)
    assert (it.state_at("m"), room(registry, it)) == ("ready", 1)
    assert fail(registry, "a", 4.1, 1).state_at("m") == "ejected"
    assert registry.polls_due(8.0) == []
    assert registry.polls_due(8.1) == [it]
    registry.health(it, "ok", 8.1)
    registry.faults.worked(it, "m")
    assert (it.state_at("m"), room(registry, it)) == ("ready", 4)


def test_while_nothing_else_is_ready_it_is_asked_every_second() -> None:
    registry = house("a", "b")
    it = fail(registry, "a", 1.0)
    for moment in (2.0, 4.0, 8.0):
        registry.polls_due(moment)
        registry.health(it, "silent", moment)
    assert registry.polls_due(9.5) == []
    registry.unregister("m", "http://127.0.0.1:4001/chat", 9.5)
    assert registry.polls_due(9.6) == [it]


def two_models() -> Registry:
    """Two executors that serve `m` and `n` each."""
    registry = Registry()
    for number, name in enumerate("ab"):
        registry.register(registration(name, number, 4, "m", "n"), 0.0)
    return registry


def test_a_broken_model_is_ejected_without_the_other_model_of_its_executor() -> None:
    registry = two_models()
    it = fail(registry, "a", 1.0)
    assert (it.state_at("m"), it.state_at("n"), it.overall) == ("ejected", "ready", "ready")
    assert it.ejected == {"m": "it sends garbage"}
    assert room(registry, it, "n") == 4
    with pytest.raises(NoReplica):
        room(registry, it, "m")
    registry.faults.worked(it, "n")
    assert it.state_at("m") == "ejected"


def test_the_trial_of_one_model_leaves_the_other_model_all_slots() -> None:
    registry = two_models()
    it = fail(registry, "a", 1.0)
    assert registry.polls_due(2.0) == [it]
    registry.health(it, "ok", 2.0)
    assert (room(registry, it, "m"), room(registry, it, "n")) == (1, 4)


def test_the_next_trial_begins_when_the_one_before_has_ended() -> None:
    registry = house("a", "b")
    it = fail(registry, "a", 1.0)
    registry.polls_due(2.0)
    registry.health(it, "ok", 2.0)
    dispatcher = Dispatcher(registry)
    dispatcher.changed(registry.take_changes(), 2.0)
    other = frozenset((replica(registry, "b").id,))
    first, second = (Ticket("m", "p", excluded=other) for _ in range(2))
    assert dispatcher.acquire(first, 2.0) is it
    assert dispatcher.acquire(second, 2.0) is None
    assert dispatcher.release(first, 3.0) == [second]


def test_the_last_one_of_a_model_is_kept_though_others_serve_another_model() -> None:
    registry = two_models()
    registry.register(registration("b", 1, 4, "n"), 1.0)
    assert fail(registry, "a", 1.0, 20, "m").state_at("m") == "ready"
    assert fail(registry, "a", 1.0, FAILURES, "n").state_at("n") == "ejected"


def test_a_model_that_an_executor_stops_serving_takes_its_breaker_along() -> None:
    registry = two_models()
    it = fail(registry, "a", 1.0)
    registry.register(registration("a", 0, 4, "n"), 2.0)
    registry.register(registration("a", 0, 4, "m", "n"), 3.0)
    assert it.state_at("m") == "ready"


class TestWhoseFaultItIs:
    """A replica answered with an error of its own: was it the replica, or the request?"""

    def test_what_the_replica_refuses_ejects_it_once_others_have_answered_the_same(self) -> None:
        registry = house("a", "b")
        it = replica(registry, "a")
        for request in (b"1", b"2", b"3"):
            assert it.state_at("m") == "ready"
            registry.faults.refused(it, "m", b"the same body")
            registry.faults.proved(it, "m", b"the same body", request, 1.0, "no memory")
        assert (it.state_at("m"), it.note_at("m")) == ("ejected", "no memory")

    def test_bodies_that_all_refuse_eject_nobody(self) -> None:
        registry = house("a", "b", "c")
        for number in range(1000):
            for it in registry.replicas("m"):
                registry.faults.refused(it, "m", b"%d" % number)
        assert [it.state_at("m") for it in registry.replicas("m")] == ["ready"] * 3

    def test_three_bodies_that_all_refuse_say_that_the_model_fails_until_one_works(self) -> None:
        registry = house("a", "b")
        for number in range(FAILURES):
            assert not registry.faults.all_failing("m")
            for it in registry.replicas("m"):
                registry.faults.refused(it, "m", b"%d" % number)
        assert registry.faults.all_failing("m")
        registry.faults.worked(replica(registry, "b"), "m")
        assert not registry.faults.all_failing("m")

    def test_one_body_that_all_refuse_again_and_again_says_nothing_of_the_model(self) -> None:
        registry = house("a", "b")
        for _ in range(50):
            for it in registry.replicas("m"):
                registry.faults.refused(it, "m", b"the same body")
        assert not registry.faults.all_failing("m")

    def test_one_body_that_breaks_the_answer_again_and_again_counts_once(self) -> None:
        registry = house("a", "b")
        it = replica(registry, "a")
        for _ in range(50):
            registry.faults.failed(it, "m", b"the same body", 1.0, "cut")
        assert it.state_at("m") == "ready"

    def test_a_request_that_others_answer_counts_once_although_it_had_counted_at_once(self) -> None:
        registry = house("a", "b")
        it = replica(registry, "a")
        for number in range(FAILURES - 1):
            registry.faults.failed(it, "m", b"body %d" % number, 1.0, "cut")
            registry.faults.proved(it, "m", b"body %d" % number, b"request %d" % number, 1.0, "cut")
        assert it.state_at("m") == "ready"

    def test_the_second_opinion_comes_from_one_that_has_not_failed(self) -> None:
        registry = house("a", "b", "c")
        a, b, c = (replica(registry, name) for name in "abc")
        for it in (a, b):
            registry.faults.refused(it, "m", b"1")
        assert registry.faults.doubtful("m", {a.id}) == {a.id, b.id}
        assert registry.faults.doubtful("m", {a.id, c.id}) == frozenset(), "without such a one any may be asked"

    def test_nothing_is_held_against_one_that_does_not_serve_the_model_any_more(self) -> None:
        registry = two_models()
        it = replica(registry, "a")
        registry.register(registration("a", 0, 4, "n"), 1.0)
        registry.faults.refused(it, "m", b"1")
        registry.faults.proved(it, "m", b"1", b"r", 1.0, "late")
        assert it.breakers == {}


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
    pauses = [pause_of(breaker) for _ in range(times)]
    assert pauses[0] == 1.0
    assert max(pauses) <= LONGEST_PAUSE_S
    assert pauses == sorted(pauses)
