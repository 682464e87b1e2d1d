"""When the programs of `kuwa up` are started, started again, given up and ended."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kuwa.fleet.programs import Program
from kuwa.fleet.supervision import (
    END_GRACE_S,
    MAX_QUICK_DEATHS,
    PATIENCE_S,
    QUICK_DEATH_S,
    Abandoned,
    Action,
    Died,
    Kill,
    Ready,
    Settled,
    Start,
    Supervision,
    Terminate,
)

KERNEL = Program(name="kernel", kind="kernel", module="m", arguments=())
DEBUG = Program(name="debug", kind="executor", module="m", arguments=(), needs=("kernel",), access_code="debug")
MAKE = Program(name="make", kind="task", module="m", arguments=())
WELCOME = Program(
    name="welcome", kind="executor", module="m", arguments=(), needs=("kernel", "make"), access_code="welcome"
)
ALL = (KERNEL, DEBUG, MAKE, WELCOME)


def names(actions: Iterable[Action], kind: type[Action]) -> list[str]:
    return [action.program.name for action in actions if isinstance(action, kind)]


def serving() -> Supervision:
    """A fleet in which everything is ready at second 1."""
    fleet = Supervision(ALL, 0.0)
    fleet.step(0.0)
    fleet.ready("kernel", 0.5)
    fleet.exited("make", 0, 0.5)
    fleet.step(0.5)
    fleet.ready("debug", 1.0)
    fleet.ready("welcome", 1.0)
    fleet.step(1.0)
    fleet.take_news()
    return fleet


def test_first_only_what_needs_nothing_is_started() -> None:
    fleet = Supervision(ALL, 0.0)
    assert names(fleet.step(0.0), Start) == ["kernel", "make"]
    assert fleet.step(0.1) == []


def test_executors_start_when_the_kernel_is_ready_and_their_file_is_made() -> None:
    fleet = Supervision(ALL, 0.0)
    fleet.step(0.0)
    fleet.ready("kernel", 1.0)
    assert names(fleet.step(1.0), Start) == ["debug"]
    fleet.exited("make", 0, 2.0)
    assert names(fleet.step(2.0), Start) == ["welcome"]


def test_the_table_is_due_once_when_everything_is_ready() -> None:
    fleet = Supervision((KERNEL, DEBUG), 0.0)
    fleet.step(0.0)
    fleet.ready("kernel", 1.0)
    fleet.step(1.0)
    assert fleet.take_news() == [Ready(KERNEL, 1.0)]
    fleet.ready("debug", 3.0)
    fleet.step(3.0)
    assert fleet.take_news() == [Ready(DEBUG, 2.0), Settled()]
    fleet.step(100.0)
    assert fleet.take_news() == []


def test_the_table_does_not_wait_for_ever_for_a_model_that_loads() -> None:
    fleet = Supervision((KERNEL, DEBUG), 0.0)
    fleet.step(0.0)
    fleet.ready("kernel", 1.0)
    fleet.step(1.0)
    assert fleet.next_step_at() == PATIENCE_S
    fleet.step(PATIENCE_S)
    assert Settled() in fleet.take_news()
    fleet.ready("debug", 60.0)
    assert fleet.take_news() == [Ready(DEBUG, 59.0)]


def test_a_program_that_dies_is_started_again_after_a_pause_that_doubles() -> None:
    fleet = serving()
    now = 1.0
    pauses: list[float | None] = []
    for _ in range(MAX_QUICK_DEATHS):
        fleet.exited("debug", -9, now)
        [news] = [n for n in fleet.take_news() if isinstance(n, Died)]
        pauses.append(news.again_in_s)
        assert fleet.step(now) == []
        if news.again_in_s is not None:
            now += news.again_in_s
            assert names(fleet.step(now), Start) == ["debug"]
    assert pauses == [0.5, 1.0, 2.0, 4.0, None]
    assert fleet.step(now + 1000) == []


def test_a_dead_predecessor_that_still_holds_its_lease_does_not_count_as_ready() -> None:
    fleet = serving()
    fleet.exited("debug", -9, 10.0)
    fleet.step(10.5)
    fleet.ready("debug", 11.0, since_s=10.0)
    assert fleet.phase("debug") == "starting"
    fleet.ready("debug", 12.0, since_s=0.2)
    assert fleet.phase("debug") == "ready"


def test_a_death_after_a_long_life_counts_anew() -> None:
    fleet = serving()
    now = 1.0
    for _ in range(3 * MAX_QUICK_DEATHS):
        now += QUICK_DEATH_S + 1
        fleet.exited("debug", 1, now)
        now += 0.5
        assert names(fleet.step(now), Start) == ["debug"]


@pytest.mark.parametrize("code", [2, 3])
def test_an_exit_code_that_says_it_is_no_use_is_believed(code: int) -> None:
    fleet = serving()
    fleet.exited("debug", code, 1.0)
    assert fleet.take_news() == [Died(DEBUG, code, None)]
    assert fleet.step(500.0) == []


def test_a_model_that_could_never_be_set_up_is_not_tried_again_but_one_that_could_is() -> None:
    fleet = Supervision((KERNEL, DEBUG), 0.0)
    fleet.step(0.0)
    fleet.ready("kernel", 1.0)
    fleet.step(1.0)
    fleet.exited("debug", 4, 2.0)
    assert Died(DEBUG, 4, None) in fleet.take_news()
    fleet = serving()
    fleet.exited("debug", 4, 100.0)
    assert names(fleet.step(100.5), Start) == ["debug"]


def test_what_needs_a_failed_task_is_not_started() -> None:
    fleet = Supervision(ALL, 0.0)
    fleet.step(0.0)
    fleet.exited("make", 1, 0.1)
    fleet.step(0.1)
    assert fleet.take_news() == [Died(MAKE, 1, None), Abandoned(WELCOME, "make")]
    fleet.ready("kernel", 0.2)
    assert names(fleet.step(0.2), Start) == ["debug"]


def test_a_kernel_that_never_came_up_ends_the_fleet() -> None:
    fleet = Supervision(ALL, 0.0)
    fleet.step(0.0)
    fleet.exited("kernel", 1, 0.3)
    assert names(fleet.step(0.3), Terminate) == ["make"]
    assert fleet.failed
    fleet.exited("make", -15, 0.4)
    fleet.step(0.4)
    assert fleet.finished


def test_a_kernel_that_dies_later_is_started_again_and_its_executors_are_left_alone() -> None:
    fleet = serving()
    fleet.exited("kernel", -11, 5.0)
    assert fleet.step(5.0) == []
    assert names(fleet.step(5.5), Start) == ["kernel"]
    assert not fleet.failed


def test_executors_are_ended_first_and_the_kernel_last() -> None:
    fleet = serving()
    fleet.stop(10.0)
    assert names(fleet.step(10.0), Terminate) == ["debug", "welcome"]
    fleet.exited("debug", 0, 10.1)
    assert fleet.step(10.1) == []
    fleet.exited("welcome", 0, 10.2)
    assert names(fleet.step(10.2), Terminate) == ["kernel"]
    assert not fleet.finished
    fleet.exited("kernel", 0, 10.3)
    assert fleet.finished
    assert not fleet.failed


def test_what_does_not_end_in_its_grace_is_ended_by_force() -> None:
    fleet = serving()
    fleet.stop(10.0)
    fleet.step(10.0)
    fleet.exited("debug", 0, 10.1)
    assert fleet.next_step_at() == 10.0 + END_GRACE_S
    assert names(fleet.step(10.0 + END_GRACE_S), Kill) == ["welcome"]


def test_told_twice_everything_is_ended_by_force_at_once() -> None:
    fleet = serving()
    fleet.stop(10.0)
    fleet.step(10.0)
    fleet.stop(10.5)
    assert names(fleet.step(10.5), Kill) == ["kernel", "debug", "welcome"]


class AnyOrderOfEvents(RuleBasedStateMachine):
    """Whatever happens in whatever order, the actions fit the processes that really run."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.fleet = Supervision(ALL, 0.0)
        self.running: set[str] = set()
        self.stopped = False

    def advance(self) -> None:
        for action in self.fleet.step(self.now):
            name = action.program.name
            if isinstance(action, Start):
                assert name not in self.running
                assert not self.stopped
                self.running.add(name)
            else:
                assert name in self.running
            if isinstance(action, Terminate) and name == "kernel":
                assert self.running == {"kernel"}

    @rule(seconds=st.floats(0, 40))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.advance()

    @precondition(lambda self: self.running)
    @rule(data=st.data(), code=st.sampled_from([0, 1, 2, 3, 4, -9, -15]))
    def one_exits(self, data: st.DataObject, code: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.running)))
        self.running.discard(name)
        self.fleet.exited(name, code, self.now)
        self.advance()

    @rule(name=st.sampled_from([p.name for p in ALL if p.kind != "task"]))
    def one_is_ready(self, name: str) -> None:
        if name in {program.name for program in self.fleet.starting()}:
            self.fleet.ready(name, self.now)
            self.advance()

    @rule()
    def told_to_end(self) -> None:
        self.stopped = True
        self.fleet.stop(self.now)
        self.advance()

    @invariant()
    def finished_means_that_nothing_runs(self) -> None:
        if self.fleet.finished:
            assert not self.running
        elif self.fleet.stopping:
            assert self.running


TestAnyOrderOfEvents = AnyOrderOfEvents.TestCase
TestAnyOrderOfEvents.settings = settings(max_examples=100, deadline=None)
