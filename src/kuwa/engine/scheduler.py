"""Decides what the engine computes next: which requests hold a slot of the key-value cache, and how many of their
tokens go into the next step. A synchronous state machine without torch, clock or I/O; `loop` drives it.

A slot holds the keys and values of one sequence. They stay after the sequence has ended: a later prompt that begins
with the same tokens goes on from there. A step computes one token for every request that is generating, and fills
what is left of its token budget with pieces of the prompts that are being read, oldest first.

Invariants (checked by the tests after every transition): a slot belongs to at most one request; what a slot is said
to hold has been computed; a request that was cancelled holds nothing from the next `plan` on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from kuwa.engine.request import End, EndReason, Generation

LEAST_COPIED = 16
"""Shorter common beginnings are computed again instead of being copied from another slot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`slots` sequences at once, each of at most `length` tokens; at most `step_tokens` are computed in one step.

    `share_prefixes`: whether what a slot holds can be used by another request. Without `chunks` a prompt is read in
    one step, however long it is: for models whose state cannot be continued by more than one token.
    """

    slots: int
    length: int
    step_tokens: int
    share_prefixes: bool = True
    chunks: bool = True


@dataclass(slots=True, eq=False)
class Run:
    """A request under way. `ids` are the prompt and what was generated; `computed` of them are in the slot."""

    key: int
    generation: Generation
    ids: list[int]
    slot: int = -1
    computed: int = 0
    cached: int = 0

    @property
    def generated(self) -> int:
        return len(self.ids) - len(self.generation.prompt)

    @property
    def pending(self) -> int:
        """How many tokens must be computed before the next one can be drawn; 1 while generating."""
        return len(self.ids) - self.computed


@dataclass(frozen=True, slots=True)
class Segment:
    """`ids` of one sequence to be computed at positions `start`, … of its slot. With `draws` they are its last
    ones: the logits behind them give its next token."""

    run: Run
    start: int
    ids: Sequence[int]
    draws: bool

    @property
    def slot(self) -> int:
        return self.run.slot

    @property
    def end(self) -> int:
        return self.start + len(self.ids)


@dataclass(frozen=True, slots=True)
class Copy:
    """The first `length` positions of `source` are to be copied to the slot `target`."""

    source: int
    target: int
    length: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One step. The copies come first, then the slots in `cleared` are emptied, then the segments are computed."""

    segments: tuple[Segment, ...]
    copies: tuple[Copy, ...] = ()
    cleared: tuple[int, ...] = ()

    @property
    def drawing(self) -> Iterator[Segment]:
        return (segment for segment in self.segments if segment.draws)


@dataclass(slots=True)
class _Slot:
    owner: Run | None = None
    held: list[int] = field(default_factory=list[int])
    used: int = 0  # the step at which it was given back; 0: never


