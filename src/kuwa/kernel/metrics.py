"""What the kernel counts, and how /metrics shows it.

`kernel/chat` adds to plain numbers on the request's way, one `Tally` per access code; only a scrape turns them
into Prometheus' text, together with what registry and dispatcher know at that moment.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from kuwa.kernel.dispatcher import Dispatcher
from kuwa.kernel.lifecycle import STATES
from kuwa.kernel.registry import Registry
from kuwa.kernel.replica import UNLIMITED
from kuwa.wire.errors import CODES
from kuwa.wire.lease import MAX_TOKENS
from kuwa.wire.metrics import Exposition, Histogram, histogram_family

if TYPE_CHECKING:
    from prometheus_client import Metric

LATENCY_BUCKETS_S = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
)
MAX_TALLIES = 1000
OTHER = "other"
OUTCOMES = CODES | {"ok", "cancelled"}
UNKNOWN = ""
OTHERS = "(others)"


class Tally:
    """The counts of one access code. `outcomes` is keyed by one of `OUTCOMES`, or by `OTHER`.

    An answer in one piece has its first content at its end: `whole_time` is both its request time and its time to
    the first token, and neither of the other two has it.
    """

    __slots__ = (
        "cached_tokens",
        "completion_tokens",
        "outcomes",
        "prompt_tokens",
        "queue_wait",
        "request_time",
        "retries",
        "time_to_first_token",
        "whole_time",
    )

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.request_time = Histogram(LATENCY_BUCKETS_S)
        self.time_to_first_token = Histogram(LATENCY_BUCKETS_S)
        self.whole_time = Histogram(LATENCY_BUCKETS_S)
        self.queue_wait = Histogram(LATENCY_BUCKETS_S)
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.retries = 0

    def failed(self, outcome: str) -> None:
        """Count a request that did not go well. A replica's own error codes share one label: it could make up many."""
        self.outcomes[outcome if outcome in OUTCOMES else OTHER] += 1

    def add_tokens(self, prompt: int, completion: int, cached: int = 0) -> bool:
        """Count the tokens of a request as its executor reports them. Whether they can be true; if not, none count."""
        if min(prompt, completion, cached) < 0 or max(prompt, completion, cached) > MAX_TOKENS:
            return False
        self.prompt_tokens += prompt
        self.completion_tokens += completion
        self.cached_tokens += cached
        return True


class Metrics:
    """The tallies by access code. `resumes` counts by outcome over all of them."""

    def __init__(self) -> None:
        self._tallies: dict[str, Tally] = {}
        self.resumes: Counter[str] = Counter()

    def of(self, access_code: str) -> Tally:
        """The tally of an access code that is or was served; use `UNKNOWN` for a request that named none such.

        Beyond a bound new codes share one tally, so that no client can fill the memory with names.
        """
        tally = self._tallies.get(access_code)
        if tally is None:
            name = access_code if len(self._tallies) < MAX_TALLIES else OTHERS
            tally = self._tallies.setdefault(name, Tally())
        return tally

    def items(self) -> Iterable[tuple[str, Tally]]:
        return self._tallies.items()


class Collector:
    """Gives the kernel's numbers to prometheus_client, one scrape at a time."""

    def __init__(self, metrics: Metrics, registry: Registry, dispatcher: Dispatcher) -> None:
        self._metrics = metrics
        self._registry = registry
        self._dispatcher = dispatcher

    def collect(self) -> Iterator[Metric]:
        yield from self._counters()
        yield from self._histograms()
        yield from self._gauges()

    def _counters(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily

        requests = CounterMetricFamily(
            "kuwa_requests", "Requests ended, by how they ended.", labels=("access_code", "outcome")
        )
        tokens = CounterMetricFamily(
            "kuwa_tokens",
            "Tokens as the executors counted them; the cached are among the prompt's.",
            labels=("access_code", "kind"),
        )
        retries = CounterMetricFamily(
            "kuwa_retries", "Requests sent to another replica after one failed.", labels=("access_code",)
        )
        resumes = CounterMetricFamily(
            "kuwa_resumes", "Streams that lost their replica midway, by what became of them.", labels=("outcome",)
        )
        for code, tally in self._metrics.items():
            for outcome, count in tally.outcomes.items():
                requests.add_metric((code, outcome), count)
            tokens.add_metric((code, "prompt"), tally.prompt_tokens)
            tokens.add_metric((code, "cached"), tally.cached_tokens)
            tokens.add_metric((code, "completion"), tally.completion_tokens)
            retries.add_metric((code,), tally.retries)
        for outcome, count in self._metrics.resumes.items():
            resumes.add_metric((outcome,), count)
        yield from (requests, tokens, retries, resumes)

    def _histograms(self) -> Iterator[Metric]:
        tallies = dict(self._metrics.items())
        whole = {code: tally.request_time + tally.whole_time for code, tally in tallies.items()}
        first = {code: tally.time_to_first_token + tally.whole_time for code, tally in tallies.items()}
        wait = {code: tally.queue_wait for code, tally in tallies.items()}
        for name, text, histograms in (
            ("kuwa_request_seconds", "From a request's head to its end.", whole),
            ("kuwa_time_to_first_token_seconds", "From a request's head to its first content.", first),
            ("kuwa_queue_wait_seconds", "Time spent waiting for a slot.", wait),
        ):
            yield histogram_family(name, text, "access_code", histograms)

    def _gauges(self) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily

        alive = [replica for replica in self._registry.all_replicas() if replica.alive]
        depth = GaugeMetricFamily("kuwa_queue_depth", "Requests that wait for a slot.", labels=("access_code",))
        for code in sorted({code for replica in alive for code in replica.access_codes}):
            depth.add_metric((code,), self._dispatcher.waiting(code)[0])
        slots = GaugeMetricFamily(
            "kuwa_slots", "Slots of the live replicas; those without a limit have no free ones.", labels=("state",)
        )
        reserved = len(self._dispatcher.reservations)
        held = sum(replica.running for replica in alive)
        slots.add_metric(("used",), max(0, held - reserved))
        slots.add_metric(("reserved",), reserved)
        slots.add_metric(("free",), sum(max(0, r.slots - r.running) for r in alive if r.slots < UNLIMITED))
        replicas = GaugeMetricFamily("kuwa_replicas", "Executors known, by state.", labels=("state",))
        states = Counter(replica.overall for replica in self._registry.all_replicas())
        for state in STATES:
            replicas.add_metric((state,), states[state])
        tasks = GaugeMetricFamily("kuwa_tasks", "Tasks of the kernel's event loop, the one that counts included.")
        tasks.add_metric((), _tasks())
        yield from (depth, slots, replicas, tasks)


def _tasks() -> int:
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:  # no event loop runs here
        return 0


def exposition_of(collector: Collector) -> Exposition:
    """The body of /metrics: the kernel's own numbers and those of its process."""
    from prometheus_client import ProcessCollector

    return Exposition(collector, ProcessCollector(registry=None))
