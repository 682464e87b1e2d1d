from __future__ import annotations

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kuwa.kernel.registry import Registry
from kuwa.kernel.replica import Replica
from kuwa.wire.errors import InvalidRequest
from kuwa.wire.lease import Dialects, ExecutorState, Load, Registration

OLD = "http://127.0.0.1:5001/chat"


def registration(
    name: str = "a",
    *codes: str,
    port: int = 4001,
    incarnation: int = 1,
    state: ExecutorState = "ready",
    slots: int = 1,
    load: Load | None = None,
) -> Registration:
    return Registration(
        executor_id=name,
        incarnation=incarnation,
        access_codes=list(codes or ("m",)),
        dialects=Dialects(openai=f"http://127.0.0.1:{port}/v1"),
        concurrency=slots,
        state=state,
        load=load or Load(),
    )


def states(registry: Registry) -> dict[str, str]:
    return {replica.executor_id: replica.state for replica in registry.all_replicas()}


def let_pass(registry: Registry, start: float, end: float) -> float:
    now = start
    while now < end:
        now = min(end, now + 0.25)
        registry.expire(now)
    return now


def only(registry: Registry, code: str = "m") -> Replica:
    (replica,) = registry.replicas(code)
    return replica


class TestLeases:
    def test_a_registered_executor_is_listed_and_has_a_lease(self) -> None:
        registry = Registry()
        lease = registry.register(registration(), 0.0)
        assert (lease.ttl_s, lease.renew_s) == (6.0, 2.0)
        assert registry.codes() == ["m"]
        assert only(registry).base_url == "http://127.0.0.1:4001/v1"

    def test_renewing_changes_nothing_but_the_load(self) -> None:
        registry = Registry()
        first = registry.register(registration(), 0.0)
        replica = only(registry)
        registry.take_changes()
        again = registry.register(registration(load=Load(running=3)), 2.0)
        assert again == first
        assert only(registry) is replica
        assert replica.load.running == 3
        assert replica.since == 0.0
        assert registry.take_changes() == []

    def test_silence_makes_it_suspect_and_then_gone(self) -> None:
        registry = Registry()
        registry.register(registration(), 0.0)
        now = let_pass(registry, 0.0, 4.25)
        assert states(registry) == {"a": "ready"}
        now = let_pass(registry, now, 4.5)
        assert states(registry) == {"a": "suspect"}
        now = let_pass(registry, now, 5.75)
        assert registry.codes() == ["m"]
        let_pass(registry, now, 6.0)
        assert states(registry) == {"a": "gone"}
        assert registry.codes() == []
        assert registry.replicas("m") == []

    def test_a_renewal_makes_a_suspect_ready_again(self) -> None:
        registry = Registry()
        registry.register(registration(), 0.0)
        let_pass(registry, 0.0, 5.0)
        registry.register(registration(), 5.0)
        assert states(registry) == {"a": "ready"}

    def test_one_that_was_gone_comes_back_as_the_same_replica(self) -> None:
        registry = Registry()
        registry.register(registration(), 0.0)
        replica = only(registry)
        replica.running = 1
        let_pass(registry, 0.0, 200.0)
        assert replica.lost
        registry.register(registration(), 200.0)
        assert only(registry) is replica
        assert not replica.lost

    def test_one_that_is_gone_is_forgotten_after_a_minute(self) -> None:
        registry = Registry()
        registry.register(registration(), 0.0)
        let_pass(registry, 0.0, 70.0)
        assert registry.all_replicas() == []

    def test_time_in_which_the_kernel_did_not_run_is_no_silence(self) -> None:
        registry = Registry()
        registry.register(registration(), 0.0)
        let_pass(registry, 0.0, 2.0)
        registry.expire(60.0)
        assert states(registry) == {"a": "ready"}
        let_pass(registry, 60.0, 64.5)
        assert states(registry) == {"a": "gone"}

    def test_a_newer_process_replaces_the_older_one(self) -> None:
        registry = Registry()
        registry.register(registration(incarnation=1), 0.0)
        old = only(registry)
        registry.register(registration(incarnation=2), 1.0)
        assert old.state == "gone"
        assert only(registry) is not old
        assert only(registry).id != old.id

    def test_an_older_process_is_refused_with_a_reason(self) -> None:
        registry = Registry()
        registry.register(registration(incarnation=2), 0.0)
        with pytest.raises(InvalidRequest, match="newer process"):
            registry.register(registration(incarnation=1), 1.0)
        assert only(registry).incarnation == 2

    def test_a_newer_process_elsewhere_does_not_take_the_place_of_one_that_lives(self) -> None:
        registry = Registry()
        registry.register(registration("a", incarnation=1), 0.0, "198.51.100.6")
        for name, port in (("a", 4002), ("b", 4001)):
            with pytest.raises(InvalidRequest, match=r"'a' .* registered from 198\.51\.100\.6 .* 203\.0\.113\.7"):
                registry.register(registration(name, port=port, incarnation=9), 1.0, "203.0.113.7")
        assert states(registry) == {"a": "ready"}
        registry.register(registration("a", incarnation=1), 2.0, "198.51.100.6")
        assert only(registry).life.heard_at == 2.0

    @pytest.mark.parametrize("end", ["silence", "unregistered"])
    def test_the_place_of_one_that_is_gone_is_free_for_all(self, end: str) -> None:
        registry = Registry()
        registry.register(registration(incarnation=7), 0.0, "198.51.100.6")
        now = let_pass(registry, 0.0, 6.5 if end == "silence" else 1.0)
        if end == "unregistered":
            assert registry.unregister("m", "http://127.0.0.1:4001/chat", now)
        registry.register(registration(incarnation=3), now, "203.0.113.7")
        assert (only(registry).incarnation, only(registry).registered_from) == (3, "203.0.113.7")

    @pytest.mark.parametrize(
        ("first", "then"), [("127.0.0.1", "::1"), ("192.0.2.9", "::ffff:192.0.2.9"), ("2001:DB8::1", "2001:db8:0::1")]
    )
    def test_a_peer_is_the_same_in_each_spelling(self, first: str, then: str) -> None:
        registry = Registry()
        registry.register(registration(incarnation=1), 0.0, first)
        registry.register(registration(incarnation=2), 1.0, then)
        assert only(registry).incarnation == 2

    def test_a_new_process_takes_the_address_of_one_that_died_there(self) -> None:
        registry = Registry()
        registry.register(registration("a", incarnation=1), 0.0)
        registry.register(registration("b", incarnation=2), 1.0)
        assert states(registry) == {"a": "gone", "b": "ready"}
        with pytest.raises(InvalidRequest):
            registry.register(registration("a", incarnation=1), 2.0)

    def test_several_access_codes_are_one_replica(self) -> None:
        registry = Registry()
        registry.register(registration("a", "m", "n", "m"), 0.0)
        assert registry.codes() == ["m", "n"]
        assert only(registry, "m") is only(registry, "n")
        registry.register(registration("a", "n"), 1.0)
        assert registry.codes() == ["n"]

    def test_a_starting_executor_is_known_and_not_yet_listed(self) -> None:
        registry = Registry()
        registry.register(registration(state="starting", load=Load(progress="loading 40 %")), 0.0)
        assert registry.codes() == []
        assert only(registry).note == "loading 40 %"
        registry.register(registration(), 1.0)
        assert registry.codes() == ["m"]

    def test_a_draining_executor_stays_until_it_leaves(self) -> None:
        registry = Registry()
        registry.register(registration(), 0.0)
        registry.register(registration(state="draining"), 1.0)
        assert states(registry) == {"a": "draining"}
        assert registry.unregister("m", "http://127.0.0.1:4001/anything", 2.0)
        assert states(registry) == {"a": "gone"}

    def test_changes_name_each_replica_once(self) -> None:
        registry = Registry()
        registry.register(registration(), 0.0)
        registry.register(registration(state="draining"), 1.0)
        assert registry.take_changes() == registry.all_replicas()
        registry.register(registration(state="draining", slots=2), 2.0)
        assert registry.take_changes() == registry.all_replicas()

    def test_it_is_known_since_when_a_code_is_served(self) -> None:
        registry = Registry()
        registry.register(registration(), 3.0)
        let_pass(registry, 3.0, 10.0)
        assert registry.first_served("m") == 3.0
        assert registry.first_served("n") is None


