"""What one access code has at the dispatcher: its live replicas, the order among the free ones, and its queue."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from kuwa.kernel.lifecycle import State
from kuwa.kernel.policy import PolicyName, policy_named
from kuwa.kernel.queue import FairQueue, Ticket, Weights
from kuwa.kernel.replica import Replica
from kuwa.wire.errors import NoReplica

RETRY_RESERVE = 64  # what one dead executor's requests may take at once, where it has no more slots than that
NOTHING: frozenset[str] = frozenset()
WORTH_WAITING: frozenset[State] = frozenset(("ready", "suspect"))


class Pool:
    """What one access code has: its live replicas, the order among the free ones, and its queue.

    `retries` is how many requests may be sent again: each request adds its share, so that a model that fails
    everything is not asked much more often than it would be without retries. `reserve` is the most that is saved up:
    enough for all that runs on its largest replica.
    """

    __slots__ = ("access_code", "last_turn", "policy", "queue", "replicas", "reserve", "retries")

    def __init__(self, access_code: str, weights: Weights, policy: PolicyName) -> None:
        self.access_code = access_code
        self.replicas: dict[Replica, None] = {}
        self.policy = policy_named(policy)
        self.queue = FairQueue(weights)
        self.last_turn = 0
        self.reserve = RETRY_RESERVE
        self.retries = float(RETRY_RESERVE)

    def worth_waiting(self, excluded: AbstractSet[str]) -> bool:
        """Whether a replica other than those `excluded` may have a free slot soon."""
        code = self.access_code
        return any(r.state_at(code) in WORTH_WAITING and r.id not in excluded for r in self.replicas)

    def spend_retry(self) -> None:
        """Raises NoReplica where too many requests have been sent again lately."""
        if self.retries < 1.0:
            raise NoReplica(
                f"The executors of the model {self.access_code!r} fail so often that requests are not sent again; "
                "see the kernel's log."
            )
        self.retries -= 1.0

    def offer(self, replica: Replica) -> None:
        """Bring the order in line with the replica's state, its slots, and its breaker."""
        breaker = replica.breakers.get(self.access_code)
        if breaker is None or breaker.admits:
            self.policy.update(replica)
        else:
            self.policy.discard(replica)

    def serve_one(self) -> tuple[Ticket, Replica] | None:
        """The next ticket that a replica is free for, taken out of the queue, with that replica."""
        queue = self.queue
        for ticket in queue.returned:
            replica = self.policy.choose(ticket.excluded, ticket.trail)
            if replica is not None:
                queue.remove(ticket)
                return ticket, replica
        if queue.waiting and self.policy.choose(NOTHING) is not None:
            ticket = queue.pop()
            replica = self.policy.choose(NOTHING, ticket.trail)
            if replica is not None:
                return ticket, replica
        return None
