from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuwa.kernel.lifecycle import Leased
from kuwa.kernel.policy import AHEAD, COMMON, FOLLOWED, NEAR, NOMINAL_SLOTS, Follow, LeastLoaded, Trail, load_of
from kuwa.kernel.replica import UNLIMITED, Facts, Replica


def replica(name: str, slots: int = 1, running: int = 0) -> Replica:
    return Replica(
        id=name,
        executor_id=name,
        incarnation=1,
        life=Leased(0.0),
        facts=Facts(access_codes=("m",), wire="openai", slots=slots),
        running=running,
        state="ready",
    )


def offered(*replicas: Replica) -> LeastLoaded:
    policy = LeastLoaded()
    for one in replicas:
        policy.update(one)
    return policy


def test_there_is_nothing_to_choose_at_first() -> None:
    assert LeastLoaded().choose(set()) is None


def test_the_part_of_the_slots_counts_not_their_number() -> None:
    small, large = replica("small", 2, 1), replica("large", 8, 3)
    assert offered(small, large).choose(set()) is large


def test_one_that_is_full_or_not_ready_is_not_chosen() -> None:
    full, draining = replica("full", 1, 1), replica("draining")
    draining.state = "draining"
    assert offered(full, draining).choose(set()) is None


def test_one_that_was_offered_and_is_no_longer_ready_is_not_chosen() -> None:
    one, other = replica("a"), replica("b", 2, 1)
    policy = offered(one, other)
    one.state = "suspect"
    policy.update(one)
    assert policy.choose(set()) is other
    policy.discard(other)
    assert policy.choose(set()) is None


def test_those_excluded_are_passed_over_and_stay() -> None:
    one, other = replica("a"), replica("b", 2, 1)
    policy = offered(one, other)
    assert policy.choose({"a"}) is other
    assert policy.choose({"a", "b"}) is None
    assert policy.choose(set()) is one


def test_one_without_a_limit_counts_as_a_large_one() -> None:
    upstream, own = replica("upstream", UNLIMITED, NOMINAL_SLOTS), replica("own", 4, 3)
    policy = offered(upstream, own)
    assert policy.choose(set()) is own
    upstream.running = 1
    policy.update(upstream)
    assert policy.choose(set()) is upstream


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4), st.booleans()), max_size=300))
def test_the_choice_is_always_one_of_the_least_loaded(changes: list[tuple[int, int, bool]]) -> None:
    replicas = [replica(str(n), 1 + n % 4) for n in range(10)]
    policy = LeastLoaded()
    offered_once: set[int] = set()
    for number, running, is_ready in changes:
        one = replicas[number]
        one.running = min(running, one.slots)
        one.state = "ready" if is_ready else "suspect"
        policy.update(one)
        offered_once.add(number)
        free = [r for n, r in enumerate(replicas) if n in offered_once and r.state == "ready" and r.running < r.slots]
        chosen = policy.choose(set())
        if not free:
            assert chosen is None
        else:
            assert chosen in free
            assert chosen.running / chosen.slots == min(r.running / r.slots for r in free)


class Replicas:
    """Replicas under one policy, and requests that come and go."""

    def __init__(self, policy: Follow, count: int, slots: int = 16) -> None:
        self.policy = policy
        self.all = [replica(str(number), slots) for number in range(count)]
        for one in self.all:
            policy.update(one)

    def take(self, *trail: int, excluded: frozenset[str] = frozenset()) -> Replica | None:
        chosen = self.policy.choose(excluded, trail)
        if chosen is not None:
            chosen.running += 1
            self.policy.update(chosen)
        return chosen

    def end(self, one: Replica | None) -> None:
        assert one is not None
        one.running -= 1
        self.policy.update(one)

    def lose(self, one: Replica | None) -> None:
        assert one is not None
        one.state = "gone"
        self.policy.update(one)
        self.policy.discard(one)


@pytest.fixture
def eight() -> Replicas:
    return Replicas(Follow(spreads=True), 8)


def test_the_next_turn_goes_where_the_conversation_was(eight: Replicas) -> None:
    first = eight.take(1)
    eight.end(first)
    for other in range(100, 120):
        eight.end(eight.take(other))
    assert eight.take(1, 2, 3) is first
    assert eight.take(1, 2, 3, 4, 5) is first
    assert (eight.policy.kept, eight.policy.spilled, eight.policy.fresh) == (2, 0, 21)


