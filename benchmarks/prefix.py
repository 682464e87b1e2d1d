"""Simulates replicas with finite KV caches and replays conversations over them, one policy after the other.

`python benchmarks/prefix.py` prints a table: how much of the prompts was in a cache, how long the first token took,
and how evenly the work was spread, by round robin, by the least load, and by the policies `prefix` and `session`.
The choices are made by the kernel's own dispatcher, with its slots and its queue; only the replicas are simulated.

A replica's cache is made of blocks that are thrown away least recently used first, the end of a conversation before
its beginning, as engines do. Time to first token is the wait for a slot, the wait for the prompts before it on the
same replica, and the part of the prompt that is in no cache, at a fixed rate.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import statistics
from collections import OrderedDict
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from report import table

from kuwa.kernel.dispatcher import Dispatcher
from kuwa.kernel.policy import LeastLoaded, PolicyName, Trail
from kuwa.kernel.queue import Ticket
from kuwa.kernel.registry import Registry, Replica
from kuwa.wire.lease import Dialects, Registration

BLOCK = 32  # tokens
PREFILL_PER_S = 4000.0  # tokens that a replica computes in a second
DECODE_S = 0.02  # per token of an answer
SLOTS = 16  # of each replica
SYSTEM_PROMPTS = (300, 800, 1500)  # tokens; each conversation begins with one of them
CONVERSATIONS_A_REPLICA = 100
THINK_S = 20.0  # mean time between an answer and the next question


@dataclass(slots=True)
class Conversation:
    number: int
    system: int
    starts_at: float
    turns: list[tuple[int, int]]  # tokens of each question and of its answer

    def blocks(self, turn: int) -> list[tuple[int, int]]:
        """The blocks of the prompt of a turn: those of the system prompt are the same in other conversations."""
        shared = SYSTEM_PROMPTS[self.system] // BLOCK
        own = sum(question + answer for question, answer in self.turns[:turn]) + self.turns[turn][0]
        return [(-1 - self.system, n) for n in range(shared)] + [(self.number, n) for n in range(own // BLOCK)]

    def tokens(self) -> int:
        return sum(question + answer for question, answer in self.turns)

    def trail(self, turn: int) -> Trail:
        marks = [(-1 - self.system, 0), *((self.number, n) for n in range(2 * turn + 1))]
        return tuple(hash(mark) for mark in marks)


@dataclass(slots=True)
class Cache:
    """The blocks that one replica keeps, least recently used first."""

    capacity: int
    kept: OrderedDict[tuple[int, int], None] = field(default_factory=OrderedDict[tuple[int, int], None])

    def use(self, blocks: Sequence[tuple[int, int]]) -> int:
        """Take the blocks of a prompt in; returns how many at its beginning were there."""
        found = next((n for n, block in enumerate(blocks) if block not in self.kept), len(blocks))
        for block in reversed(blocks):
            self.kept[block] = None
            self.kept.move_to_end(block)
        while len(self.kept) > self.capacity:
            self.kept.popitem(last=False)
        return found


@dataclass(slots=True)
class Outcome:
    prompt_blocks: int = 0
    cached_blocks: int = 0
    first_token_s: list[float] = field(default_factory=list[float])
    work_s: dict[Replica, float] = field(default_factory=dict[Replica, float])  # slots held, in seconds
    requests: dict[Replica, int] = field(default_factory=dict[Replica, int])

    def imbalance(self, of: dict[Replica, float] | dict[Replica, int]) -> float:
        return max(of.values()) / statistics.fmean(of.values())


class House:
    """Registered replicas, their simulated caches, and one way of choosing among them."""

    def __init__(self, count: int, cache_tokens: int, policy: PolicyName) -> None:
        registry = Registry()
        self.dispatcher = Dispatcher(registry, policies={"m": policy})
        for number in range(count):
            address = Dialects(openai=f"http://127.0.0.1:{4000 + number}/v1")
            registry.register(
                Registration(
                    executor_id=str(number), incarnation=1, access_codes=["m"], dialects=address, concurrency=SLOTS
                ),
                0.0,
            )
        self.dispatcher.changed(registry.take_changes(), 0.0)
        self.replicas = list(registry.all_replicas())
        self.caches = {replica: Cache(cache_tokens // count // BLOCK) for replica in self.replicas}
        self.prefilled_until = dict.fromkeys(self.replicas, 0.0)


class RoundRobin(LeastLoaded):
    """In place of the kernel's policy: each in its turn, however much it has to do."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        super().__init__()
        self._order = itertools.cycle(replicas)
        self._count = len(replicas)

    def choose(self, excluded: AbstractSet[str], trail: Trail = ()) -> Replica | None:
        return next((one for one in itertools.islice(self._order, self._count) if one.running < one.slots), None)


