"""The engine: a thread that repeats schedule, compute, draw, report; and the asynchronous door to it.

`Engine.generate` is called on an event loop, one iteration per request. The thread owns the scheduler and the backend;
what is asked of it waits in an inbox until the step under way is over, so a cancelled request is gone, its slot with
it, before the next step begins. Tokens go back to the event loop once per step, for all requests together.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from itertools import count

from kuwa.engine.backend import Backend
from kuwa.engine.request import Drawn, End, Generation
from kuwa.engine.scheduler import Plan, Run, Scheduler
from kuwa.wire.errors import EngineLost, KuwaError, QueueFull, UpstreamTimeout

log = logging.getLogger(__name__)

MOST_FAILURES = 3
"""Steps that fail one after the other before the engine is given up."""
PATIENT_TOKENS = 64
"""A step may take its request's patience once more for this many tokens that it computes."""

SIGN_S = 5.0
"""How long a request hears nothing of an engine that computes before it is given a sign of it."""

News = Drawn | End | KuwaError


class Working:
    """Nothing new of this request, and the engine computes: a long prompt is being read, or others are served."""


@dataclass(frozen=True, slots=True)
class Stats:
    """A glance at the engine. `tokens` are held for requests under way; `computed` and `generated` are totals."""

    running: int
    waiting: int
    slots: int
    owned: int
    tokens: int
    steps: int
    computed: int
    generated: int
    cached: int


