"""Histograms, and the body of `/metrics`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric

from kuwa.wire.metrics import Exposition, Histogram, histogram_family

BOUNDS = (0.005, 0.01, 1, 600.0)
OBSERVED = st.lists(st.floats(0, 1e6))


def observed(values: list[float]) -> Histogram:
    histogram = Histogram(BOUNDS)
    for value in values:
        histogram.observe(value)
    return histogram


def test_a_histogram_counts_up_to_and_including_each_bound() -> None:
    buckets, total = observed([0.005, 0.0051, 1000.0]).cumulative()
    assert buckets == [("0.005", 1), ("0.01", 2), ("1.0", 2), ("600.0", 2), ("+Inf", 3)]
    assert total == 1000.0101


@given(values=OBSERVED, zeros=st.integers(0, 9))
def test_every_bucket_holds_what_is_not_above_its_bound(values: list[float], zeros: int) -> None:
    histogram = observed(values)
    histogram.zeros += zeros
    buckets, total = histogram.cumulative()
    assert [count for _, count in buckets] == [zeros + sum(v <= float(bound) for v in values) for bound, _ in buckets]
    assert total == pytest.approx(sum(values))


@given(one=OBSERVED, another=OBSERVED)
def test_the_sum_of_two_histograms_is_the_histogram_of_both(one: list[float], another: list[float]) -> None:
    both, all_ = (observed(one) + observed(another)).cumulative(), observed(one + another).cumulative()
    assert both[0] == all_[0]
    assert both[1] == pytest.approx(all_[1])


class Tides:
    """A collector of one family."""

    def collect(self) -> Iterator[Metric]:
        yield histogram_family("tide_m", "How high.", "harbour", {'a"b\n': observed([0.5]), "c": observed([])})


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [("", "text/plain"), ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text")],
)
def test_the_exposition_comes_in_the_format_that_the_scraper_asks_for(accept: str, content_type: str) -> None:
    body, told = Exposition(Tides()).render(accept)
    assert told.startswith(content_type)
    lines = body.decode().splitlines()
    assert 'tide_m_bucket{harbour="a\\"b\\n",le="1.0"} 1.0' in lines
    assert 'tide_m_count{harbour="c"} 0.0' in lines