class TestTheOldWire:
    def test_it_is_starting_until_its_health_answers(self) -> None:
        registry = Registry()
        registry.register_old("m", OLD, 0.0)
        (replica,) = registry.polls_due(0.0)
        assert (replica.wire, replica.endpoint, replica.slots) == ("v1.0", OLD, 1)
        assert registry.polls_due(0.0) == []
        registry.health(replica, "refused", 0.1)
        assert replica.state == "starting"
        assert registry.polls_due(0.3) == []
        assert registry.polls_due(0.6) == [replica]
        registry.health(replica, "ok", 0.7)
        assert replica.state == "ready"
        assert registry.codes() == ["m"]

    def test_it_has_half_a_minute_to_begin_listening(self) -> None:
        registry = Registry()
        registry.register_old("m", OLD, 0.0)
        replica = only(registry)
        now = let_pass(registry, 0.0, 29.75)
        assert replica.state == "starting"
        let_pass(registry, now, 30.0)
        assert replica.state == "gone"

    def test_a_refused_connection_makes_it_suspect_and_a_second_one_gone(self) -> None:
        registry = ready_old()
        replica = only(registry)
        registry.health(replica, "refused", 2.0)
        assert replica.state == "suspect"
        assert registry.polls_due(3.0) == [replica]
        registry.health(replica, "refused", 3.0)
        assert replica.state == "gone"

    def test_one_failed_poll_is_forgotten_when_the_next_works(self) -> None:
        registry = ready_old()
        replica = only(registry)
        registry.health(replica, "silent", 2.0, "no answer")
        assert (replica.state, replica.note) == ("suspect", "no answer")
        registry.health(replica, "ok", 3.0)
        assert (replica.state, replica.note) == ("ready", "")

    def test_silence_ends_it_after_six_seconds(self) -> None:
        _, replica = lost_old()
        assert replica.state == "gone"

    def test_one_that_fell_silent_is_asked_on_and_comes_back_when_it_answers(self) -> None:
        registry, replica = lost_old()
        now = let_pass(registry, 6.0, 7.0)
        assert replica.lost
        assert registry.polls_due(now) == []
        now = let_pass(registry, now, 300.0)
        assert registry.polls_due(now) == [replica]
        registry.health(replica, "silent", now)
        assert registry.polls_due(now + 5.0) == [replica]
        registry.health(replica, "ok", now + 5.0)
        assert only(registry) is replica
        assert (replica.state, replica.lost) == ("ready", False)

    def test_one_that_fell_silent_does_not_come_back_to_a_place_that_is_taken(self) -> None:
        registry, replica = lost_old()
        now = let_pass(registry, 6.0, 20.0)
        assert registry.polls_due(now) == [replica]
        registry.register_old("m", OLD, now)
        registry.health(replica, "ok", now)
        assert only(registry) is not replica
        assert replica.state == "gone"

    def test_one_that_fell_silent_for_ten_minutes_is_forgotten(self) -> None:
        registry, replica = lost_old()
        now = let_pass(registry, 6.0, 620.0)
        assert registry.all_replicas() == []
        registry.health(replica, "ok", now)
        assert registry.all_replicas() == []

    def test_one_that_computes_may_be_silent_for_longer(self) -> None:
        registry = ready_old()
        replica = only(registry)
        replica.running = 1
        registry.health(replica, "silent", 4.0)
        now = let_pass(registry, 0.0, 119.0)
        assert replica.state == "suspect"
        let_pass(registry, now, 120.0)
        assert replica.state == "gone"

    def test_the_delay_of_a_poll_is_no_silence(self) -> None:
        registry = ready_old()
        let_pass(registry, 0.0, 20.0)
        assert only(registry).state == "ready"

    def test_names_registered_while_it_starts_are_one_executors(self) -> None:
        registry = Registry()
        registry.register_old("m", OLD, 0.0)
        registry.register_old("n", OLD, 0.1)
        assert only(registry, "m") is only(registry, "n")

    def test_registering_again_later_is_a_new_process(self) -> None:
        registry = ready_old()
        old = only(registry)
        registry.register_old("m", OLD, 10.0)
        assert old.state == "gone"
        assert only(registry).state == "starting"
        assert only(registry).id != old.id

    def test_one_of_ours_takes_over_an_old_ones_address(self) -> None:
        registry = ready_old()
        message = Registration(
            executor_id="a", incarnation=1, access_codes=["m"], dialects=Dialects(v1_0=OLD), concurrency=1
        )
        registry.register(message, 1.0)
        assert only(registry).executor_id == "a"

    def test_it_leaves_by_name_scheme_host_and_port(self) -> None:
        registry = ready_old()
        assert not registry.unregister("m", "http://127.0.0.1:5002/chat", 1.0)
        assert not registry.unregister("n", OLD, 1.0)
        assert not registry.unregister("m", "https://127.0.0.1:5001/chat", 1.0)
        assert registry.unregister("m", "http://127.0.0.1:5001/other/path", 1.0)
        assert registry.codes() == []

    def test_it_leaves_with_the_last_of_its_names(self) -> None:
        registry = Registry()
        registry.register_old("m", OLD, 0.0)
        registry.register_old("n", OLD, 0.0)
        registry.unregister("m", OLD, 1.0)
        assert registry.replicas("m") == []
        assert only(registry, "n").alive
        registry.unregister("n", OLD, 1.0)
        assert registry.replicas("n") == []

    def test_a_wrong_url_unregisters_nothing(self) -> None:
        assert not ready_old().unregister("m", "http://[::1", 1.0)


