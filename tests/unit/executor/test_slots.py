"""The executor's own limit, under any order of events."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from kuwa.executor.slots import CANCEL_GRACE_S, GRACE_S, Slots, Waiter
from kuwa.wire.errors import QueueFull


def test_a_slot_goes_to_who_waits_longest() -> None:
    slots, granted = Slots(1), []
    assert slots.take()
    slots.wait(lambda: granted.append("first"), 0.0)
    assert not slots.take()
    with pytest.raises(QueueFull):
        slots.wait(lambda: granted.append("second"), 0.0)
    slots.release()
    assert granted == ["first"]
    slots.release()
    assert slots.take()


def test_who_waits_for_a_cancelled_request_waits_longer() -> None:
    slots = Slots(2)
    assert slots.wait(lambda: None, 10.0).deadline == 10.0 + GRACE_S
    slots.cancelling = 1
    assert slots.wait(lambda: None, 10.0).deadline == 10.0 + CANCEL_GRACE_S


class AnyOrder(RuleBasedStateMachine):
    waiters = Bundle("waiters")

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots(3)
        self.held = 0

    def granted(self) -> None:
        self.held += 1

    @rule()
    def take(self) -> None:
        self.held += self.slots.take()

    @rule(target=waiters, now=st.floats(0, 10))
    def wait(self, now: float) -> Waiter:
        try:
            return self.slots.wait(self.granted, now)
        except QueueFull:
            assert self.slots.waiting == 3
            return Waiter(self.granted, 0)

    @rule(waiter=consumes(waiters))
    def give_up(self, waiter: Waiter) -> None:
        self.slots.give_up(waiter)

    @rule()
    def release(self) -> None:
        if self.held:
            self.held -= 1
            self.slots.release()

    @invariant()
    def the_count_is_exact_and_bounded(self) -> None:
        assert self.slots.running == self.held <= 3
        assert self.slots.waiting <= 3


TestAnyOrder = AnyOrder.TestCase