class Engine:
    """One backend and the requests on it. Make it anywhere; call `generate` and `close` on an event loop."""

    def __init__(self, backend: Backend, clock: Callable[[], float] = time.monotonic) -> None:
        self.backend = backend
        self._clock = clock
        self._step_began = 0.0
        self._step_tokens = 0  # 0 between steps
        self._scheduler = Scheduler(backend.limits)
        self._streams: dict[int, _Stream] = {}
        self._keys = count(1)
        self._inbox: deque[tuple[int, Generation | None]] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._failures = 0
        self._trouble = ""
        self._steps = self._computed = self._generated = self._cached = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._work, name="kuwa-engine", daemon=True)

    # ---- the door, on the event loop -----------------------------------------------------------------------

    def start(self) -> None:
        """Begin to compute; to be called once, on the event loop that `generate` will run on."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        """End the thread after its step; requests under way get EngineLost."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)
        self._fail_all(EngineLost("The engine has been stopped."))

    @property
    def trouble(self) -> str:
        """Why nothing can be computed any more; empty while all is well."""
        return self._trouble

    @property
    def steps(self) -> int:
        """Steps done so far."""
        return self._steps

    def stats(self) -> Stats:
        scheduler = self._scheduler
        return Stats(
            running=scheduler.running,
            waiting=scheduler.waiting,
            slots=scheduler.limits.slots,
            owned=scheduler.owned,
            tokens=scheduler.tokens,
            steps=self._steps,
            computed=self._computed,
            generated=self._generated,
            cached=self._cached,
        )

    def overdue(self, patience_s: float) -> bool:
        """Whether the step under way takes too long for what it computes: the device hangs."""
        tokens = self._step_tokens
        allowed = patience_s * (1 + tokens / PATIENT_TOKENS)
        return tokens > 0 and self._clock() - self._step_began > allowed

    async def generate(self, generation: Generation, patience_s: float = 60.0) -> AsyncGenerator[Drawn | End | Working]:
        """The tokens of one request as they are drawn, then its End; Working where that takes long. Close the iterator
        to cancel the request.

        The request must fit: the prompt not empty, within the vocabulary, and shorter than the limit. Raises
        EngineLost where the engine dies, QueueFull where its memory does not suffice, UpstreamTimeout where a step
        takes longer than `patience_s` for every `PATIENT_TOKENS` tokens.
        """
        if self._trouble:
            raise EngineLost(self._trouble)
        key = next(self._keys)
        stream = self._streams[key] = _Stream()
        self._send(key, generation)
        ended = False
        try:
            while not ended:
                while not await stream.came(min(patience_s, SIGN_S)):
                    if self.overdue(patience_s):
                        raise UpstreamTimeout(f"The model has computed for over {patience_s:g} s without a token.")
                    yield Working()
                for news in stream.taken():
                    if isinstance(news, KuwaError):
                        ended = True
                        raise news
                    ended = isinstance(news, End)
                    yield news
        finally:
            del self._streams[key]
            if not ended:
                self._send(key, None)

    def _send(self, key: int, generation: Generation | None) -> None:
        """Tell the thread of a new request, or with None that a request is cancelled."""
        with self._wake:
            self._inbox.append((key, generation))
            self._wake.notify()

    def _deliver(self, batch: Sequence[tuple[int, tuple[News, ...]]]) -> None:
        for key, news in batch:
            stream = self._streams.get(key)
            if stream is not None:
                stream.put(news)

    def _fail_all(self, error: KuwaError) -> None:
        for stream in self._streams.values():
            stream.put((error,))

    # ---- the thread ----------------------------------------------------------------------------------------

    def _work(self) -> None:
        while self._take_messages():
            if self._scheduler.idle:
                continue
            try:
                self._step()
                self._failures = 0
            except Exception as error:  # noqa: BLE001 - a step may fail in any way; its requests are told
                self._recover(error)
            self._step_tokens = 0
            self._steps += 1

    def _take_messages(self) -> bool:
        """Wait until there is something to do, and hear what it is; False at the end."""
        with self._wake:
            while not (self._inbox or self._closing) and self._scheduler.idle:
                self._wake.wait()
            messages = list(self._inbox)
            self._inbox.clear()
        for key, generation in messages:
            if generation is None:
                self._scheduler.cancel(key)
            elif self._trouble:
                self._report([(key, (EngineLost(self._trouble),))])
            else:
                self._scheduler.add(key, generation)
        return not self._closing

    def _step(self) -> None:
        from kuwa.engine.sampler import draw

        plan = self._scheduler.plan()
        self._step_began = self._clock()
        self._step_tokens = sum(len(segment.ids) for segment in plan.segments)
        logits = self.backend.compute(plan)
        drawn = draw(logits, [segment.run for segment in plan.drawing])
        news = self._scheduler.advance(plan, [token.id for token in drawn])
        self._count(plan, drawn, news)
        self._report(
            [
                (run.key, (token,) if end is None else (token, end))
                for token, (run, end) in zip(drawn, news, strict=True)
            ]
        )

    def _count(self, plan: Plan, drawn: Sequence[Drawn], news: Sequence[tuple[Run, End | None]]) -> None:
        self._computed += sum(len(segment.ids) for segment in plan.segments)
        self._generated += len(drawn)
        self._cached += sum(end.cached for _, end in news if end is not None)

    def _recover(self, error: Exception) -> None:
        """The step failed: all requests on the backend get the error, and it begins anew with nothing held.

        Which keys and values were written cannot be known, so that none of them can be trusted.
        """
        self._failures += 1
        if out_of_memory(error):
            failure: KuwaError = QueueFull(
                "The model's memory did not suffice for the requests under way. Try again with a shorter prompt or "
                "later; whoever runs the executor can lower --concurrency or --max_batch_tokens."
            )
        else:
            failure = EngineLost("The engine failed at a step and began anew; the executor's log says why.")
        log.error("a step of the engine failed, %d requests with it", self._scheduler.running, exc_info=error)
        lost = [run.key for run in self._scheduler.runs]
        self._scheduler.clear()
        del error
        self.backend.reset()
        gc.collect()
        _empty_device_cache()
        if self._failures >= MOST_FAILURES:
            self._trouble = "The engine failed several times in a row; the executor's log says why. Restart it."
        self._report([(key, (failure,)) for key in lost])

    def _report(self, batch: Sequence[tuple[int, tuple[News, ...]]]) -> None:
        assert self._loop is not None  # noqa: S101 - start sets it before the thread begins
        try:
            self._loop.call_soon_threadsafe(self._deliver, batch)
        except RuntimeError:
            self._closing = True  # the event loop is closed: nobody listens any more


class _Stream:
    """What the engine has said of one request and nobody has heard yet."""

    def __init__(self) -> None:
        self._news: deque[News] = deque()
        self._some = asyncio.Event()

    def put(self, news: Sequence[News]) -> None:
        self._news.extend(news)
        self._some.set()

    async def came(self, timeout_s: float) -> bool:
        """Wait until there is something to hear, at most so long."""
        if not self._some.is_set():
            try:
                async with asyncio.timeout(timeout_s):
                    await self._some.wait()
            except TimeoutError:
                return False
        return True

    def taken(self) -> list[News]:
        self._some.clear()
        heard = list(self._news)
        self._news.clear()
        return heard


def out_of_memory(error: Exception) -> bool:
    """Whether the device, or torch on the CPU, had no memory left."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "not enough memory" in str(error)


def _empty_device_cache() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
