"""The `paged` engine: transformers' own continuous batching manager, with our drawing of tokens.

The manager keeps keys and values in pages and attends with flash attention where that is installed; on a GPU this is
what pays. It would draw tokens by parameters that hold for all requests alike; in the place of its logits processors
stands a `_Drawer` that gives the logits of each step to `sampler` and leaves to the manager one possible token a row.
So every request is drawn exactly by its own parameters, as by the other engines, and what is drawn is known here
before the manager knows it: tokens and ends are reported from here, the manager is told to forget what has ended.

Its thread dies of whatever it does not expect. Then the requests under way get their error, and the next request
makes a new manager.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kuwa.engine.loop import PATIENT_TOKENS, Door, News, Stats, said_of
from kuwa.engine.request import End, Generation
from kuwa.engine.sampler import draw
from kuwa.engine.scheduler import Limits, Run, end_of
from kuwa.wire.errors import EngineLost, Unsupported

log = logging.getLogger(__name__)

PAGE_TOKENS = 32
MOST_DEATHS = 3
"""Managers that may die one after the other without a token between."""
END_S = 30.0


class PagedBackend:
    """A model that the manager serves, sized by `limits`."""

    name = "paged"

    def __init__(self, model: Any, limits: Limits) -> None:
        self.model = model
        self.limits = limits

    @property
    def bytes_per_token(self) -> int:
        """What one position takes in all layers."""
        config = self.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return 2 * config.num_hidden_layers * heads * width * self.model.dtype.itemsize

    def resized(self, limits: Limits) -> None:
        self.limits = limits


class PagedEngine(Door):
    def __init__(
        self,
        backend: PagedBackend,
        clock: Callable[[], float] = time.monotonic,
        on_trouble: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(on_trouble)
        self.backend = backend
        self._clock = clock
        self._lock = threading.Lock()
        self._runs: dict[int, Run] = {}
        self._manager: Any = None
        self._deaths = 0
        self._heard = 0.0  # when the manager last gave a sign of life, or got its first request
        self._steps = self._generated = 0

    # ---- the door ------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()

    async def close(self) -> None:
        self._closing = True
        if self._manager is not None:
            await asyncio.to_thread(self._manager.stop, block=True, timeout=END_S, hard_stop=True)
        self._fail_all(EngineLost("The engine has been stopped."))

    @property
    def steps(self) -> int:
        return self._steps

    def stats(self) -> Stats:
        runs = list(self._runs.values())
        reading = sum(not run.generated for run in runs)
        return Stats(
            running=len(runs) - reading,
            waiting=reading,
            slots=self.backend.limits.slots,
            owned=len(runs),
            tokens=sum(len(run.ids) for run in runs),
            steps=self._steps,
            computed=0,
            generated=self._generated,
            cached=0,
        )

    def overdue(self, patience_s: float) -> bool:
        allowed = patience_s * (1 + self.backend.limits.step_tokens / PATIENT_TOKENS)
        return bool(self._runs) and self._clock() - self._heard > allowed

    def _send(self, key: int, generation: Generation | None) -> None:
        if generation is None:
            self._forget(key)
            return
        if generation.inputs is not None:
            self._deliver([(key, (Unsupported("--engine paged reads text alone; start with --engine auto."),))])
            return
        run = Run(key, generation, [*generation.prompt, *generation.done])
        with self._lock:
            if not self._runs:
                self._heard = self._clock()
            self._runs[key] = run
        if not self._added(run):
            self._died(None)

    def _added(self, run: Run) -> bool:
        manager = self._living()
        if manager is None:
            return False
        manager.register_result_handler(str(run.key), partial(self._result, run.key, manager))
        most = run.generation.max_tokens - run.generated
        return manager.add_request(run.ids.copy(), request_id=str(run.key), max_new_tokens=most) is not None

    def _forget(self, key: int) -> None:
        """The request has ended or was cancelled: the manager frees its pages at its next step."""
        with self._lock:
            known = self._runs.pop(key, None)
        manager = self._manager
        if known is not None and manager is not None:
            manager.cancel_request(str(key))
            with manager.output_router._lock:
                manager.output_router.result_handlers.pop(str(key), None)

    # ---- the manager ---------------------------------------------------------------------------------------

    def _living(self) -> Any:
        """The manager, a new one where the last one is dead; None where none comes to life."""
        if self._manager is None or not self._manager.is_running():
            from transformers import ContinuousBatchingConfig, GenerationConfig

            limits = self.backend.limits
            pages = -(-limits.length // PAGE_TOKENS)
            config = ContinuousBatchingConfig(
                page_size=PAGE_TOKENS,
                num_blocks=limits.slots * pages,
                max_batch_tokens=limits.step_tokens,
                max_requests_per_batch=limits.slots,
                # Tokens are drawn in Python behind each step: nothing to capture, nothing to compute ahead.
                use_cuda_graph=False,
                use_async_batching=False,
            )
            generation = GenerationConfig(do_sample=False, eos_token_id=-1, max_new_tokens=limits.length)
            manager: Any = self.backend.model.init_continuous_batching(
                generation_config=generation, continuous_batching_config=config
            )
            manager.logit_processor = _Drawer(self)
            manager.start()
            self._manager = manager
        return self._manager

    def _result(self, key: int, manager: Any, result: Any) -> None:
        """The manager has finished a request. Only errors are news: tokens were reported as they were drawn."""
        if result.error and key in self._runs and manager is self._manager:
            self._died(RuntimeError(str(result.error)))

    def _died(self, error: Exception | None) -> None:
        """On the event loop: the manager is dead or of no use. Its requests are told; the next one makes a new one."""
        with self._lock:
            lost = list(self._runs)
            self._runs.clear()
        manager, self._manager = self._manager, None
        if manager is not None:
            # The thread ends by itself; the model gets its own attention back from `stop` alone.
            manager.stop(block=False, hard_stop=True)
        self._deaths += 1
        if self._deaths >= MOST_DEATHS:
            self._trouble = "The engine died several times in a row; the executor's log says why. Restart it."
        failure = said_of(error or RuntimeError("the manager takes no requests"))
        log.error("transformers' batching manager died, %d requests with it: %s", len(lost), error)
        self._deliver([(key, (failure,)) for key in lost])
        if self._trouble:
            self._tell_trouble()

    # ---- on the manager's thread ---------------------------------------------------------------------------

    def _drop_results(self) -> None:
        """What the manager says of requests that have ended here before: nobody asks for it."""
        manager = self._manager
        while manager is not None and not manager.output_router.output_queue.empty():
            manager.output_router.output_queue.get_nowait()

    def draw(self, keys: list[int], logits: Tensor) -> list[int]:
        """The next token of each request; -1 for those that have ended or were cancelled."""
        with self._lock:
            rows = [row for row, key in enumerate(keys) if key in self._runs]
            runs = [self._runs[keys[row]] for row in rows]
        tokens = [-1] * len(keys)
        news: list[tuple[int, tuple[News, ...]]] = []
        for row, run, token in zip(rows, runs, draw(logits[rows], runs) if rows else (), strict=True):
            tokens[row] = token.id
            run.ids.append(token.id)
            reason = end_of(run, self.backend.limits.length)
            news.append((run.key, (token,) if reason is None else (token, End(reason))))
            if reason is not None:
                self._forget(run.key)
        self._drop_results()
        self._steps += 1
        self._generated += len(runs)
        self._deaths = 0
        self._heard = self._clock()
        self._report(news)
        return tokens


class _Drawer:
    """Stands where the manager has its logits processors. It calls `prepare_tensor_args` before each step with the
    requests in it, and the drawer itself with the logits of those that draw, in their order."""

    do_processing = True
    tensors_required = 0

    def __init__(self, engine: PagedEngine) -> None:
        self._engine = engine
        self._keys: list[int] = []

    def check_kwargs(self, kwargs: dict[str, Any]) -> None:
        """Requests bring none."""

    def fill_defaults(self, tensor: Tensor) -> None:
        """There are none."""

    def prepare_tensor_args(self, requests_in_batch: list[Any], arg_storage: Tensor) -> Tensor:
        self._keys = [int(request.state.request_id) for request in requests_in_batch if request.has_new_token]
        return arg_storage

    def __call__(self, ids: Tensor, scores: Tensor, arguments: Tensor) -> Tensor:
        tokens = self._engine.draw(self._keys, scores[: len(self._keys)])
        only = torch.full_like(scores, float("-inf"))
        for row, token in enumerate(tokens):
            only[row, max(token, 0)] = 0.0
        return only
