from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kuwa.kernel.dispatcher import Dispatcher, Limits
from kuwa.kernel.policy import PolicyName
from kuwa.kernel.queue import Ticket
from kuwa.kernel.registry import Registry
from kuwa.kernel.replica import Replica
from kuwa.wire.errors import ModelNotFound, NoReplica, QueueFull
from kuwa.wire.lease import Dialects, ExecutorState, Registration


class House:
    """A registry and its dispatcher, and short words for what happens to them."""

    def __init__(self, **options: Any) -> None:
        self.registry = Registry()
        self.dispatcher = Dispatcher(self.registry, **options)
        self.now = 0.0

    def join(self, name: str, *codes: str, slots: int = 1, state: ExecutorState = "ready") -> list[Ticket]:
        self.registry.register(registration(name, *codes, slots=slots, state=state), self.now)
        return self.settle()

    def leave(self, name: str) -> list[Ticket]:
        replica = self.replica(name)
        self.registry.unregister(replica.access_codes[0], replica.base_url, self.now)
        return self.settle()

    def settle(self) -> list[Ticket]:
        return self.dispatcher.changed(self.registry.take_changes(), self.now)

    def replica(self, name: str) -> Replica:
        return next(r for r in self.registry.all_replicas() if r.executor_id == name)

    def ask(self, code: str = "m", principal: str = "p", **options: Any) -> Ticket:
        ticket = Ticket(code, principal, **options)
        self.dispatcher.acquire(ticket, self.now)
        return ticket

    def done(self, ticket: Ticket) -> list[Ticket]:
        return self.dispatcher.release(ticket, self.now)


def registration(
    name: str, *codes: str, slots: int = 1, state: ExecutorState = "ready", incarnation: int = 1
) -> Registration:
    return Registration(
        executor_id=name,
        incarnation=incarnation,
        access_codes=list(codes or ("m",)),
        dialects=Dialects(openai=f"http://127.0.0.1:{sum(name.encode())}/v1"),
        concurrency=slots,
        state=state,
    )


def test_a_free_slot_is_granted_at_once() -> None:
    house = House()
    house.join("a", slots=2)
    first, second = house.ask(), house.ask()
    assert first.replica is second.replica is house.replica("a")
    assert house.replica("a").running == 2


def test_a_request_waits_while_all_slots_are_held_and_gets_the_next_one() -> None:
    house = House()
    house.join("a")
    first, second = house.ask(), house.ask()
    assert (second.replica, second.queued) == (None, True)
    assert house.dispatcher.waiting("m") == (1, 0)
    assert house.done(first) == [second]
    assert second.replica is house.replica("a")
    assert house.dispatcher.waiting("m") == (0, 0)


def test_releasing_twice_gives_one_slot_back() -> None:
    house = House()
    house.join("a")
    ticket = house.ask()
    house.done(ticket)
    house.done(ticket)
    assert house.replica("a").running == 0


def test_a_request_given_up_while_it_waits_never_starts() -> None:
    house = House()
    house.join("a")
    first, second, third = house.ask(), house.ask(), house.ask()
    assert house.dispatcher.cancel(second, house.now) == []
    assert house.done(first) == [third]
    assert second.replica is None


def test_cancelling_a_running_request_hands_its_slot_on() -> None:
    house = House()
    house.join("a")
    first, second = house.ask(), house.ask()
    assert house.dispatcher.cancel(first, house.now) == [second]


def test_the_least_loaded_replica_is_taken_and_equals_take_turns() -> None:
    house = House()
    house.join("a", slots=4)
    house.join("b", slots=2)
    taken = [house.ask().replica for _ in range(6)]
    assert [r.executor_id for r in taken if r] == ["a", "b", "a", "b", "a", "a"]


def test_sequential_requests_take_turns_among_idle_replicas() -> None:
    house = House()
    for name in ("a", "b", "c"):
        house.join(name)
    seen: list[str] = []
    for _ in range(6):
        ticket = house.ask()
        assert ticket.replica is not None
        seen.append(ticket.replica.executor_id)
        house.done(ticket)
    assert seen == ["a", "b", "c", "a", "b", "c"]


