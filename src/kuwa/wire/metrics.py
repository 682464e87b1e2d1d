"""Numbers as Prometheus reads them: histograms, and the body of `/metrics`. Kernel and executors tell theirs by it.

prometheus_client is imported only where families and expositions are made.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from prometheus_client import Metric
    from prometheus_client.core import HistogramMetricFamily
    from prometheus_client.registry import Collector as Registered


class Histogram:
    """Numbers counted into buckets of fixed upper bounds. `zeros` counts observations of 0, which need no search.

    The library's own histogram takes a lock for each bucket, sum and count.
    """

    __slots__ = ("_bounds", "_counts", "_total", "zeros")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.zeros = 0
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def cumulative(self) -> tuple[list[tuple[str, float]], float]:
        """Prometheus' buckets (upper bound, count up to it), and the sum of all observations."""
        buckets: list[tuple[str, float]] = []
        count = self.zeros
        bounds = [str(float(bound)) for bound in self._bounds]
        for bound, here in zip((*bounds, "+Inf"), self._counts, strict=True):
            count += here
            buckets.append((bound, count))
        return buckets, self._total

    def __add__(self, other: Histogram) -> Histogram:
        """Both together; their bounds must be the same."""
        both = Histogram(self._bounds)
        both.zeros = self.zeros + other.zeros
        both._counts = [one + another for one, another in zip(self._counts, other._counts, strict=True)]
        both._total = self._total + other._total
        return both


def histogram_family(name: str, text: str, label: str, histograms: Mapping[str, Histogram]) -> HistogramMetricFamily:
    """The histograms by the value of their one label, as a family to collect."""
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(name, text, labels=[label])
    for value, histogram in histograms.items():
        buckets, total = histogram.cumulative()
        family.add_metric([value], buckets, total)
    return family


class Collector(Protocol):
    """Gives the families that `/metrics` shows, as they are at that moment."""

    def collect(self) -> Iterable[Metric]: ...


class Exposition:
    """The body of `/metrics`: what the collectors give."""

    def __init__(self, *collectors: Collector) -> None:
        from prometheus_client import CollectorRegistry

        self._registry = CollectorRegistry(auto_describe=False)
        for collector in collectors:
            self._registry.register(cast("Registered", collector))

    def render(self, accept: str) -> tuple[bytes, str]:
        """The text in the format that the scraper's Accept header asks for, and its content type."""
        from prometheus_client.exposition import choose_encoder

        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type