def ready_old() -> Registry:
    registry = Registry()
    registry.register_old("m", OLD, 0.0)
    registry.health(only(registry), "ok", 0.0)
    return registry


def lost_old() -> tuple[Registry, Replica]:
    """One that was given up for its silence, six seconds after its last word."""
    registry = ready_old()
    replica = only(registry)
    registry.health(replica, "silent", 4.0)
    let_pass(registry, 0.0, 6.0)
    return registry, replica


class TestUpstreams:
    def test_it_is_ready_once_its_models_answer_and_has_no_limit(self) -> None:
        registry = Registry()
        registry.add_upstream("gpt", "https://api.test/v1", "gpt-4o", b"Bearer k", 0.0)
        replica = only(registry, "gpt")
        assert registry.codes() == []
        assert registry.polls_due(0.0) == [replica]
        registry.health(replica, "ok", 0.5)
        assert registry.codes() == ["gpt"]
        assert (replica.model, replica.authorization) == ("gpt-4o", b"Bearer k")
        assert registry.polls_due(10.0) == []
        assert registry.polls_due(10.6) == [replica]

    def test_it_gets_no_requests_after_two_failed_polls_until_one_works(self) -> None:
        registry = Registry()
        registry.add_upstream("gpt", "https://api.test/v1", "", b"", 0.0)
        replica = only(registry, "gpt")
        registry.health(replica, "ok", 0.0)
        registry.health(replica, "silent", 10.0)
        assert replica.state == "ready"
        assert registry.polls_due(12.0) == [replica]
        registry.health(replica, "silent", 12.0, "GET …/models answered 500")
        assert (replica.state, replica.note) == ("ejected", "GET …/models answered 500")
        registry.health(replica, "ok", 14.0)
        assert replica.state == "ready"

    def test_it_never_expires_and_cannot_be_unregistered(self) -> None:
        registry = Registry()
        registry.add_upstream("gpt", "https://api.test/v1", "", b"", 0.0)
        let_pass(registry, 0.0, 100.0)
        assert not registry.unregister("gpt", "https://api.test/v1", 100.0)
        assert only(registry, "gpt").alive

    def test_two_access_codes_may_stand_for_one_server(self) -> None:
        registry = Registry()
        registry.add_upstream("a", "https://api.test/v1", "x", b"", 0.0)
        registry.add_upstream("b", "https://api.test/v1", "y", b"", 0.0)
        assert [r.model for r in registry.replicas("a") + registry.replicas("b")] == ["x", "y"]

    def test_its_key_is_not_shown(self) -> None:
        registry = Registry()
        registry.add_upstream("a", "https://api.test/v1", "x", b"Bearer canary", 0.0)
        assert "canary" not in repr(only(registry, "a"))