class TestWhatCannotBeServed:
    def test_a_code_that_was_never_served_is_not_found_and_the_nearest_are_named(self) -> None:
        house = House()
        house.join("a", "llama-3")
        with pytest.raises(ModelNotFound, match="'llama-3'"):
            house.ask("lama-3")

    def test_a_code_whose_executors_are_gone_has_no_replica(self) -> None:
        house = House()
        house.join("a")
        house.leave("a")
        with pytest.raises(NoReplica, match="--access_code m"):
            house.ask()

    def test_a_code_whose_executors_are_starting_has_no_replica_yet(self) -> None:
        house = House()
        house.join("a", state="starting")
        with pytest.raises(NoReplica, match="starting"):
            house.ask()

    def test_a_draining_replica_gets_no_requests(self) -> None:
        house = House()
        house.join("a")
        house.join("a", state="draining")
        with pytest.raises(NoReplica, match="shutting down"):
            house.ask()

    def test_the_queue_is_bounded_in_count(self) -> None:
        house = House(limits=Limits(waiting=2))
        house.join("a")
        for principal in "abc":
            house.ask(principal=principal)
        with pytest.raises(QueueFull, match="2 requests"):
            house.ask(principal="d")

    def test_one_principal_may_fill_half_of_the_queue(self) -> None:
        house = House(limits=Limits(waiting=4))
        house.join("a")
        for _ in range(3):
            house.ask()
        with pytest.raises(QueueFull, match="your requests"):
            house.ask()
        assert house.ask(principal="other").queued

    def test_the_queue_is_bounded_in_bytes(self) -> None:
        house = House(limits=Limits(bytes=100))
        house.join("a")
        house.ask(cost_bytes=1000)
        house.ask(cost_bytes=60)
        with pytest.raises(QueueFull):
            house.ask(principal="q", cost_bytes=60)
        assert house.ask(principal="q", cost_bytes=40).queued

    def test_a_request_waits_no_longer_than_the_bound(self) -> None:
        house = House(limits=Limits(wait_s=5))
        house.join("a")
        house.ask()
        old = house.ask()
        house.now = 3.0
        young = house.ask()
        house.now = 5.1
        assert house.dispatcher.sweep(house.now) == [old]
        assert isinstance(old.error, QueueFull)
        assert (old.queued, young.queued) == (False, True)


class TestWaitingThroughChanges:
    def test_those_who_wait_get_their_error_when_the_last_replica_goes(self) -> None:
        house = House()
        house.join("a")
        house.ask()
        waiting = house.ask()
        assert house.leave("a") == [waiting]
        assert isinstance(waiting.error, NoReplica)

    def test_those_who_wait_stay_while_a_replica_is_starting(self) -> None:
        house = House()
        house.join("a")
        house.join("b", state="starting")
        house.ask()
        waiting = house.ask()
        assert house.leave("a") == []
        assert house.join("b") == [waiting]
        assert waiting.replica is house.replica("b")

    def test_a_new_replica_takes_those_who_wait(self) -> None:
        house = House()
        house.join("a")
        house.ask()
        waiting = [house.ask() for _ in range(3)]
        assert house.join("b", slots=2) == waiting[:2]

    def test_more_slots_in_a_renewal_take_those_who_wait(self) -> None:
        house = House()
        house.join("a")
        house.ask()
        waiting = house.ask()
        assert house.join("a", slots=2) == [waiting]

    def test_a_slot_held_through_an_absence_is_still_counted(self) -> None:
        house = House()
        house.join("a")
        held = house.ask()
        for _ in range(40):
            house.now += 0.25
            house.registry.expire(house.now)
        house.settle()
        assert house.replica("a").state == "gone"
        house.join("a")
        assert house.ask().queued
        assert len(house.done(held)) == 1

    def test_an_access_code_that_is_given_up_fails_those_who_wait_for_it(self) -> None:
        house = House()
        house.join("a", "m", "n")
        house.ask("n")
        waiting = house.ask("m")
        assert house.join("a", "n") == [waiting]
        assert isinstance(waiting.error, NoReplica)


