"""Who is alive: every replica the kernel knows, the state it is in, and since when.

A replica is one executor process (or one `--upstream`), under one or more access codes. Three kinds come in:
our own executors hold a lease that they renew; executors of the old wire register once and are health-polled, for
ten minutes also after they fell silent; upstreams stand in the kernel's own settings and are polled for as long as it
runs. `api/workers` registers, `health` polls and expires, the dispatcher takes the changes. Nothing here does I/O:
`now` (monotonic seconds) is passed in, and `polls_due` says what is to be asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal
from urllib.parse import urlsplit

from kuwa.kernel.replica import UNLIMITED, Replica, State
from kuwa.kernel.trust import same_peer
from kuwa.wire.errors import InvalidRequest
from kuwa.wire.lease import LEASE_TTL_S, Lease, Registration

Answer = Literal["ok", "refused", "silent"]

SUSPECT_AFTER_S = 4.5
GRACE_S = 30.0  # an executor of the old wire registers before it listens
BUSY_SILENCE_S = 120.0  # one that computes on its event loop does not answer while it computes
TOMBSTONE_S = 60.0
LOST_OLD_S = 600.0  # so long an executor of the old wire that fell silent is asked whether it is back
STALL_S = 2.0
POLL_S = 2.0
POLL_STARTING_S = 0.5
POLL_FAILED_S = 1.0
POLL_LOST_S = 5.0
POLL_UPSTREAM_S = 10.0
POLL_UPSTREAM_FAILED_S = 2.0
POLL_LAST_RESORT_S = 1.0
MAX_REMEMBERED_CODES = 10_000

_SERVED: frozenset[State] = frozenset(("ready", "suspect", "draining"))


class Registry:
    """The replicas by executor, by access code and by address, kept in step.

    What changed (a replica came, went, changed its state, its slots or its access codes) is collected for
    `take_changes`, which the dispatcher calls before anything else can run.
    """

    def __init__(self) -> None:
        self._executors: dict[str, Replica] = {}
        self._by_code: dict[str, dict[Replica, None]] = {}
        self._by_address: dict[str, Replica] = {}
        self._changed: dict[Replica, None] = {}
        self._first_served: dict[str, float] = {}
        self._last_expire: float | None = None

    def register(self, registration: Registration, now: float, registered_from: str = "") -> Lease:
        """Take in or renew an executor that holds a lease. Repeating it changes nothing but the renewal time.

        `registered_from` is the address of the peer. Raises InvalidRequest where a newer process has taken this
        executor's id or its address, or where the executor that has them lives at another peer.
        """
        known = self._executors.get(registration.executor_id)
        self._refuse_taken(registration, known, registered_from)
        if known is not None and known.incarnation == registration.incarnation and known.source == "lease":
            replica = known
        else:
            if known is not None:
                self._leave(known, now)
            replica = self._new_leased(registration, now)
        self._apply(replica, registration, now)
        replica.registered_from = registered_from
        replica.heard_at = now
        self._join(replica)
        if replica.state != "ejected" or registration.state != "ready":
            self._enter(replica, registration.state, now)
        return Lease(lease_id=replica.id)

    def _refuse_taken(self, registration: Registration, known: Replica | None, peer: str) -> None:
        """Only a newer process at the same peer takes the place of an executor that lives, by its id or its address.

        Ids can be read by everybody; and the clocks of two machines are not to be compared.
        """
        address = registration.dialects.openai or registration.dialects.v1_0
        for other in (known, self._by_address.get(address)):
            if other is None or other.source != "lease":
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

    def _new_leased(self, registration: Registration, now: float) -> Replica:
        replica = Replica(
            id=f"{registration.executor_id}.{registration.incarnation}",
            executor_id=registration.executor_id,
            incarnation=registration.incarnation,
            source="lease",
            access_codes=(),
            wire="openai",
            since=now,
            registered_at=now,
        )
        self._executors[replica.executor_id] = replica
        return replica

    def _apply(self, replica: Replica, registration: Registration, now: float) -> None:
        """Write what the registration says into the replica, noting a change of what the dispatcher knows."""
        dialects = registration.dialects
        address = dialects.openai or dialects.v1_0
        holder = self._by_address.get(address)
        if holder is not None and holder is not replica:
            self._leave(holder, now)
        codes = tuple(dict.fromkeys(registration.access_codes))
        if (codes, address, registration.concurrency) != (replica.access_codes, replica.address, replica.slots):
            self._forget(replica)
            self._changed[replica] = None
        replica.access_codes = codes
        replica.wire = "openai" if dialects.openai else "v1.0"
        replica.base_url = dialects.openai
        replica.endpoint = dialects.v1_0
        replica.slots = registration.concurrency
        self._admit(replica)
        replica.fingerprint = registration.fingerprint
        replica.load = registration.load
        replica.capabilities = frozenset(registration.capabilities)
        replica.resumes = bool(replica.fingerprint) and "resume" in replica.capabilities
        replica.context_length = registration.context_length
        replica.executor = registration.executor
        replica.version = registration.version
        if replica.state != "ejected":
            replica.note = registration.load.progress

    def register_old(self, name: str, endpoint: str, now: float, registered_from: str = "") -> None:
        """Take in an executor of the old wire: `starting` until its health answers.

        It registers once per process, so a second registration of one that has been heard is a new process;
        one that is still starting may be naming another of its access codes.
        """
        known = self._by_address.get(endpoint)
        if known is not None and known.source == "old" and known.state == "starting":
            if name not in known.access_codes:
                known.access_codes = (*known.access_codes, name)
                self._join(known)
                self._changed[known] = None
            known.registered_at = now
            return
        if known is not None:
            self._leave(known, now)
        executor_id = f"old {endpoint}"
        before = self._executors.get(executor_id)
        incarnation = before.incarnation + 1 if before is not None else 1
        replica = Replica(
            id=f"{executor_id} {incarnation}",
            executor_id=executor_id,
            incarnation=incarnation,
            source="old",
            access_codes=(name,),
            wire="v1.0",
            endpoint=endpoint,
            since=now,
            registered_at=now,
            registered_from=registered_from,
            heard_at=now,
            next_poll=now,
            capabilities=frozenset(("chat", "abort")),
        )
        self._executors[executor_id] = replica
        self._join(replica)
        self._changed[replica] = None

    def add_upstream(self, access_code: str, base_url: str, model: str, authorization: bytes, now: float) -> None:
        """Take in a server of the kernel's own settings: unlimited slots, `starting` until GET /models answers."""
        executor_id = f"upstream {access_code}={base_url}#{model}"
        replica = Replica(
            id=executor_id,
            executor_id=executor_id,
            incarnation=1,
            source="upstream",
            access_codes=(access_code,),
            wire="openai",
            base_url=base_url,
            model=model,
            authorization=authorization,
            slots=UNLIMITED,
            since=now,
            registered_at=now,
            heard_at=now,
            next_poll=now,
            executor="upstream",
        )
        self._executors[executor_id] = replica
        self._join(replica)
        self._changed[replica] = None

    def unregister(self, name: str, endpoint: str, now: float) -> bool:
        """Take out what serves `name` at the endpoint's scheme, host and port. Whether there was any.

        An executor with a lease leaves as a whole; one of the old wire leaves with its last name.
        """
        where = _origin(endpoint)
        leaving = [
            replica
            for replica in self._by_code.get(name, ())
            if replica.source != "upstream" and _origin(replica.endpoint or replica.base_url) == where
        ]
        for replica in leaving:
            others = tuple(code for code in replica.access_codes if code != name)
            if replica.source == "old" and others:
                self._forget(replica)
                replica.access_codes = others
                self._join(replica)
                self._changed[replica] = None
            else:
                self._leave(replica, now)
        return bool(leaving)

    def expire(self, now: float) -> None:
        """Let time pass: silent replicas become suspect, then gone. Called every 0.25 s."""
        self._forgive_stall(now)
        for replica in list(self._executors.values()):
            if replica.state == "gone":
                # A slot still held keeps it: should the process come back, its count must still be true.
                kept_s = LOST_OLD_S if replica.may_return else TOMBSTONE_S
                if now - replica.since >= kept_s and replica.running == 0:
                    del self._executors[replica.executor_id]
            elif replica.source == "lease":
                self._expire_lease(replica, now)
            elif replica.source == "old":
                self._expire_old(replica, now)

    def _forgive_stall(self, now: float) -> None:
        """Time in which the kernel itself did not run is no silence of the executors: renewals wait unread."""
        gap = now - self._last_expire if self._last_expire is not None else 0.0
        self._last_expire = now
        if gap <= STALL_S:
            return
        for replica in self._executors.values():
            replica.heard_at += gap

    def _expire_lease(self, replica: Replica, now: float) -> None:
        silent_s = now - replica.heard_at
        if silent_s >= LEASE_TTL_S:
            replica.note = f"not renewed for {LEASE_TTL_S:g} s"
            self._lose(replica, now)
        elif silent_s >= SUSPECT_AFTER_S and replica.state == "ready":
            self._enter(replica, "suspect", now)

    def _expire_old(self, replica: Replica, now: float) -> None:
        if replica.state == "starting":
            patience_s = GRACE_S
            silent_s = now - replica.registered_at
        else:
            patience_s = BUSY_SILENCE_S if replica.running else LEASE_TTL_S
            silent_s = now - replica.heard_at if replica.failures else 0.0
        if silent_s >= patience_s:
            self._lose(replica, now)
            replica.next_poll = now + POLL_LOST_S

    def failed(self, replica: Replica, now: float, why: str) -> None:
        """An attempt there failed. After several in a row it is ejected, unless it is the last that is ready."""
        if replica.breaker.fail() and replica.state == "ready" and self._others_ready(replica):
            self._eject(replica, now, why)

    def doubt(self, replica: Replica, now: float) -> None:
        """Its connection broke, or nobody listens there: no more requests until its health or its lease says more."""
        if replica.source == "lease" and replica.state == "ready":
            self._enter(replica, "suspect", now)
            replica.next_poll = now

    def worked(self, replica: Replica) -> None:
        """An attempt there went well, after others had failed."""
        replica.breaker.close()
        self._admit(replica)

    def _eject(self, replica: Replica, now: float, why: str) -> None:
        replica.note = why
        replica.last_poll = now
        replica.next_poll = now + replica.breaker.open()
        self._admit(replica)
        self._enter(replica, "ejected", now)

    def _admit(self, replica: Replica) -> None:
        admits = 1 if replica.breaker.half_open else replica.slots
        if admits != replica.admits:
            replica.admits = admits
            self._changed[replica] = None

    def _others_ready(self, replica: Replica) -> bool:
        """Whether each of its access codes has another replica that takes requests."""
        return all(
            any(other is not replica and other.state == "ready" for other in self._by_code[code])
            for code in replica.access_codes
        )

    def polls_due(self, now: float) -> list[Replica]:
        """The replicas whose health is to be asked now. Each is out until `health` brings its answer."""
        due = [r for r in self._executors.values() if self._poll_due(r, now)]
        for replica in due:
            replica.next_poll = math.inf
            replica.last_poll = now
        return due

    def _poll_due(self, replica: Replica, now: float) -> bool:
        if replica.next_poll <= now:
            return True
        # While an access code has nothing that is ready, its ejected replicas are asked again soon.
        hurried = replica.state == "ejected" and replica.next_poll < math.inf
        return hurried and now - replica.last_poll >= POLL_LAST_RESORT_S and not self._others_ready(replica)

    def health(self, replica: Replica, answer: Answer, now: float, note: str = "") -> None:
        """Take the answer to a poll: `refused` where nobody listens, `silent` for any other failure."""
        if not replica.alive:
            self._lost_answered(replica, answer, now)
        elif answer == "ok":
            self._healthy(replica, now)
        elif replica.source == "lease" and replica.state != "ejected":
            replica.next_poll = math.inf  # its lease will tell
        elif replica.state == "ejected":
            replica.note = note
            replica.next_poll = now + replica.breaker.open()
        elif replica.source == "upstream":
            replica.note = note
            self._upstream_failed(replica, now)
        elif replica.source == "old":
            replica.note = note
            self._old_failed(replica, answer, now)

    def _lost_answered(self, replica: Replica, answer: Answer, now: float) -> None:
        """One that may return is back once it answers well, unless it is forgotten or its place is taken."""
        known = self._executors.get(replica.executor_id) is replica
        if not replica.may_return or not known or replica.address in self._by_address:
            return
        if answer == "ok":
            self._join(replica)
            self._healthy(replica, now)
        else:
            replica.next_poll = now + POLL_LOST_S

    def _healthy(self, replica: Replica, now: float) -> None:
        replica.failures = 0
        replica.note = ""
        if replica.state == "ejected":
            replica.breaker.probe()
            self._admit(replica)
        if replica.source == "lease":  # its lease says whether it lives; only its breaker asked
            replica.next_poll = math.inf
        else:
            replica.heard_at = now
            replica.next_poll = now + (POLL_UPSTREAM_S if replica.source == "upstream" else POLL_S)
        if replica.source != "lease" or replica.state in ("ejected", "suspect"):
            self._enter(replica, "ready", now)

    def _upstream_failed(self, replica: Replica, now: float) -> None:
        """One failed poll may be the network's; at the second it gets no more requests until a poll works."""
        replica.failures += 1
        replica.next_poll = now + POLL_UPSTREAM_FAILED_S
        if replica.failures >= 2 and replica.state == "ready":
            self._eject(replica, now, replica.note)
            replica.next_poll = now + POLL_UPSTREAM_FAILED_S

    def _old_failed(self, replica: Replica, answer: Answer, now: float) -> None:
        if replica.state == "starting":
            replica.next_poll = now + POLL_STARTING_S
            return
        replica.failures += 1
        replica.next_poll = now + POLL_FAILED_S
        if answer == "refused" and replica.failures >= 2:
            self._leave(replica, now)
        else:
            self._enter(replica, "suspect", now)

    def replicas(self, access_code: str) -> list[Replica]:
        """The live replicas of an access code, whatever their state."""
        return list(self._by_code.get(access_code, ()))

    def all_replicas(self) -> list[Replica]:
        """Every replica known, those that have gone lately included."""
        return list(self._executors.values())

    def codes(self) -> list[str]:
        """The access codes that are served now (one that is only starting is not yet), sorted."""
        return sorted(code for code, replicas in self._by_code.items() if any(r.state in _SERVED for r in replicas))

    def first_served(self, access_code: str) -> float | None:
        """When the access code was first registered, or None if it never was."""
        return self._first_served.get(access_code)

    def take_changes(self) -> list[Replica]:
        """The replicas that changed since the last call."""
        changed = list(self._changed)
        self._changed.clear()
        return changed

    def _enter(self, replica: Replica, state: State, now: float) -> None:
        if replica.state != state:
            replica.state = state
            replica.since = now
            self._changed[replica] = None

    def _join(self, replica: Replica) -> None:
        replica.lost = False
        if replica.source != "upstream":  # two upstreams may well share a base URL
            self._by_address[replica.address] = replica
        for code in replica.access_codes:
            self._by_code.setdefault(code, {})[replica] = None
            self._remember(code, replica.registered_at)

    def _remember(self, code: str, now: float) -> None:
        if code not in self._first_served:
            self._first_served[code] = now
            if len(self._first_served) > MAX_REMEMBERED_CODES:
                del self._first_served[next(self._oldest_absent())]

    def _oldest_absent(self) -> Iterator[str]:
        yield from (code for code in self._first_served if code not in self._by_code)
        yield from self._first_served

    def _forget(self, replica: Replica) -> None:
        if self._by_address.get(replica.address) is replica:
            del self._by_address[replica.address]
        for code in replica.access_codes:
            replicas = self._by_code.get(code)
            if replicas is not None and replicas.pop(replica, True) is None and not replicas:
                del self._by_code[code]

    def _lose(self, replica: Replica, now: float) -> None:
        replica.lost = True
        self._leave(replica, now)

    def _leave(self, replica: Replica, now: float) -> None:
        self._forget(replica)
        replica.next_poll = math.inf
        self._enter(replica, "gone", now)


def _origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port, which is all that the old wire compares."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return ("", url, None)
    return (parts.scheme, parts.hostname or "", port or {"http": 80, "https": 443}.get(parts.scheme))
