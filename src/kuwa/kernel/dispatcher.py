"""Slots and queues: which request runs where, which waits, and which is told that it cannot be served.

`kernel/chat` acquires a slot for each request and releases it; a slot is held by exactly one ticket, and a ticket
holds at most one slot. What cannot run now waits in the queue of its access code, bounded in count, bytes and age.
The registry says which replicas are alive, the policy chooses among those with a free slot. Nothing here does I/O
or calls back: each method returns the tickets that it settled, and its caller calls their `granted`.

A replica gets requests of an access code while its state is `ready` and its breaker for that code admits one: on trial
it is offered to one request at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice

from kuwa.kernel.policy import PolicyName
from kuwa.kernel.pool import NOTHING, Pool
from kuwa.kernel.queue import Ticket, Weights
from kuwa.kernel.registry import Registry
from kuwa.kernel.replica import UNLIMITED, Replica
from kuwa.kernel.reservations import Reservations
from kuwa.kernel.trail import of_session
from kuwa.wire.errors import KuwaError, ModelNotFound, NoReplica, QueueFull
from kuwa.wire.names import MAX_ACCESS_CODE

MAX_WAITING = 1024
MAX_WAITING_BYTES = 64 * 1024 * 1024
MAX_WAIT_S = 120.0
MAX_SEARCHED_CODES = 500
RETRY_SHARE = 0.2


@dataclass(slots=True, frozen=True)
class Limits:
    """The bounds of one access code's queue; `wait_s` is the longest that a ticket waits in it.

    One principal may fill half of it, so that there is room left for the others.
    """

    waiting: int = MAX_WAITING
    bytes: int = MAX_WAITING_BYTES
    wait_s: float = MAX_WAIT_S


def equal_weights(principal: str) -> float:
    """The same share for everyone."""
    return 1.0


class Dispatcher:
    """Grants slots, keeps the queues, and holds slots for the chats in `reservations`.

    Between calls it holds that no ticket waits while a ready replica that it may use has a free slot.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        weights: Weights = equal_weights,
        limits: Limits | None = None,
        policies: Mapping[str, PolicyName] | None = None,
    ) -> None:
        self._registry = registry
        self.policies = policies or {}
        self._weights = weights
        self._limits = limits or Limits()
        self._pools: dict[str, Pool] = {}
        self._pools_of: dict[Replica, tuple[Pool, ...]] = {}
        self.reservations = Reservations()
        self._turn = 0
        self._patient_until = 0.0

    def expect_replicas(self, until: float) -> None:
        """Executors are about to come back: until then, requests for models that nobody serves yet wait."""
        self._patient_until = until

    def acquire(self, ticket: Ticket, now: float) -> Replica | None:
        """A slot for the ticket, or None: it waits, and its `granted` will be called.

        Raises ModelNotFound for an access code that was never served, NoReplica where no replica may take it soon,
        QueueFull where too many wait.
        """
        pool = self._pools.get(ticket.access_code)
        if pool is None:
            if now >= self._patient_until:
                raise self._unserved(ticket.access_code)
            pool = self._pool(ticket.access_code)
        if ticket.excluded:
            pool.spend_retry()
        elif pool.retries < pool.reserve:
            pool.retries += RETRY_SHARE
        if ticket.key is not None:
            replica = self.reservations.claim(ticket, ticket.key)
            if replica is not None:
                return replica
        # Who waits in a line waits because no slot is free: then none is free for this one either.
        if not pool.queue.waiting:
            replica = pool.policy.choose(ticket.excluded, ticket.trail)
            if replica is not None:
                return self._grant(ticket, replica)
        if now >= self._patient_until and not pool.worth_waiting(ticket.excluded):
            raise self._no_replica(pool, ticket.excluded)
        if not ticket.excluded:
            self._refuse_overflow(pool, ticket)
        pool.queue.push(ticket, now)
        return None

    def release(self, ticket: Ticket, now: float) -> list[Ticket]:
        """Give the ticket's slot back, if it holds one. Returns the tickets that got a slot by it."""
        replica = ticket.replica
        if replica is None:
            return []
        ticket.replica = None
        if ticket.key is not None:
            self.reservations.released(ticket)
        replica.running -= 1
        if replica.breakers:
            self._end_trial(ticket, replica)
        pools = self._pools_of.get(replica, ())
        anyone = False
        for pool in pools:
            pool.policy.freed(replica)
            if pool.queue.waiting or pool.queue.returned:
                anyone = True
        return self._serve(pools) if anyone else []

    def cancel(self, ticket: Ticket, now: float) -> list[Ticket]:
        """The request is given up: take the ticket out of the queue, or give its slot back."""
        if ticket.queued:
            self._pools[ticket.access_code].queue.remove(ticket)
            return []
        return self.release(ticket, now)

    def changed(self, replicas: Iterable[Replica], now: float) -> list[Ticket]:
        """Take in what changed in the registry. Returns the tickets that got a slot or an error by it."""
        touched: dict[Pool, None] = {}
        for replica in replicas:
            for pool in self._place(replica):
                touched[pool] = None
        settled = self._serve(tuple(touched))
        for pool in touched:
            settled += self._fail_hopeless(pool)
            if not pool.replicas:
                del self._pools[pool.access_code]
        return settled

    def sweep(self, now: float) -> list[Ticket]:
        """Let time pass: reservations lapse, tickets that waited too long get an error. Returns those settled."""
        settled = [ticket for held in self.reservations.lapse(now) for ticket in self.release(held, now)]
        if 0 < self._patient_until <= now:
            self._patient_until = 0.0
            settled += self._end_patience()
        for pool in self._pools.values():
            if not len(pool.queue):
                continue
            for ticket in pool.queue.older_than(now - self._limits.wait_s):
                pool.queue.remove(ticket)
                ticket.error = self._waited_too_long(pool, ticket)
                settled.append(ticket)
        return settled

    def reserve(self, access_code: str, key: tuple[str, str], now: float) -> bool:
        """Hold a slot for the chat that will come with `key` (history_id, user_id). False where none is free.

        Repeating it holds the same slot longer. Raises ModelNotFound or NoReplica as `acquire` does.
        """
        pool = self._pools.get(access_code)
        if pool is None:
            raise self._unserved(access_code)
        if self.reservations.renew(access_code, key, now):
            return True
        held = self.reservations.withdraw(access_code, key)
        if held is not None:
            self.release(held, now)  # settles nobody: its replica takes no requests now
        if not len(pool.queue) and not self.reservations.full:
            trail = of_session(key[1]) if self.policy_of(access_code) == "session" else ()
            replica = pool.policy.choose(NOTHING, trail)
            if replica is not None:
                ticket = Ticket(access_code, principal="", key=key)
                self._grant(ticket, replica)
                self.reservations.hold(ticket, key, now)
                return True
        if not pool.worth_waiting(set()):
            raise self._no_replica(pool, set())
        return False

    def policy_of(self, access_code: str) -> PolicyName:
        """By what its replicas are chosen: tells a dialect which trail to lay."""
        return self.policies.get(access_code, "least_loaded")

    def not_found(self, access_code: str) -> ModelNotFound:
        """The error for an access code that is not served, naming those that are spelt like it."""
        if len(access_code) > MAX_ACCESS_CODE:  # looked for among the served ones, a long name stops the event loop
            return ModelNotFound(
                f"No executor serves this model: its name has {len(access_code)} characters, and an access code has at "
                f"most {MAX_ACCESS_CODE}. GET /v1/models lists those that are served.",
                param="model",
            )
        codes = [code for code in islice(self._pools, MAX_SEARCHED_CODES) if code != access_code]
        near = [repr(code) for code in get_close_matches(access_code, codes, n=3, cutoff=0.5)]
        hint = f"Did you mean {' or '.join(near)}?" if near else "GET /v1/models lists those that are served."
        return ModelNotFound(f"No executor serves the model {access_code!r}. {hint}", param="model")

    def waiting(self, access_code: str) -> tuple[int, int]:
        """How many tickets wait for the access code, and their bytes."""
        pool = self._pools.get(access_code)
        return (len(pool.queue), pool.queue.bytes) if pool is not None else (0, 0)

    def ahead_of(self, ticket: Ticket) -> int:
        """How many tickets stand before this one, which must be queued."""
        return self._pools[ticket.access_code].queue.ahead_of(ticket)

    def _grant(self, ticket: Ticket, replica: Replica) -> Replica:
        ticket.replica = replica
        replica.running += 1
        for pool in self._pools_of[replica]:
            pool.policy.took(replica)
        if replica.breakers:
            self._begin_trial(ticket, replica)
        if ticket.key is not None:
            self.reservations.granted(ticket)
        return replica

    def _begin_trial(self, ticket: Ticket, replica: Replica) -> None:
        breaker = replica.breakers.get(ticket.access_code)
        if breaker is not None and breaker.half_open:
            breaker.trial = ticket
            self._pools[ticket.access_code].offer(replica)

    def _end_trial(self, ticket: Ticket, replica: Replica) -> None:
        breaker = replica.breakers.get(ticket.access_code)
        if breaker is not None and breaker.trial is ticket:
            breaker.trial = None
            pool = self._pools.get(ticket.access_code)
            if pool is not None and replica in pool.replicas:
                pool.offer(replica)

    def _serve(self, pools: tuple[Pool, ...]) -> list[Ticket]:
        """Grant what can be granted. Access codes that share a replica take turns at its slots."""
        granted: list[Ticket] = []
        progress = True
        while progress:
            progress = False
            for pool in sorted(pools, key=_last_turn):
                found = pool.serve_one()
                if found is not None:
                    self._turn += 1
                    pool.last_turn = self._turn
                    self._grant(*found)
                    granted.append(found[0])
                    progress = True
        return granted

    def _place(self, replica: Replica) -> dict[Pool, None]:
        """Bring the pools in line with the replica's access codes and state. Returns those concerned."""
        codes = replica.access_codes if replica.alive else ()
        before = self._pools_of.get(replica, ())
        pools = tuple(self._pool(code) for code in codes)
        for pool in before:
            if pool not in pools:
                del pool.replicas[replica]
                pool.policy.discard(replica)
        for pool in pools:
            pool.replicas[replica] = None
            pool.offer(replica)
            if pool.reserve < replica.slots < UNLIMITED:
                pool.retries += replica.slots - pool.reserve
                pool.reserve = replica.slots
        if pools:
            self._pools_of[replica] = pools
        else:
            self._pools_of.pop(replica, None)
        return dict.fromkeys((*before, *pools))

    def _pool(self, access_code: str) -> Pool:
        pool = self._pools.get(access_code)
        if pool is None:
            pool = self._pools[access_code] = Pool(access_code, self._weights, self.policy_of(access_code))
        return pool

    def _fail_hopeless(self, pool: Pool) -> list[Ticket]:
        """Tickets that no live replica will ever take, out of the queue with their error."""
        alive = {replica.id for replica in pool.replicas}
        hopeless = [t for t in (pool.queue.returned if alive else pool.queue) if not alive - t.excluded]
        for ticket in hopeless:
            pool.queue.remove(ticket)
            ticket.error = self._no_replica(pool, ticket.excluded)
        return hopeless

    def _end_patience(self) -> list[Ticket]:
        """Who still waits for a model that nobody serves is told so."""
        settled: list[Ticket] = []
        for pool in [pool for pool in self._pools.values() if not pool.replicas]:
            for ticket in list(pool.queue):
                pool.queue.remove(ticket)
                ticket.error = self._unserved(pool.access_code)
                settled.append(ticket)
            del self._pools[pool.access_code]
        return settled

    def _refuse_overflow(self, pool: Pool, ticket: Ticket) -> None:
        limits = self._limits
        queue = pool.queue
        count, size = queue.held_by(ticket.principal)
        if queue.waiting >= limits.waiting or queue.bytes + ticket.cost_bytes > limits.bytes:
            raise QueueFull(
                f"Too many requests wait for the model {pool.access_code!r} ({len(queue)} requests, "
                f"{queue.bytes} bytes); try again in a moment, or start another executor for it."
            )
        if count * 2 >= limits.waiting or (count and (size + ticket.cost_bytes) * 2 > limits.bytes):
            raise QueueFull(
                f"Too many of your requests wait for the model {pool.access_code!r} ({count} requests, {size} bytes); "
                "wait for some of them to be answered."
            )

    def _waited_too_long(self, pool: Pool, ticket: Ticket) -> KuwaError:
        if not pool.worth_waiting(ticket.excluded):
            return self._no_replica(pool, ticket.excluded)
        return QueueFull(
            f"The request waited {self._limits.wait_s:g} s for a free slot of the model {pool.access_code!r}; "
            "try again later, or start another executor for it."
        )

    def _no_replica(self, pool: Pool, excluded: AbstractSet[str]) -> NoReplica:
        name = repr(pool.access_code)
        others = [replica for replica in pool.replicas if replica.id not in excluded]
        if not others and pool.replicas:
            return NoReplica(f"Every executor of the model {name} failed this request; see the kernel's log.")
        code = pool.access_code
        states = {replica.state_at(code) for replica in others}
        if "starting" in states:
            progress = next((r.note for r in others if r.note), "")
            return NoReplica(
                f"The model {name} is still starting{f' ({progress})' if progress else ''}; try again in a moment."
            )
        if "draining" in states:
            return NoReplica(
                f"The last executor of the model {name} is shutting down and takes no new requests; "
                "try again in a moment, or start another one."
            )
        if "ejected" in states:
            note = next((note for r in others if (note := r.note_at(code))), "its health check fails")
            return NoReplica(f"The upstream of the model {name} cannot be reached ({note}); check that server.")
        return _gone(pool.access_code)

    def _unserved(self, access_code: str) -> KuwaError:
        if self._registry.first_served(access_code) is not None:
            return _gone(access_code)
        return self.not_found(access_code)


def _gone(access_code: str) -> NoReplica:
    return NoReplica(
        f"No executor of the model {access_code!r} is alive any more; start one with "
        f"`kuwa-executor … --access_code {access_code}`."
    )


def _last_turn(pool: Pool) -> int:
    return pool.last_turn