def converse(replicas: int, seed: int) -> list[Conversation]:
    """Conversations of 2 to 16 turns that begin over a time in which about half of them are under way at once."""
    draw = random.Random(seed)  # noqa: S311 - a simulation that anyone can repeat
    count = CONVERSATIONS_A_REPLICA * replicas
    made: list[Conversation] = []
    for number in range(count):
        turns = [(draw.randint(20, 400), draw.randint(50, 500)) for _ in range(draw.randint(2, 16))]
        made.append(Conversation(number, draw.randrange(len(SYSTEM_PROMPTS)), draw.uniform(0, 500), turns))
    return made


def replay(conversations: Sequence[Conversation], house: House, by_session: bool, seed: int) -> Outcome:
    """Ask every turn of every conversation, each some time after the last one's answer."""
    draw = random.Random(seed)  # noqa: S311 - a simulation that anyone can repeat
    outcome = Outcome(work_s=dict.fromkeys(house.replicas, 0.0), requests=dict.fromkeys(house.replicas, 0))
    events: list[tuple[float, int, Callable[[float], None]]] = []
    order = itertools.count()
    waiting: dict[Ticket, tuple[Conversation, int, float]] = {}

    def at(moment: float, happens: Callable[[float], None]) -> None:
        heapq.heappush(events, (moment, next(order), happens))

    def ask(one: Conversation, turn: int, now: float) -> None:
        trail = (hash(("session", one.number)),) if by_session else one.trail(turn)
        ticket = Ticket("m", str(one.number), trail=trail)
        waiting[ticket] = (one, turn, now)
        replica = house.dispatcher.acquire(ticket, now)
        if replica is not None:
            begin(ticket, replica, now)

    def begin(ticket: Ticket, replica: Replica, granted_at: float) -> None:
        one, turn, asked_at = waiting.pop(ticket)
        blocks = one.blocks(turn)
        cached = house.caches[replica].use(blocks)
        computed_from = max(granted_at, house.prefilled_until[replica])
        first_token_at = computed_from + (len(blocks) - cached) * BLOCK / PREFILL_PER_S
        house.prefilled_until[replica] = first_token_at
        outcome.prompt_blocks += len(blocks)
        outcome.cached_blocks += cached
        outcome.first_token_s.append(first_token_at - asked_at)
        outcome.requests[replica] += 1
        ends_at = first_token_at + one.turns[turn][1] * DECODE_S
        outcome.work_s[replica] += ends_at - granted_at
        at(ends_at, lambda moment: end(one, turn, ticket, moment))

    def end(one: Conversation, turn: int, ticket: Ticket, now: float) -> None:
        for granted in house.dispatcher.release(ticket, now):
            if granted.replica is not None:
                begin(granted, granted.replica, now)
        if turn + 1 < len(one.turns):
            at(now + draw.expovariate(1 / THINK_S), lambda later: ask(one, turn + 1, later))

    for one in conversations:
        at(one.starts_at, lambda now, one=one: ask(one, 0, now))
    while events:
        moment, _, happens = heapq.heappop(events)
        happens(moment)
    return outcome


def run(replicas: int, share: float, way: str, seed: int) -> Outcome:
    conversations = converse(replicas, seed)
    tokens = int(share * sum(one.tokens() for one in conversations))
    policy: PolicyName = "session" if way == "session" else "prefix" if way == "prefix" else "least_loaded"
    house = House(replicas, tokens, policy)
    if way == "round robin":
        # The kernel has no such policy, and no door for one: nobody else should put one in.
        house.dispatcher._pools["m"].policy = RoundRobin(house.replicas)  # pyright: ignore[reportPrivateUsage] - see above
    return replay(conversations, house, way == "session", seed)


WAYS = ("round robin", "least_loaded", "prefix", "session")


def main() -> None:
    parser = argparse.ArgumentParser(description="How policies use the caches of replicas (a simulation).")
    parser.add_argument("--replicas", type=int, action="append", help="how many (repeat it; default: 4 and 8)")
    parser.add_argument("--share", type=float, action="append", help="of the tokens that all caches hold together")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rows: list[tuple[str, ...]] = []
    for count, share in itertools.product(options.replicas or (4, 8), options.share or (0.25, 0.5)):
        first: Outcome | None = None
        for way in WAYS:
            outcome = run(count, share, way, options.seed)
            first = first or outcome
            ordered = sorted(outcome.first_token_s)
            rows.append(
                (
                    str(count),
                    f"{share:.0%}",
                    way,
                    f"{outcome.cached_blocks / outcome.prompt_blocks:.1%}",
                    f"{outcome.cached_blocks / first.cached_blocks:.2f}",
                    f"{statistics.fmean(ordered) * 1000:.0f}",
                    f"{ordered[len(ordered) // 2] * 1000:.0f}",
                    f"{ordered[int(len(ordered) * 0.99)] * 1000:.0f}",
                    f"{outcome.imbalance(outcome.work_s):.2f}",
                    f"{outcome.imbalance(outcome.requests):.2f}",
                )
            )
    head = (
        "replicas", "caches hold", "policy", "cached", "× round robin", "TTFT ms mean", "p50", "p99",
        "worst load / mean", "worst requests / mean",
    )  # fmt: skip
    print(table(head, rows))


if __name__ == "__main__":
    main()
