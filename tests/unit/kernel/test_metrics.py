from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuwa.kernel.dispatcher import Dispatcher
from kuwa.kernel.metrics import MAX_TALLIES, OTHER, OTHERS, OUTCOMES, Collector, Metrics, exposition_of
from kuwa.kernel.queue import Ticket
from kuwa.kernel.registry import Registry
from kuwa.wire.lease import MAX_TOKENS, Dialects, Registration


def scrape(metrics: Metrics, registry: Registry | None = None, dispatcher: Dispatcher | None = None) -> list[str]:
    registry = registry or Registry()
    exposition = exposition_of(Collector(metrics, registry, dispatcher or Dispatcher(registry)))
    body, content_type = exposition.render("")
    assert content_type.startswith("text/plain")
    return body.decode().splitlines()


def test_what_was_counted_is_shown_under_its_names() -> None:
    metrics = Metrics()
    tally = metrics.of("m")
    tally.outcomes["ok"] += 2
    tally.retries += 1
    tally.prompt_tokens += 7
    tally.request_time.observe(0.2)
    tally.time_to_first_token.observe(0.1)
    tally.whole_time.observe(0.3)
    tally.queue_wait.observe(0.0)
    tally.queue_wait.zeros += 2
    tally.cached_tokens += 4
    metrics.resumes["replay"] += 1
    lines = scrape(metrics)
    assert 'kuwa_requests_total{access_code="m",outcome="ok"} 2.0' in lines
    assert 'kuwa_retries_total{access_code="m"} 1.0' in lines
    assert 'kuwa_tokens_total{access_code="m",kind="prompt"} 7.0' in lines
    assert 'kuwa_tokens_total{access_code="m",kind="cached"} 4.0' in lines
    assert 'kuwa_request_seconds_bucket{access_code="m",le="0.25"} 1.0' in lines
    assert 'kuwa_request_seconds_count{access_code="m"} 2.0' in lines
    assert 'kuwa_time_to_first_token_seconds_sum{access_code="m"} 0.4' in lines
    assert 'kuwa_queue_wait_seconds_bucket{access_code="m",le="0.005"} 3.0' in lines
    assert 'kuwa_resumes_total{outcome="replay"} 1.0' in lines
    assert any(line.startswith("process_resident_memory_bytes ") for line in lines)


def test_slots_replicas_and_queues_are_those_of_the_moment() -> None:
    registry = Registry()
    dispatcher = Dispatcher(registry)
    message = Registration(
        executor_id="a", incarnation=1, access_codes=["m"], dialects=Dialects(openai="http://a/v1"), concurrency=3
    )
    registry.register(message, 0.0)
    dispatcher.changed(registry.take_changes(), 0.0)
    dispatcher.acquire(Ticket("m", "p"), 0.0)
    dispatcher.reserve("m", ("1", "2"), 0.0)
    lines = scrape(Metrics(), registry, dispatcher)
    assert 'kuwa_slots{state="used"} 1.0' in lines
    assert 'kuwa_slots{state="reserved"} 1.0' in lines
    assert 'kuwa_slots{state="free"} 1.0' in lines
    assert 'kuwa_replicas{state="ready"} 1.0' in lines
    assert 'kuwa_queue_depth{access_code="m"} 0.0' in lines
    dispatcher.acquire(Ticket("m", "p"), 0.0)
    dispatcher.acquire(Ticket("m", "p"), 0.0)
    assert 'kuwa_queue_depth{access_code="m"} 1.0' in scrape(Metrics(), registry, dispatcher)


def test_an_odd_access_code_cannot_break_the_format() -> None:
    metrics = Metrics()
    metrics.of('a"} 1\nevil 2').outcomes["ok"] += 1
    assert not [line for line in scrape(metrics) if line.startswith("evil")]


def test_the_number_of_tallies_is_bounded() -> None:
    metrics = Metrics()
    for number in range(2 * MAX_TALLIES):
        metrics.of(f"m{number}").outcomes["ok"] += 1
    tallies = dict(metrics.items())
    assert len(tallies) == MAX_TALLIES + 1
    assert tallies[OTHERS].outcomes["ok"] == MAX_TALLIES


@given(code=st.text())
def test_error_codes_that_are_not_ours_share_one_outcome(code: str) -> None:
    tally = Metrics().of("m")
    tally.failed(code)
    assert tally.outcomes == {code if code in OUTCOMES else OTHER: 1}


@pytest.mark.parametrize("code", ["cancelled", "no_replica", "context_length_exceeded", "engine_lost"])
def test_error_codes_of_ours_are_outcomes(code: str) -> None:
    tally = Metrics().of("m")
    tally.failed(code)
    assert tally.outcomes == {code: 1}


COUNTS = st.integers(-3, 3) | st.integers(MAX_TOKENS - 1, MAX_TOKENS + 1) | st.integers()


@given(reports=st.lists(st.tuples(COUNTS, COUNTS, COUNTS)))
def test_token_counts_only_grow_and_can_be_shown_whatever_executors_report(reports: list[tuple[int, int, int]]) -> None:
    metrics = Metrics()
    tally = metrics.of("m")
    for prompt, completion, cached in reports:
        before = (tally.prompt_tokens, tally.completion_tokens, tally.cached_tokens)
        possible = all(0 <= count <= MAX_TOKENS for count in (prompt, completion, cached))
        assert tally.add_tokens(prompt, completion, cached) == possible
        after = (tally.prompt_tokens, tally.completion_tokens, tally.cached_tokens)
        grown = tuple(new - old for new, old in zip(after, before, strict=True))
        assert grown == ((prompt, completion, cached) if possible else (0, 0, 0))
    float(tally.prompt_tokens + tally.completion_tokens + tally.cached_tokens)


def test_a_count_of_hundreds_of_digits_does_not_break_the_page() -> None:
    metrics = Metrics()
    metrics.of("m").add_tokens(7 * 10**900, 3)
    assert 'kuwa_tokens_total{access_code="m",kind="prompt"} 0.0' in scrape(metrics)
