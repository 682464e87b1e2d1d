"""The executor's metrics: the names that Kuwa's executors always had, and those that vLLM's dashboards know.

`server` reports each request here once; made when serving begins, since it imports prometheus_client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from kuwa.wire.lease import MAX_TOKENS
from kuwa.wire.metrics import Exposition, Histogram, histogram_family

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)
_CHARACTERS = (10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000)
_SPEED = (1, 3, 10, 30, 100, 300, 1000, 3000, 10000)


class Figures:
    """All metrics of one executor. Times are in seconds. Used from the event loop alone, so nothing is locked."""

    def __init__(self, executor_name: str, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        self._name = executor_name
        self._running = running
        self._waiting = waiting
        self._failed = self._success = self._prompt = self._generated = 0
        self._seconds, self._first = Histogram(_SECONDS), Histogram(_SECONDS)
        self._length, self._speed = Histogram(_CHARACTERS), Histogram(_SPEED)
        self._exposition = Exposition(self)

    def answered(
        self, *, seconds: float, first_s: float, characters: int, prompt_tokens: int, completion_tokens: int
    ) -> None:
        """A request ended well."""
        self._seconds.observe(seconds)
        self._first.observe(first_s)
        self._length.observe(characters)
        if seconds > 0:
            self._speed.observe(characters / seconds)
        if 0 <= prompt_tokens <= MAX_TOKENS and 0 <= completion_tokens <= MAX_TOKENS:
            self._prompt += prompt_tokens
            self._generated += completion_tokens
        self._success += 1

    def failed(self) -> None:
        self._failed += 1

    def collect(self) -> Iterator[Metric]:
        """The families that `/metrics` shows, as they stand now."""
        own = "executor_name"
        busy = self._running() > 0
        state = GaugeMetricFamily(
            "executor_framework_state",
            "Whether requests are being computed.",
            labels=[own, "executor_framework_state"],
        )
        for name, holds in (("idle", not busy), ("busy", busy)):
            state.add_metric([self._name, name], float(holds))
        yield state
        yield self._counter("executor_framework_failed", "Requests that failed.", own, self._failed)
        yield histogram_family(
            "executor_framework_process_time_seconds", "Time to compute a request.", own, {self._name: self._seconds}
        )
        yield histogram_family(
            "executor_framework_output_length_charters", "Characters of an answer.", own, {self._name: self._length}
        )
        yield histogram_family(
            "executor_framework_output_throughput_charters_per_second",
            "Characters per second.",
            own,
            {self._name: self._speed},
        )
        yield from self._for_vllm_dashboards()

    def _for_vllm_dashboards(self) -> Iterator[Metric]:
        own = "model_name"
        for name, text, value in (
            ("vllm:num_requests_running", "Requests being computed.", self._running()),
            ("vllm:num_requests_waiting", "Requests waiting for a slot.", self._waiting()),
        ):
            gauge = GaugeMetricFamily(name, text, labels=[own])
            gauge.add_metric([self._name], value)
            yield gauge
        yield histogram_family(
            "vllm:time_to_first_token_seconds", "Time to the first piece of an answer.", own, {self._name: self._first}
        )
        yield histogram_family(
            "vllm:e2e_request_latency_seconds", "Time of a request.", own, {self._name: self._seconds}
        )
        yield self._counter("vllm:prompt_tokens", "Prompt tokens.", own, self._prompt)
        yield self._counter("vllm:generation_tokens", "Generated tokens.", own, self._generated)
        yield self._counter("vllm:request_success", "Requests that ended well.", own, self._success)

    def _counter(self, name: str, text: str, label: str, value: int) -> CounterMetricFamily:
        family = CounterMetricFamily(name, text, labels=[label])
        family.add_metric([self._name], value)
        return family

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """What `/metrics` answers with, in the format that the scraper's Accept header asks for; its content type."""
        return self._exposition.render(accept)
