"""The executor's metrics: the names that Kuwa's executors always had, and those that vLLM's dashboards know.

`server` reports each request here once; made when serving begins, since it imports prometheus_client.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Enum, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, float("inf"))
_CHARACTERS = (10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000, float("inf"))
_SPEED = (1, 3, 10, 30, 100, 300, 1000, 3000, 10000, float("inf"))


class Figures:
    """All metrics of one executor in a registry of their own. Times are in seconds."""

    def __init__(self, executor_name: str, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        self._running = running
        labels, own = ["executor_name"], {"executor_name": executor_name}

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            made = Histogram(f"executor_framework_{name}", text, labels, registry=registry, buckets=buckets)
            return made.labels(**own)

        self._state = Enum(
            "executor_framework_state",
            "Whether requests are being computed.",
            labels,
            registry=registry,
            states=["idle", "busy"],
        ).labels(**own)
        self._failed = Counter("executor_framework_failed", "Requests that failed.", labels, registry=registry).labels(
            **own
        )
        self._time = histogram("process_time_seconds", "Time to compute a request.", _SECONDS)
        self._length = histogram("output_length_charters", "Characters of an answer.", _CHARACTERS)
        self._speed = histogram("output_throughput_charters_per_second", "Characters per second.", _SPEED)
        self._add_vllm(executor_name, running, waiting)

    def _add_vllm(self, model: str, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        labels, own, registry = ["model_name"], {"model_name": model}, self._registry
        Gauge("vllm:num_requests_running", "Requests being computed.", labels, registry=registry).labels(
            **own
        ).set_function(running)
        Gauge("vllm:num_requests_waiting", "Requests waiting for a slot.", labels, registry=registry).labels(
            **own
        ).set_function(waiting)
        self._first = Histogram(
            "vllm:time_to_first_token_seconds",
            "Time to the first piece of an answer.",
            labels,
            registry=registry,
            buckets=_SECONDS,
        ).labels(**own)
        self._latency = Histogram(
            "vllm:e2e_request_latency_seconds", "Time of a request.", labels, registry=registry, buckets=_SECONDS
        ).labels(**own)
        self._prompt = Counter("vllm:prompt_tokens", "Prompt tokens.", labels, registry=registry).labels(**own)
        self._generated = Counter("vllm:generation_tokens", "Generated tokens.", labels, registry=registry).labels(
            **own
        )
        self._success = Counter("vllm:request_success", "Requests that ended well.", labels, registry=registry).labels(
            **own
        )

    def answered(
        self, *, seconds: float, first_s: float, characters: int, prompt_tokens: int, completion_tokens: int
    ) -> None:
        """A request ended well."""
        self._time.observe(seconds)
        self._length.observe(characters)
        if seconds > 0:
            self._speed.observe(characters / seconds)
        self._first.observe(first_s)
        self._latency.observe(seconds)
        self._prompt.inc(prompt_tokens)
        self._generated.inc(completion_tokens)
        self._success.inc()

    def failed(self) -> None:
        self._failed.inc()

    def exposition(self) -> bytes:
        """The text that `/metrics` answers with."""
        self._state.state("busy" if self._running() else "idle")
        return generate_latest(self._registry)