class TestFailover:
    def test_a_ticket_goes_to_a_replica_that_has_not_failed_it(self) -> None:
        house = House()
        house.join("a")
        house.join("b")
        ticket = house.ask()
        failed = ticket.replica
        assert failed is not None
        house.done(ticket)
        ticket.excluded |= {failed.id}
        again = house.dispatcher.acquire(ticket, house.now)
        assert again is not None
        assert again is not failed

    def test_a_ticket_that_all_replicas_have_failed_has_none(self) -> None:
        house = House()
        house.join("a")
        with pytest.raises(NoReplica, match="failed this request"):
            house.ask(excluded={house.replica("a").id})

    def test_a_ticket_that_comes_back_stands_before_those_who_wait(self) -> None:
        house = House()
        house.join("a")
        house.join("b")
        on_a, on_b = house.ask(), house.ask()
        waiting = house.ask()
        assert on_a.replica is not None
        on_a.excluded |= {on_a.replica.id}
        assert house.done(on_a) == [waiting]
        house.dispatcher.acquire(on_a, house.now)
        another = house.ask()
        assert house.dispatcher.ahead_of(on_a) == 0
        assert house.done(on_b) == [on_a]
        assert another.queued

    def test_a_ticket_that_comes_back_holds_up_nobody_who_can_run(self) -> None:
        house = House()
        house.join("a")
        house.join("b")
        on_a, on_b = house.ask(), house.ask()
        assert on_a.replica is not None
        on_a.excluded |= {on_a.replica.id}
        house.done(on_a)
        house.dispatcher.acquire(on_a, house.now)
        assert on_a.queued
        assert house.ask().replica is house.replica("a")
        assert house.done(on_b) == [on_a]

    def test_a_ticket_that_waits_gets_its_error_when_only_failed_replicas_are_left(self) -> None:
        house = House()
        house.join("a")
        house.join("b")
        house.ask()
        house.ask()
        waiting = house.ask(excluded={house.replica("a").id})
        assert waiting.queued
        assert house.leave("b") == [waiting]
        assert isinstance(waiting.error, NoReplica)

    def test_those_who_come_back_are_never_refused_for_the_bound(self) -> None:
        house = House(limits=Limits(waiting=0))
        house.join("a")
        house.join("b")
        house.ask()
        house.ask()
        assert house.ask(excluded={house.replica("a").id}).queued


class TestPolicies:
    def test_each_access_code_has_its_own(self) -> None:
        policies: dict[str, PolicyName] = {"n": "prefix", "s": "session"}
        house = House(policies=policies)
        assert [house.dispatcher.policy_of(code) for code in ("m", "n", "s")] == ["least_loaded", "prefix", "session"]
        for name in ("a", "b"):
            house.join(name, "m", "n", slots=4)
        first = house.ask("n", trail=(1,)).replica
        assert [house.ask("n", trail=(1, 2)).replica for _ in range(1)] == [first]
        assert house.ask("m", trail=(1, 2)).replica is not first

    def test_a_request_that_waited_goes_back_too_where_there_is_a_choice(self) -> None:
        house = House(policies={"m": "prefix"})
        house.join("a")
        house.join("b")
        first = house.ask(trail=(1,))
        second = house.ask(trail=(2,))
        waiting = [house.ask(trail=(mark, 10 + mark)) for mark in (2, 1)]
        served = [first.replica, second.replica]
        assert house.done(second) == [waiting[0]]
        assert house.done(first) == [waiting[1]]
        assert [ticket.replica for ticket in waiting] == served[::-1]

    def test_reservations_of_one_user_stay_where_its_session_is(self) -> None:
        house = House(policies={"m": "session"})
        for name in ("a", "b", "c"):
            house.join(name, slots=8)
        replicas: set[Replica | None] = set()
        for turn in range(5):
            assert house.dispatcher.reserve("m", (str(turn), "u7"), house.now)
            ticket = house.ask(key=(str(turn), "u7"))
            replicas.add(ticket.replica)
            house.done(ticket)
        assert len(replicas) == 1


