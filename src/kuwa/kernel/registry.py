"""Who is alive: every replica the kernel knows, the state it is in, and since when.

A replica is one executor process (or one `--upstream`), under one or more access codes. How it lives is decided by its
`lifecycle`, what is held against it by `faults`; the registry keeps the indexes and applies what they decide.
`api/workers` registers, `health` polls and expires, the dispatcher takes the changes. Nothing here does I/O: `now`
(monotonic seconds) is passed in, and `polls_due` says what is to be asked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from urllib.parse import urlsplit

from kuwa.kernel.faults import Faults
from kuwa.kernel.first_served import FirstServed
from kuwa.kernel.lifecycle import Answer, Configured, Leased, Lifecycle, Polled, State, Transition
from kuwa.kernel.replica import UNLIMITED, Facts, Replica
from kuwa.kernel.trust import same_peer
from kuwa.wire.errors import InvalidRequest
from kuwa.wire.lease import Lease, Registration

STALL_S = 2.0

_SERVED: frozenset[State] = frozenset(("ready", "suspect", "draining"))


class Registry:
    """The replicas by executor, by access code and by address, kept in step.

    What changed (a replica came, went, changed its state, its slots, its access codes, or what it takes of them) is
    collected for `take_changes`, which the dispatcher calls before anything else can run.
    """

    def __init__(self) -> None:
        self._executors: dict[str, Replica] = {}
        self._by_code: dict[str, dict[Replica, None]] = {}
        self._by_address: dict[str, Replica] = {}
        self._changed: dict[Replica, None] = {}
        self._first_served = FirstServed(self._by_code)
        self._last_expire: float | None = None
        self.faults = Faults(self.replicas, self._note_change)

    def register(self, registration: Registration, now: float, registered_from: str = "") -> Lease:
        """Take in or renew an executor that holds a lease. Repeating it changes nothing but the renewal time.

        `registered_from` is the address of the peer. Raises InvalidRequest where a newer process has taken this
        executor's id or its address, or where the executor that has them lives at another peer.
        """
        executor_id, incarnation = registration.executor_id, registration.incarnation
        known = self._executors.get(executor_id)
        address = registration.dialects.openai or registration.dialects.v1_0
        _refuse_taken(registration, (known, self._by_address.get(address)), registered_from)
        facts = Facts.of(registration)
        life = known.life.lease if known is not None and known.incarnation == incarnation else None
        if known is not None and life is not None:
            replica = known
            self._learn(replica, facts)
            self._join(replica, now)
        else:
            life = Leased(now)
            replica = self._add(executor_id, f"{executor_id}.{incarnation}", incarnation, life, facts, now)
        replica.registered_from = registered_from
        replica.load = registration.load
        self._apply(replica, life.renewed(registration.state, registration.load.progress, now), now)
        return Lease(lease_id=replica.id)

    def register_old(self, name: str, endpoint: str, now: float, registered_from: str = "") -> None:
        """Take in an executor of the v1.0 wire: `starting` until its health answers.

        It registers once per process, so a second registration of one that has been heard is a new process;
        one that is still starting may be naming another of its access codes.
        """
        known = self._by_address.get(endpoint)
        if known is not None and known.life.named(known.state, now):
            if name not in known.access_codes:
                self._learn(known, replace(known.facts, access_codes=(*known.access_codes, name)))
                self._join(known, now)
            return
        executor_id = f"old {endpoint}"
        before = self._executors.get(executor_id)
        incarnation = before.incarnation + 1 if before is not None else 1
        facts = Facts(access_codes=(name,), wire="v1.0", endpoint=endpoint, capabilities=frozenset(("chat", "abort")))
        replica = self._add(executor_id, f"{executor_id} {incarnation}", incarnation, Polled(now), facts, now)
        replica.registered_from = registered_from

    def add_upstream(self, access_code: str, base_url: str, model: str, authorization: bytes, now: float) -> None:
        """Take in a server of the kernel's own settings: unlimited slots, `starting` until GET /models answers."""
        executor_id = f"upstream {access_code}={base_url}#{model}"
        facts = Facts(
            access_codes=(access_code,),
            wire="openai",
            base_url=base_url,
            model=model,
            authorization=authorization,
            slots=UNLIMITED,
            executor="upstream",
        )
        self._add(executor_id, executor_id, 1, Configured(now), facts, now)

    def unregister(self, name: str, endpoint: str, now: float) -> bool:
        """Take out what serves `name` at the endpoint's scheme, host and port. Whether there was any.

        An executor with a lease leaves as a whole; one of the v1.0 wire leaves with its last name.
        """
        where = _origin(endpoint)
        found = False
        for replica in self.replicas(name):
            codes = replica.life.codes_without(name, replica.access_codes)
            if name in codes or _origin(replica.endpoint or replica.base_url) != where:
                continue
            found = True
            if codes:
                self._learn(replica, replace(replica.facts, access_codes=codes))
                self._join(replica, now)
            else:
                self._leave(replica, now)
        return found

    def expire(self, now: float) -> None:
        """Let time pass: silent replicas become suspect, then gone. Called every 0.25 s."""
        self._forgive_stall(now)
        for replica in list(self._executors.values()):
            busy = replica.running > 0
            if replica.alive:
                self._apply(replica, replica.life.expire(replica.state, now, busy=busy), now)
            elif now - replica.since >= replica.life.kept_s and not busy:
                # A slot still held keeps it: should the process come back, its count must still be true.
                del self._executors[replica.executor_id]

    def _forgive_stall(self, now: float) -> None:
        """Time in which the kernel itself did not run is no silence of the executors: renewals wait unread."""
        gap = now - self._last_expire if self._last_expire is not None else 0.0
        self._last_expire = now
        if gap > STALL_S:
            for replica in self._executors.values():
                replica.life.forgive(gap)

    def doubt(self, replica: Replica, now: float) -> None:
        """Its connection broke, or its port is closed."""
        self._apply(replica, replica.life.doubted(replica.state, now), now)

    def polls_due(self, now: float) -> list[Replica]:
        """The replicas whose health is to be asked now. Each is out until `health` brings its answer."""
        due = [
            replica
            for replica in self._executors.values()
            if not replica.asked and (replica.life.next_poll <= now or self.faults.due(replica, now))
        ]
        for replica in due:
            replica.asked = True
            self.faults.asked(replica, now)
        return due

    def health(self, replica: Replica, answer: Answer, now: float, note: str = "") -> None:
        """Take the answer to a poll."""
        replica.asked = False
        if not replica.alive and not self._has_place(replica):
            replica.life.left()
            return
        self._apply(replica, replica.life.answered(replica.state, answer, note, now), now)
        if replica.alive:
            self.faults.answered(replica, now, note, well=answer == "ok")

    def _has_place(self, replica: Replica) -> bool:
        """Whether one that is gone is remembered, and no other is where it was."""
        known = self._executors.get(replica.executor_id) is replica
        return known and replica.address not in self._by_address

    def replicas(self, access_code: str) -> list[Replica]:
        """The live replicas of an access code, whatever their state."""
        return list(self._by_code.get(access_code, ()))

    def all_replicas(self) -> list[Replica]:
        """Every replica known, those that have gone lately included."""
        return list(self._executors.values())

    def codes(self) -> list[str]:
        """The access codes that are served now (one that is only starting is not yet), sorted."""
        return sorted(
            code for code, replicas in self._by_code.items() if any(r.state_at(code) in _SERVED for r in replicas)
        )

    def first_served(self, access_code: str) -> float | None:
        """When the access code was first registered, or None if it never was."""
        return self._first_served.get(access_code)

    def take_changes(self) -> list[Replica]:
        """The replicas that changed since the last call."""
        changed = list(self._changed)
        self._changed.clear()
        return changed

    def _note_change(self, replica: Replica) -> None:
        self._changed[replica] = None

    def _add(
        self, executor_id: str, replica_id: str, incarnation: int, life: Lifecycle, facts: Facts, now: float
    ) -> Replica:
        """A new replica, in the place of whoever has this id or this address."""
        known = self._executors.get(executor_id)
        if known is not None:
            self._leave(known, now)
        replica = Replica(
            id=replica_id,
            executor_id=executor_id,
            incarnation=incarnation,
            life=life,
            facts=facts,
            since=now,
            registered_at=now,
        )
        self._executors[executor_id] = replica
        self._join(replica, now)
        self._changed[replica] = None
        return replica

    def _learn(self, replica: Replica, facts: Facts) -> None:
        """Take in what the replica says of itself now; whoever calls this joins it again."""
        before = replica.facts
        if (facts.access_codes, facts.address, facts.slots) != (before.access_codes, before.address, before.slots):
            self._forget(replica)
            self._changed[replica] = None
            for code in set(replica.breakers) - set(facts.access_codes):
                del replica.breakers[code]
        replica.facts = facts

    def _apply(self, replica: Replica, transition: Transition | None, now: float) -> None:
        """Let the replica enter the state that its life has come to."""
        if transition is None:
            return
        if transition.note is not None:
            replica.note = transition.note
        if transition.state == "gone":
            self._forget(replica)
        elif not replica.alive:
            self._join(replica, now)
        self._enter(replica, transition.state, now)

    def _enter(self, replica: Replica, state: State, now: float) -> None:
        if replica.state != state:
            replica.state = state
            replica.since = now
            self._changed[replica] = None

    def _join(self, replica: Replica, now: float) -> None:
        if not replica.life.shares_address:
            holder = self._by_address.get(replica.address)
            if holder is not None and holder is not replica:
                self._leave(holder, now)
            self._by_address[replica.address] = replica
        for code in replica.access_codes:
            self._by_code.setdefault(code, {})[replica] = None
            self._first_served.note(code, replica.registered_at)

    def _forget(self, replica: Replica) -> None:
        if self._by_address.get(replica.address) is replica:
            del self._by_address[replica.address]
        for code in replica.access_codes:
            replicas = self._by_code.get(code)
            if replicas is not None and replicas.pop(replica, True) is None and not replicas:
                del self._by_code[code]

    def _leave(self, replica: Replica, now: float) -> None:
        replica.life.left()
        self._forget(replica)
        self._enter(replica, "gone", now)


def _refuse_taken(registration: Registration, holders: Iterable[Replica | None], peer: str) -> None:
    """Only a newer process at the same peer takes the place of an executor that lives: of one of the `holders` of its
    id and its address.

    Ids can be read by everybody; and the clocks of two machines are not to be compared.
    """
    for other in holders:
        if other is None or other.life.lease is None:
            continue
        if not same_peer(peer, other.registered_from):
            if other.alive:
                raise InvalidRequest(
                    f"Executor {other.executor_id!r} at {other.address} was registered from "
                    f"{other.registered_from} and lives; a registration from {peer} cannot take its place. Stop "
                    "that one first, or give this one a host and a port of its own.",
                    param="kuwa",
                )
        elif registration.incarnation < other.incarnation:
            raise InvalidRequest(
                f"A newer process of executor {other.executor_id!r} at {other.address} has taken this place; "
                "stop this older one, or give it an id and a port of its own.",
                param="kuwa",
            )


def _origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port, which is all that the old wire compares."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return ("", url, None)
    return (parts.scheme, parts.hostname or "", port or {"http": 80, "https": 443}.get(parts.scheme))
