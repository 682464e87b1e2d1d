"""The engine's scheduler: admission, chunks, shared beginnings, cancel. No torch, no model."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kuwa.engine.request import End, Generation
from kuwa.engine.scheduler import Limits, Plan, Run, Scheduler, common_beginning

END = 1


def scheduler(slots: int = 2, length: int = 64, step_tokens: int = 8, **more: bool) -> Scheduler:
    return Scheduler(Limits(slots=slots, length=length, step_tokens=step_tokens, **more))


def generation(prompt: list[int], most: int = 3, done: tuple[int, ...] = ()) -> Generation:
    return Generation(prompt=prompt, max_tokens=most, stops=frozenset({END}), done=done)


def step(scheduler: Scheduler, token: int = 9) -> tuple[Plan, list[tuple[Run, End | None]]]:
    plan = scheduler.plan()
    return plan, scheduler.advance(plan, [token for _ in plan.drawing])


def finish(scheduler: Scheduler, token: int = 9) -> list[End]:
    ends: list[End] = []
    while not scheduler.idle:
        ends += [end for _, end in step(scheduler, token)[1] if end is not None]
    return ends


def lengths(plan: Plan) -> list[tuple[int, int]]:
    return [(segment.start, len(segment.ids)) for segment in plan.segments]


def test_a_short_prompt_is_read_and_draws_in_one_step() -> None:
    s = scheduler()
    s.add(1, generation([2, 3, 4]))
    plan, news = step(s)
    assert lengths(plan) == [(0, 3)]
    assert [(run.key, end) for run, end in news] == [(1, None)]


def test_a_long_prompt_is_read_in_pieces_and_draws_behind_the_last() -> None:
    s = scheduler(step_tokens=4)
    s.add(1, generation(list(range(10, 20))))
    plans = [step(s)[0] for _ in range(4)]
    assert [lengths(plan) for plan in plans] == [[(0, 4)], [(4, 4)], [(8, 2)], [(10, 1)]]
    assert [len(list(plan.drawing)) for plan in plans] == [0, 0, 1, 1]


def test_without_chunks_a_prompt_is_read_at_once() -> None:
    s = scheduler(step_tokens=4, chunks=False)
    s.add(1, generation(list(range(10, 30))))
    assert lengths(s.plan()) == [(0, 20)]


def test_requests_that_generate_go_on_while_a_prompt_is_read() -> None:
    s = scheduler(step_tokens=4)
    s.add(1, generation([2], most=9))
    step(s)
    s.add(2, generation(list(range(10, 20))))
    assert lengths(step(s)[0]) == [(1, 1), (0, 3)]


def test_requests_beyond_the_slots_wait_in_their_order() -> None:
    s = scheduler(slots=1)
    for key in (1, 2, 3):
        s.add(key, generation([key + 5]))
    order: list[int] = []
    while not s.idle:
        order += [run.key for run, end in step(s)[1] if end is not None]
    assert order == [1, 2, 3]


def test_an_end_token_ends_with_stop_and_the_last_allowed_one_with_length() -> None:
    s = scheduler()
    s.add(1, generation([2]))
    assert [end.reason for end in finish(s, END)] == ["stop"]
    s.add(2, generation([2]))
    assert [end.reason for end in finish(s)] == ["length"]


def test_a_sequence_ends_at_the_length_of_its_slot() -> None:
    s = scheduler(length=5)
    s.add(1, generation([2, 3, 4], most=100))
    assert [end.reason for end in finish(s)] == ["length"]
    assert s.owned == 0


def test_tokens_generated_before_count_and_are_not_drawn_again() -> None:
    s = scheduler()
    s.add(1, generation([2, 3], most=4, done=(7, 8, 9)))
    plan, news = step(s)
    assert lengths(plan) == [(0, 5)]
    assert news[0][1] == End("length", 0)


def test_a_prompt_with_a_known_beginning_is_computed_behind_it() -> None:
    s = scheduler()
    s.add(1, generation([5, 6, 7, 8, 9, 10]))
    finish(s)
    s.add(2, generation([5, 6, 7, 8, 20, 21]))
    plan, _ = step(s)
    assert (lengths(plan), plan.copies) == ([(4, 2)], ())


def test_the_same_prompt_again_computes_its_last_token_only() -> None:
    s = scheduler()
    prompt = [5, 6, 7, 8]
    for key in (1, 2):
        s.add(key, generation(prompt))
        ends = finish(s)
    assert ends == [End("length", 3)]


def test_a_beginning_that_a_running_request_holds_is_copied() -> None:
    s = scheduler(step_tokens=64)
    shared = list(range(10, 40))
    s.add(1, generation(shared, most=50))
    step(s)
    s.add(2, generation([*shared, 4]))
    plan, _ = step(s)
    (copy,) = plan.copies
    assert copy.length == 30
    assert lengths(plan) == [(30, 1), (30, 1)]


def test_a_long_conversation_is_not_given_up_for_a_short_common_beginning() -> None:
    s = scheduler(step_tokens=64)
    system = list(range(10, 30))
    s.add(1, generation([*system, *range(100, 130)]))
    finish(s)
    s.add(2, generation([*system, 200]))
    plan = s.plan()
    assert [copy.length for copy in plan.copies] == [20]
    s.advance(plan, [9])
    finish(s)
    s.add(3, generation([*system, *range(100, 130), 300]))
    assert lengths(s.plan()) == [(50, 1)]


def test_without_sharing_a_slot_is_cleared_before_it_is_used_again() -> None:
    s = scheduler(slots=1, share_prefixes=False)
    s.add(1, generation([5, 6, 7]))
    finish(s)
    s.add(2, generation([5, 6, 7]))
    plan = s.plan()
    assert (plan.cleared, lengths(plan)) == ((0,), [(0, 3)])


def test_requests_with_inputs_of_their_own_share_nothing() -> None:
    s = scheduler(slots=1)
    for key in (1, 2):
        s.add(key, Generation(prompt=[5, 6, 7], max_tokens=1, inputs={"pixel_values": key}))
        assert lengths(step(s)[0]) == [(0, 3)]
    s.add(3, generation([5, 6, 7]))
    assert lengths(s.plan()) == [(0, 3)]


def test_cancel_frees_the_slot_from_the_queue_the_prompt_and_the_answer() -> None:
    s = scheduler(slots=1, step_tokens=2)
    s.add(1, generation([2, 3, 4, 5]))
    s.add(2, generation([2, 3]))
    step(s)
    assert s.cancel(2)
    assert s.cancel(1)
    assert (s.idle, s.owned, s.tokens) == (True, 0, 0)
    s.add(3, generation([2], most=50))
    step(s)
    step(s)
    assert s.cancel(3)
    assert not s.cancel(3)
    assert s.idle


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_a_common_beginning_is_found_as_by_hand(a: list[int], b: list[int]) -> None:
    expected = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert common_beginning(a, b) == expected


class Machine(RuleBasedStateMachine):
    """Requests that come, are cancelled and end at random, on a cache that is simulated position by position."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = scheduler(slots=3, length=40, step_tokens=7)
        self.cache: list[list[int]] = [[] for _ in range(3)]
        self.alive: dict[int, list[int]] = {}
        self.next_key = 0

    @rule(prompt=st.lists(st.integers(2, 4), min_size=1, max_size=25), most=st.integers(1, 6))
    def add(self, prompt: list[int], most: int) -> None:
        self.next_key += 1
        self.scheduler.add(self.next_key, generation(prompt, most))
        self.alive[self.next_key] = prompt

    @precondition(lambda self: bool(self.alive))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.alive)))
        assert self.scheduler.cancel(key)
        del self.alive[key]

    @precondition(lambda self: bool(self.alive))
    @rule(token=st.integers(1, 5))
    def step(self, token: int) -> None:
        plan = self.scheduler.plan()
        assert plan.segments
        for copy in plan.copies:
            self.cache[copy.target] = self.cache[copy.source][: copy.length]
            assert len(self.cache[copy.target]) == copy.length
        prompts = 0
        for segment in plan.segments:
            del self.cache[segment.slot][segment.start :]
            self.cache[segment.slot] += segment.ids
            # What the slot holds is exactly the sequence up to here: nothing of another request is left in it.
            assert self.cache[segment.slot] == segment.run.ids[: segment.end]
            assert segment.draws == (segment.end == len(segment.run.ids))
            prompts += len(segment.ids)
        assert prompts <= max(7, len(plan.segments))
        assert len({segment.slot for segment in plan.segments}) == len(plan.segments)
        for run, end in self.scheduler.advance(plan, [token for _ in plan.drawing]):
            if end is not None:
                del self.alive[run.key]

    @invariant()
    def nothing_is_lost_or_held_twice(self) -> None:
        assert {run.key for run in self.scheduler.runs} == set(self.alive)
        assert self.scheduler.owned == self.scheduler.running <= 3
        assert self.scheduler.idle == (not self.alive)

    def teardown(self) -> None:
        for _ in range(400):
            if self.scheduler.idle:
                return
            self.step(END)
        raise AssertionError("requests never end")


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