PORTS = (4001, 4002)
PEERS = ("127.0.0.1", "198.51.100.6")


def reported(replica: Replica) -> object:
    """What the dispatcher has to know of a replica."""
    half_open = {code for code, breaker in replica.breakers.items() if breaker.half_open}
    return replica.state, replica.access_codes, replica.slots, set(replica.ejected), half_open


class ComingsAndGoings(RuleBasedStateMachine):
    """Whatever comes in whatever order, the three views agree and time only ever takes the silent away."""

    @initialize()
    def begin(self) -> None:
        self.registry = Registry()
        self.now = 0.0
        self.renewed: dict[str, float] = {}
        self.reported: dict[Replica, object] = {}

    @rule(
        name=st.sampled_from("abc"),
        codes=st.sampled_from([("m",), ("n",), ("m", "n")]),
        port=st.sampled_from(PORTS),
        incarnation=st.integers(1, 3),
        state=st.sampled_from(["starting", "ready", "draining"]),
        slots=st.integers(1, 2),
        peer=st.sampled_from(PEERS),
    )
    def register(
        self,
        name: str,
        codes: tuple[str, ...],
        port: int,
        incarnation: int,
        state: ExecutorState,
        slots: int,
        peer: str,
    ) -> None:
        message = registration(name, *codes, port=port, incarnation=incarnation, state=state, slots=slots)
        rivals = [
            replica
            for replica in self.registry.all_replicas()
            if replica.source == "lease"
            and (replica.executor_id == name or (replica.alive and replica.address == message.dialects.openai))
        ]
        taken = any(
            incarnation < rival.incarnation if rival.registered_from == peer else rival.alive for rival in rivals
        )
        before = {rival: rival.state for rival in rivals}
        try:
            self.registry.register(message, self.now, peer)
        except InvalidRequest:
            assert taken
            assert before == {rival: rival.state for rival in rivals}, "the one that was there stays as it was"
            return
        assert not taken
        (mine,) = [r for r in self.registry.all_replicas() if r.executor_id == name]
        assert (mine.state, mine.slots, mine.access_codes) == (state, slots, codes)
        self.renewed[name] = self.now

    @rule(name=st.sampled_from("mn"), port=st.sampled_from(PORTS))
    def register_old(self, name: str, port: int) -> None:
        self.registry.register_old(name, f"http://127.0.0.1:{port}/v1", self.now)
        assert any(r.source == "old" for r in self.registry.replicas(name))

    @rule(answer=st.sampled_from(["ok", "refused", "silent"]))
    def poll(self, answer: str) -> None:
        for replica in self.registry.polls_due(self.now):
            assert replica.alive or replica.lost
            assert replica.source == "old" or replica.ejected
            self.registry.health(replica, answer, self.now)  # type: ignore[arg-type]
            assert not replica.alive or replica.life.next_poll > self.now

    @rule(code=st.sampled_from("mn"), place=st.integers(0, 2), times=st.integers(1, 4))
    def a_model_fails(self, code: str, place: int, times: int) -> None:
        for replica in self.registry.replicas(code)[place : place + 1]:
            was = self.ready(code)
            elsewhere = {other: replica.state_at(other) for other in replica.access_codes if other != code}
            for number in range(times):
                self.registry.faults.failed(replica, code, b"%d" % number, self.now, "it failed")
            assert was <= {replica} or self.ready(code), "the last one that was ready is kept"
            assert elsewhere == {other: replica.state_at(other) for other in elsewhere}, "the other model is not blamed"

    @rule(code=st.sampled_from("mn"), body=st.integers(0, 9))
    def all_refuse_a_body(self, code: str, body: int) -> None:
        before = self.ready(code)
        for replica in self.registry.replicas(code):
            self.registry.faults.refused(replica, code, b"%d" % body)
        assert self.ready(code) == before, "a body that all refuse ejects nobody"

    @rule(code=st.sampled_from("mn"), place=st.integers(0, 2))
    def a_model_works(self, code: str, place: int) -> None:
        for replica in self.registry.replicas(code)[place : place + 1]:
            before = replica.state_at(code)
            self.registry.faults.worked(replica, code)
            assert replica.state_at(code) == before

    def ready(self, code: str) -> set[Replica]:
        return {replica for replica in self.registry.replicas(code) if replica.state_at(code) == "ready"}

    @rule(name=st.sampled_from("mn"), port=st.sampled_from(PORTS))
    def unregister(self, name: str, port: int) -> None:
        known = self.registry.unregister(name, f"http://127.0.0.1:{port}/x", self.now)
        assert known or all(f":{port}/" not in r.address for r in self.registry.replicas(name))
        assert all(f":{port}/" not in r.address for r in self.registry.replicas(name))

    @rule(ticks=st.integers(1, 30))
    def time_passes(self, ticks: int) -> None:
        for _ in range(ticks):
            self.now += 0.25
            self.registry.expire(self.now)

    @invariant()
    def the_views_agree(self) -> None:
        replicas = self.registry.all_replicas()
        alive = [r for r in replicas if r.alive]
        assert not any(r.lost for r in alive), "what runs on a live one is not given up"
        for code in ("m", "n"):
            assert set(self.registry.replicas(code)) == {r for r in alive if code in r.access_codes}
        assert len({r.address for r in alive}) == len(alive), "two live replicas at one address"
        assert len({r.id for r in replicas}) == len(replicas)
        assert self.registry.codes() == sorted(
            {c for r in alive for c in r.access_codes if r.state_at(c) not in ("starting", "ejected")}
        )

    @invariant()
    def leases_end_when_they_should(self) -> None:
        for replica in self.registry.all_replicas():
            if replica.source == "lease" and replica.alive:
                silent_s = self.now - self.renewed[replica.executor_id]
                assert silent_s < 6.25
                assert replica.state != "ready" or silent_s < 4.75

    @invariant()
    def breakers_speak_of_what_is_served(self) -> None:
        for replica in self.registry.all_replicas():
            if replica.alive:
                assert set(replica.breakers) <= set(replica.access_codes)
            for breaker in replica.breakers.values():
                assert not (breaker.opened and breaker.half_open)

    @invariant()
    def every_change_is_reported(self) -> None:
        for replica in self.registry.take_changes():
            self.reported[replica] = reported(replica)
        for replica, told in self.reported.items():
            assert told == reported(replica)
        assert set(self.registry.all_replicas()) <= set(self.reported)


TestComingsAndGoings = ComingsAndGoings.TestCase
TestComingsAndGoings.settings = hypothesis_settings(max_examples=100, stateful_step_count=50, deadline=None)