class TestFairness:
    def test_one_principals_many_requests_do_not_stand_before_anothers_one(self) -> None:
        house = House()
        house.join("a")
        running = house.ask(principal="hog")
        for _ in range(50):
            house.ask(principal="hog")
        small = house.ask(principal="small")
        assert house.dispatcher.ahead_of(small) == 1
        served = 0
        while small.replica is None:
            (running,) = house.done(running)
            served += 1
        assert served == 2

    def test_weights_share_the_slots(self) -> None:
        house = House(weights=lambda principal: 3.0 if principal == "heavy" else 1.0)
        house.join("a")
        running = house.ask()
        for _ in range(20):
            house.ask(principal="light")
            house.ask(principal="heavy")
        order: list[str] = []
        for _ in range(16):
            (running,) = house.done(running)
            order.append(running.principal)
        assert order.count("heavy") == 12

    def test_a_weight_below_one_is_served_too(self) -> None:
        house = House(weights=lambda principal: 0.25)
        house.join("a")
        running = house.ask()
        waiting = house.ask()
        assert house.done(running) == [waiting]

    def test_within_a_principal_the_first_comes_first(self) -> None:
        house = House()
        house.join("a")
        running = house.ask()
        waiting = [house.ask() for _ in range(5)]
        order: list[Ticket] = []
        for _ in waiting:
            (running,) = house.done(running)
            order.append(running)
        assert order == waiting

    def test_access_codes_that_share_a_replica_take_turns(self) -> None:
        house = House()
        house.join("a", "m", "n")
        running = house.ask("m")
        for _ in range(4):
            house.ask("m")
        for _ in range(4):
            house.ask("n")
        order: list[str] = []
        for _ in range(8):
            (running,) = house.done(running)
            order.append(running.access_code)
        assert order[:4] in (["m", "n", "m", "n"], ["n", "m", "n", "m"])


class TestReservations:
    KEY = ("12", "7")

    def test_a_reserved_slot_is_held_for_its_chat(self) -> None:
        house = House()
        house.join("a")
        assert house.dispatcher.reserve("m", self.KEY, 0.0)
        assert house.ask().queued
        chat = house.ask(key=self.KEY)
        assert chat.replica is house.replica("a")
        assert house.replica("a").running == 1
        assert len(house.dispatcher.reservations) == 0

    def test_it_lapses_after_ten_seconds(self) -> None:
        house = House()
        house.join("a")
        house.dispatcher.reserve("m", self.KEY, 0.0)
        waiting = house.ask()
        assert house.dispatcher.sweep(9.9) == []
        assert house.dispatcher.sweep(10.0) == [waiting]

    def test_reserving_again_holds_the_same_slot_longer(self) -> None:
        house = House()
        house.join("a")
        assert house.dispatcher.reserve("m", self.KEY, 0.0)
        assert house.dispatcher.reserve("m", self.KEY, 8.0)
        assert house.replica("a").running == 1
        house.dispatcher.sweep(11.0)
        assert len(house.dispatcher.reservations) == 1

    def test_it_is_refused_while_no_slot_is_free(self) -> None:
        house = House()
        house.join("a")
        house.ask()
        assert not house.dispatcher.reserve("m", self.KEY, 0.0)

    def test_it_is_refused_while_others_wait(self) -> None:
        house = House()
        house.join("a")
        house.join("b")
        house.ask()
        house.ask()
        coming_back = house.ask(excluded={house.replica("a").id})
        house.done(next(iter([house.ask(excluded={house.replica("b").id})])))
        assert coming_back.queued
        assert not house.dispatcher.reserve("m", self.KEY, 0.0)

    def test_one_whose_replica_is_gone_is_made_anew(self) -> None:
        house = House()
        house.join("a")
        house.dispatcher.reserve("m", self.KEY, 0.0)
        house.leave("a")
        house.join("b")
        assert house.dispatcher.reserve("m", self.KEY, 1.0)
        chat = house.ask(key=self.KEY)
        assert chat.replica is house.replica("b")
        assert house.replica("a").running == 0

    def test_a_chat_without_a_reservation_is_served_too(self) -> None:
        house = House()
        house.join("a")
        assert house.ask(key=self.KEY).replica is not None

    def test_the_holder_of_a_slot_is_told_by_its_key(self) -> None:
        house = House()
        house.join("a")
        chat = house.ask(key=self.KEY)
        assert house.dispatcher.reservations.holders() == {house.replica("a"): self.KEY}
        house.done(chat)
        assert house.dispatcher.reservations.holders() == {}

    def test_nobody_can_reserve_what_nobody_serves(self) -> None:
        with pytest.raises(ModelNotFound):
            House().dispatcher.reserve("m", self.KEY, 0.0)