def test_new_conversations_take_turns_though_they_begin_alike(eight: Replicas) -> None:
    system, taken = 7, [eight.take(7, 100 + n) for n in range(8 * (FOLLOWED + 1))]
    for one in taken:
        eight.end(one)
    later = [eight.take(system, 1000 + n) for n in range(COMMON)]
    assert len(set(later)) == 8


def test_a_document_asked_about_again_stays_in_few_places(eight: Replicas) -> None:
    places: set[Replica | None] = set()
    for question in range(6):
        one = eight.take(1, 100 + question)
        places.add(one)
        eight.end(one)
    assert len(places) == 2


def test_one_that_is_gone_or_excluded_is_not_gone_back_to(eight: Replicas) -> None:
    first = eight.take(1)
    assert first is not None
    second = eight.take(1, 2, 3, excluded=frozenset({first.id}))
    assert second is not first
    eight.lose(second)
    assert eight.take(1, 2, 3) is first
    eight.lose(first)
    assert eight.take(1, 2, 3) not in (first, second, None)


def test_a_busy_one_is_left_for_the_least_loaded_and_the_conversation_stays_there(eight: Replicas) -> None:
    first = eight.take(1)
    assert first is not None
    for _ in range(AHEAD):
        first.running += 1
    eight.policy.update(first)
    second = eight.take(1, 2, 3)
    assert second is not first
    eight.end(second)
    assert eight.take(1, 2, 3, 4, 5) is second


def test_a_session_stays_however_often_it_comes() -> None:
    them = Replicas(Follow(spreads=False), 8)
    first = them.take(1)
    them.end(first)
    for _ in range(50):
        one = them.take(1)
        assert one is first
        them.end(one)


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kuwa.kernel.policy.MAX_PLACES", 10)
    them = Replicas(Follow(spreads=True), 2, slots=1000)
    places = [them.take(n) for n in range(30)]
    assert them.take(29, 30, 31) is places[29]
    before = them.policy.fresh
    them.take(0, 100, 101)
    assert them.policy.fresh == before + 1


@pytest.mark.parametrize("spreads", [True, False])
def test_one_trail_for_all_never_leaves_the_window(spreads: bool) -> None:
    them = Replicas(Follow(spreads=spreads), 8, slots=64)
    for _ in range(8 * 64):
        assert them.take(1, 2) is not None
        loads = [one.running for one in them.all]
        assert max(loads) <= NEAR * min(loads) + AHEAD + 1
    assert them.take(1, 2) is None


@given(
    st.integers(1, 6),
    st.booleans(),
    st.lists(
        st.tuples(st.sampled_from(["take", "end", "flip"]), st.integers(0, 5), st.lists(st.integers(0, 9), max_size=4)),
        max_size=200,
    ),
)
def test_every_choice_is_free_ready_and_near_the_lowest_load(
    count: int, spreads: bool, steps: list[tuple[str, int, list[int]]]
) -> None:
    them = Replicas(Follow(spreads=spreads), count, slots=6)
    held: list[Replica] = []
    asked = 0
    for what, number, marks in steps:
        one = them.all[number % count]
        trail: Trail = tuple(marks)
        if what == "flip":
            one.state = "suspect" if one.state == "ready" else "ready"
            them.policy.update(one)
        elif what == "end" and held:
            them.end(held.pop(number % len(held)))
        elif what == "take":
            free = [r for r in them.all if r.state == "ready" and r.running < r.slots]
            lowest = min((load_of(r) for r in free), default=0.0)
            before = {r: r.running for r in free}
            chosen = them.take(*trail)
            assert (chosen is None) == (not free)
            if chosen is not None:
                assert before[chosen] <= NEAR * lowest * chosen.slots + AHEAD
                held.append(chosen)
                asked += bool(trail)
    assert sum(r.running for r in them.all) == len(held)
    assert them.policy.kept + them.policy.spilled + them.policy.fresh == asked


def test_a_thousand_replicas_cost_what_two_do() -> None:
    """Counted in comparisons of loads, not in time: what a choice looks at does not grow with the replicas."""
    looked_at = 0

    class Watched(Follow):
        def _is_near(self, replica: Replica, lowest: float) -> bool:
            nonlocal looked_at
            looked_at += 1
            return super()._is_near(replica, lowest)

    them = Replicas(Watched(spreads=True), 1000)
    for conversation in range(500):
        for turn in range(1, 6):
            them.end(them.take(*(conversation * 100 + mark for mark in range(2 * turn))))
    assert looked_at <= 500 * 5 * 2