class Scheduler:
    """The requests waiting and under way, and the slots."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._waiting: OrderedDict[int, Run] = OrderedDict()
        self._running: OrderedDict[int, Run] = OrderedDict()
        self._slots = [_Slot() for _ in range(limits.slots)]
        self._to_clear: list[int] = []
        self._steps = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._running

    @property
    def runs(self) -> Iterator[Run]:
        """Those that hold a slot, then those that wait, each in the order in which they came."""
        yield from self._running.values()
        yield from self._waiting.values()

    @property
    def owned(self) -> int:
        """How many slots belong to a request."""
        return sum(slot.owner is not None for slot in self._slots)

    @property
    def tokens(self) -> int:
        """How many tokens the requests under way hold in their slots."""
        return sum(run.computed for run in self._running.values())

    def add(self, key: int, generation: Generation) -> None:
        """Queue a request under a key that no other one has."""
        self._waiting[key] = Run(key, generation, [*generation.prompt, *generation.done])

    def cancel(self, key: int) -> bool:
        """Forget the request; its slot is free at once. False where there is none of that key."""
        if self._waiting.pop(key, None) is not None:
            return True
        run = self._running.pop(key, None)
        if run is None:
            return False
        self._give_back(run)
        return True

    def clear(self) -> None:
        """Forget every request and what every slot holds: the cache behind them is gone."""
        self._waiting.clear()
        self._running.clear()
        self._to_clear.clear()
        self._slots = [_Slot() for _ in self._slots]

    # ---- a step --------------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """What to compute now; nothing only while idle. `advance` must be told what came of it."""
        self._steps += 1
        copies = self._admit()
        cleared, self._to_clear = tuple(self._to_clear), []
        generating = [s for s in self._running.values() if s.pending == 1]
        segments = [Segment(s, s.computed, s.ids[s.computed :], draws=True) for s in generating]
        budget = self.limits.step_tokens - len(segments)
        for run in self._running.values():
            if budget <= 0:
                break
            if run.pending > 1:
                count = min(run.pending, budget) if self.limits.chunks else run.pending
                budget -= count
                end = run.computed + count
                piece = run.ids[run.computed : end]
                segments.append(Segment(run, run.computed, piece, draws=end == len(run.ids)))
        return Plan(tuple(segments), tuple(copies), cleared)

    def advance(self, plan: Plan, drawn: Sequence[int]) -> list[tuple[Run, End | None]]:
        """The step is done, and nothing was cancelled since its plan; `drawn` are the tokens of the segments that
        draw, in their order. Gives the run of each, with its end where this token was its last."""
        for segment in plan.segments:
            segment.run.computed = segment.end
            self._slots[segment.slot].held.extend(segment.ids)
        news: list[tuple[Run, End | None]] = []
        for segment, token in zip(plan.drawing, drawn, strict=True):
            run = segment.run
            run.ids.append(token)
            reason = end_of(run, self.limits.length)
            news.append((run, None if reason is None else End(reason, run.cached)))
            if reason is not None:
                del self._running[run.key]
                self._give_back(run)
        return news

    # ---- slots ---------------------------------------------------------------------------------------------

    def _admit(self) -> list[Copy]:
        copies: list[Copy] = []
        while self._waiting and any(slot.owner is None for slot in self._slots):
            key, run = self._waiting.popitem(last=False)
            copy = self._place(run)
            if copy is not None:
                copies.append(copy)
            self._running[key] = run
        return copies

    def _place(self, run: Run) -> Copy | None:
        """Give the run the slot from which least must be computed; the copy that this takes, if any."""
        free = [index for index, slot in enumerate(self._slots) if slot.owner is None]
        coldest = min(free, key=lambda index: (self._slots[index].used, index))
        shared = [0] * len(self._slots)
        if self.limits.share_prefixes and run.generation.inputs is None:
            # The last token is always computed: its logits are what is wanted.
            wanted = run.ids[:-1]
            shared = [common_beginning(slot.held, wanted) for slot in self._slots]
        warmest = max(free, key=lambda index: (shared[index], -index))
        source = max(range(len(self._slots)), key=lambda index: (shared[index], -index))
        if shared[source] < shared[warmest] + LEAST_COPIED:
            source = warmest
        reused = shared[warmest] > 0 and shared[warmest] * 2 >= len(self._slots[warmest].held)
        if source == warmest and (reused or warmest == coldest):
            self._take(warmest, run, shared[warmest])
            return None
        # What the source holds beyond the common beginning is worth keeping, or it belongs to somebody.
        kept = shared[source] if shared[source] >= LEAST_COPIED else 0
        self._take(coldest, run, kept)
        return Copy(source, coldest, kept) if kept else None

    def _take(self, index: int, run: Run, kept: int) -> None:
        slot = self._slots[index]
        slot.owner = run
        slot.held = run.ids[:kept]
        self._to_clear = [other for other in self._to_clear if other != index]
        if kept == 0:
            self._to_clear.append(index)
        run.slot = index
        run.computed = run.cached = kept

    def _give_back(self, run: Run) -> None:
        slot = self._slots[run.slot]
        slot.owner = None
        slot.used = self._steps
        if not self.limits.share_prefixes or run.generation.inputs is not None:
            slot.held = []
            self._to_clear.append(run.slot)


def end_of(run: Run, length: int) -> EndReason | None:
    """Why the last token of the run was its last one; None where it goes on. `length` is the most tokens of all."""
    generation = run.generation
    if run.ids[-1] in generation.stops or (generation.constraint is not None and generation.constraint.ended()):
        return "stop"
    full = run.generated >= generation.max_tokens or len(run.ids) >= length
    return "length" if full else None


def common_beginning(a: list[int], b: list[int]) -> int:
    """How many tokens both begin with. Compares slices, so long prompts cost C time."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