CODES = ("m", "n")
NAMES = ("a", "b", "c", "d")
PRINCIPALS = ("x", "y", "z")


class Traffic(RuleBasedStateMachine):
    """Any order of arrivals, ends, failures, comings and goings leaves every count exact and nobody forgotten."""

    @initialize()
    def begin(self) -> None:
        policies: dict[str, PolicyName] = {"n": "prefix"}
        self.house = House(limits=Limits(waiting=6, bytes=1000, wait_s=30.0), policies=policies)
        self.tickets: list[Ticket] = []
        self.seen: set[Replica] = set()
        self.keys = 0

    def tick(self) -> None:
        self.house.now += 0.1

    def took(self, settled: list[Ticket]) -> None:
        for ticket in settled:
            assert ticket in self.tickets, "nobody is settled who did not wait"
            assert not ticket.queued
            assert (ticket.replica is None) != (ticket.error is None)
        assert len(set(settled)) == len(settled)

    @rule(
        name=st.sampled_from(NAMES),
        codes=st.sampled_from([("m",), ("n",), ("m", "n")]),
        slots=st.integers(1, 3),
        state=st.sampled_from(["starting", "ready", "ready", "ready", "draining"]),
        incarnation=st.integers(1, 3),
    )
    def register(self, name: str, codes: tuple[str, ...], slots: int, state: ExecutorState, incarnation: int) -> None:
        known = [r.incarnation for r in self.house.registry.all_replicas() if r.executor_id == name]
        incarnation = max([incarnation, *known])
        message = registration(name, *codes, slots=slots, state=state, incarnation=incarnation)
        self.house.registry.register(message, self.house.now)
        self.took(self.house.settle())

    @rule(name=st.sampled_from(NAMES), code=st.sampled_from(CODES))
    def unregister(self, name: str, code: str) -> None:
        for replica in self.house.registry.all_replicas():
            if replica.executor_id == name:
                self.house.registry.unregister(code, replica.base_url, self.house.now)
        self.took(self.house.settle())

    @rule(ticks=st.integers(1, 40))
    def time_passes(self, ticks: int) -> None:
        for _ in range(ticks):
            self.house.now += 0.25
            self.house.registry.expire(self.house.now)
            self.took(self.house.settle())
            self.took(self.house.dispatcher.sweep(self.house.now))

    @rule(
        code=st.sampled_from(CODES),
        principal=st.sampled_from(PRINCIPALS),
        size=st.integers(0, 300),
        trail=st.lists(st.integers(0, 5), max_size=3),
    )
    def ask(self, code: str, principal: str, size: int, trail: list[int]) -> None:
        self.tick()
        self._acquire(Ticket(code, principal, cost_bytes=size, trail=tuple(trail)))

    @rule(code=st.sampled_from(CODES))
    def schedule(self, code: str) -> None:
        self.keys += 1
        try:
            self.house.dispatcher.reserve(code, (str(self.keys), "u"), self.house.now)
        except (ModelNotFound, NoReplica):
            return

    @rule(code=st.sampled_from(CODES), back=st.integers(0, 3))
    def chat_that_was_announced(self, code: str, back: int) -> None:
        self._acquire(Ticket(code, "x", key=(str(self.keys - back), "u")))

    def _acquire(self, ticket: Ticket) -> None:
        try:
            replica = self.house.dispatcher.acquire(ticket, self.house.now)
        except (ModelNotFound, NoReplica, QueueFull):
            assert not ticket.queued
            assert ticket.replica is None
            return
        assert (replica is not None) or ticket.queued
        if replica is not None:
            assert replica.id not in ticket.excluded
        self.tickets.append(ticket)

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        held = [t for t in self.tickets if t.replica is not None]
        if held:
            ticket = data.draw(st.sampled_from(held))
            self.tickets.remove(ticket)
            self.took(self.house.dispatcher.release(ticket, self.house.now))

    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        if self.tickets:
            ticket = data.draw(st.sampled_from(self.tickets))
            self.tickets.remove(ticket)
            self.took(self.house.dispatcher.cancel(ticket, self.house.now))
            assert ticket.replica is None
            assert not ticket.queued

    @rule(data=st.data())
    def fail_and_try_again(self, data: st.DataObject) -> None:
        held = [t for t in self.tickets if t.replica is not None]
        if held:
            ticket = data.draw(st.sampled_from(held))
            assert ticket.replica is not None
            failed = ticket.replica.id
            self.tickets.remove(ticket)
            self.took(self.house.dispatcher.release(ticket, self.house.now))
            ticket.excluded |= {failed}
            self._acquire(ticket)

    @invariant()
    def counts_are_exact(self) -> None:
        # A replica that was replaced by a newer process may still have requests.
        self.seen |= set(self.house.registry.all_replicas())
        reserved = len(self.house.dispatcher.reservations)
        assert sum(r.running for r in self.seen) == sum(t.replica is not None for t in self.tickets) + reserved
        for replica in self.seen:
            mine = sum(t.replica is replica for t in self.tickets)
            assert mine <= replica.running <= mine + reserved

    @invariant()
    def who_waits_is_counted_and_has_a_reason(self) -> None:
        house = self.house
        for code in CODES:
            waiting = [t for t in self.tickets if t.queued and t.access_code == code]
            assert house.dispatcher.waiting(code) == (len(waiting), sum(t.cost_bytes for t in waiting))
            free = [r for r in house.registry.replicas(code) if r.state == "ready" and r.running < r.slots]
            for ticket in waiting:
                assert all(r.id in ticket.excluded for r in free), "somebody waits beside a free slot"
                assert any(r.id not in ticket.excluded for r in house.registry.replicas(code))
                assert house.dispatcher.ahead_of(ticket) < len(waiting)

    @invariant()
    def nobody_is_lost(self) -> None:
        for ticket in self.tickets:
            assert ticket.queued or ticket.replica is not None or ticket.error is not None


