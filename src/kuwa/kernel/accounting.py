"""One record for each request, made once when it ends; metrics are written from it, and usage will be."""

from __future__ import annotations

import msgspec

from kuwa.kernel.metrics import UNKNOWN, Metrics, Tally
from kuwa.wire.lease import EndedRequest
from kuwa.wire.openai import Usage

MAX_PENDING = 10_000


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """How one request ended. Times are in seconds.

    `label` is `ok`, `cancelled`, or the code of the error that it ended with. `first_s` is the time to the first
    content, negative where none came; `usage` what the replica counted, None where it has not said. `served`: it was
    for a model that is or was served, whether or not a replica got it; `sent`: a replica got it.
    """

    request_id: str
    principal: str
    access_code: str
    label: str
    total_s: float
    first_s: float
    queue_s: float
    whole: bool
    served: bool
    sent: bool
    attempts: int
    resumes: int
    usage: Usage | None


class Ledger:
    """Where outcomes are written. What a cut request cost may be reported by its executor afterwards."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._pending_usage: dict[str, Tally] = {}

    def settle(self, outcome: Outcome) -> None:
        """Write one request's record; called once for each."""
        tally = self._metrics.of(outcome.access_code if outcome.served else UNKNOWN)
        ok = outcome.label == "ok"
        if ok:
            tally.outcomes["ok"] += 1
        else:
            tally.failed(outcome.label)
        if ok and outcome.whole:
            tally.whole_time.observe(outcome.first_s)
        else:
            tally.request_time.observe(outcome.total_s)
            if outcome.first_s >= 0 and not outcome.resumes:
                tally.time_to_first_token.observe(outcome.first_s)
        if not outcome.sent:
            return
        if outcome.queue_s or not ok:
            tally.queue_wait.observe(outcome.queue_s)
        else:
            tally.queue_wait.zeros += 1
        if outcome.attempts > 1:
            tally.retries += outcome.attempts - 1
        if outcome.resumes:
            ended = {"ok": "resumed", "cancelled": "cancelled"}
            self._metrics.resumes[ended.get(outcome.label, "failed")] += 1
        usage = outcome.usage
        if not ok or usage is None:
            self._await_usage(outcome.request_id, tally)
            return
        tally.prompt_tokens += usage.prompt_tokens
        tally.completion_tokens += usage.completion_tokens
        tally.cached_tokens += usage.cached

    def not_resumable(self) -> None:
        """A stream lost its replica and cannot be resumed."""
        self._metrics.resumes["impossible"] += 1

    def _await_usage(self, request_id: str, tally: Tally) -> None:
        self._pending_usage[request_id] = tally
        if len(self._pending_usage) > MAX_PENDING:
            del self._pending_usage[next(iter(self._pending_usage))]

    def late_usage(self, ended: list[EndedRequest]) -> None:
        """Count what cut requests cost, as their executors report it afterwards; each once."""
        for one in ended:
            tally = self._pending_usage.pop(one.request_id, None)
            if tally is not None:
                tally.add_tokens(one.prompt_tokens, one.completion_tokens)
