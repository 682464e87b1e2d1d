from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kuwa.kernel.policy import NOMINAL_SLOTS, LeastLoaded
from kuwa.kernel.registry import UNLIMITED, Replica


def replica(name: str, slots: int = 1, running: int = 0) -> Replica:
    return Replica(
        id=name,
        executor_id=name,
        incarnation=1,
        source="lease",
        access_codes=("m",),
        wire="openai",
        slots=slots,
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