class FirstComeFirstServed(RuleBasedStateMachine):
    """Within a principal tickets are granted in the order of their arrival, and no principal is passed by."""

    @initialize(slots=st.integers(1, 3))
    def begin(self, slots: int) -> None:
        self.house = House()
        self.house.join("a", slots=slots)
        self.waiting: dict[str, list[Ticket]] = {name: [] for name in PRINCIPALS}
        self.running: list[Ticket] = []
        self.passed: dict[str, int] = dict.fromkeys(PRINCIPALS, 0)

    @rule(principal=st.sampled_from(PRINCIPALS), count=st.integers(1, 10))
    def arrive(self, principal: str, count: int) -> None:
        for _ in range(count):
            ticket = self.house.ask(principal=principal)
            (self.running if ticket.replica else self.waiting[principal]).append(ticket)

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if not self.running:
            return
        ticket = data.draw(st.sampled_from(self.running))
        self.running.remove(ticket)
        granted = self.house.done(ticket)
        assert len(granted) == min(1, len(granted) + sum(map(len, self.waiting.values())))
        for one in granted:
            assert self.waiting[one.principal].pop(0) is one
            self.running.append(one)
            for name in PRINCIPALS:
                self.passed[name] = 0 if name == one.principal or not self.waiting[name] else self.passed[name] + 1

    @rule(data=st.data(), principal=st.sampled_from(PRINCIPALS))
    def give_up(self, data: st.DataObject, principal: str) -> None:
        if self.waiting[principal]:
            ticket = data.draw(st.sampled_from(self.waiting[principal]))
            self.waiting[principal].remove(ticket)
            self.house.dispatcher.cancel(ticket, self.house.now)
            if not self.waiting[principal]:
                self.passed[principal] = 0

    @rule()
    def positions_are_right(self) -> None:
        positions = sorted(self.house.dispatcher.ahead_of(t) for line in self.waiting.values() for t in line)
        assert positions == list(range(len(positions)))

    @invariant()
    def nobody_starves(self) -> None:
        assert all(passed < len(PRINCIPALS) for passed in self.passed.values())


TestTraffic = Traffic.TestCase
TestTraffic.settings = hypothesis_settings(max_examples=100, stateful_step_count=50, deadline=None)
TestFirstComeFirstServed = FirstComeFirstServed.TestCase
TestFirstComeFirstServed.settings = hypothesis_settings(max_examples=40, stateful_step_count=40, deadline=None)
