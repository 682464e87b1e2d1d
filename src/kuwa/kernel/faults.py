"""Which failures are held against which replica, by access code, and what follows: the breakers of all replicas.

- An attempt that ended without an answer (cut, garbled, late) is a fault of the replica at once. The same body counts
  once: it may be the body's doing.
- An error that the replica answered itself (500 and above) may be due to the request. It becomes a fault once another
  replica answers the same request; until then it ejects nobody, whatever a client sends.
- While each replica has failed several bodies and none has worked since, the model is failing: see `all_failing`.

The registry keeps it and asks it for polls; `kernel/chat` reports how attempts went. The last replica that is ready for
an access code is never ejected for it. Pure; `changed` tells the registry that a replica takes other requests now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet

from kuwa.kernel.breaker import Breaker
from kuwa.kernel.replica import Replica


class Faults:
    """`replicas` gives the live replicas of an access code."""

    def __init__(self, replicas: Callable[[str], Iterable[Replica]], changed: Callable[[Replica], None]) -> None:
        self._replicas = replicas
        self._changed = changed

    def failed(self, replica: Replica, access_code: str, fault: bytes, now: float, why: str) -> None:
        """An attempt there failed, by the replica's fault. After several in a row the access code is ejected there,
        unless no other replica is ready for it. A fault counts once; it is called by the body that failed."""
        breaker = _breaker(replica, access_code)
        if breaker is None:
            return
        trips = breaker.fail(fault)
        if trips and replica.state_at(access_code) == "ready" and self._others_ready(replica, access_code):
            breaker.open(now, why)
            self._changed(replica)

    def refused(self, replica: Replica, access_code: str, body: bytes) -> None:
        """The replica answered this body with an error of its own, which may be due to the body."""
        breaker = _breaker(replica, access_code)
        if breaker is not None:
            breaker.refuse(body)

    def blame(self, replica: Replica, access_code: str, body: bytes, now: float, why: str, *, answered: bool) -> None:
        """An attempt there failed; `answered`: with an error of the replica's own words."""
        if answered:
            self.refused(replica, access_code, body)
        else:
            self.failed(replica, access_code, body, now, why)

    def proved(self, replica: Replica, access_code: str, body: bytes, request: bytes, now: float, why: str) -> None:
        """Another replica answers the `request` whose body failed there: it was the replica's fault. From then on the
        fault is called by the request, so that the same body can show it several times."""
        breaker = replica.breakers.get(access_code)
        if breaker is not None:
            breaker.explain(body)
        self.failed(replica, access_code, request, now, why)

    def doubtful(self, access_code: str, excluded: AbstractSet[str]) -> frozenset[str]:
        """The replicas that have failed since they last worked, by id, while another one has not and may be asked: its
        word on a request that one of them refused says whose fault that was."""
        ready = [replica for replica in self._replicas(access_code) if replica.state_at(access_code) == "ready"]
        doubtful = frozenset(replica.id for replica in ready if access_code in replica.breakers)
        return doubtful if any(replica.id not in doubtful | excluded for replica in ready) else frozenset()

    def worked(self, replica: Replica, access_code: str) -> None:
        """An attempt there went well, after others had failed."""
        breaker = replica.breakers.get(access_code)
        if breaker is None:
            return
        if breaker.close():
            del replica.breakers[access_code]
        self._changed(replica)

    def all_failing(self, access_code: str) -> bool:
        """Whether each replica of the access code has failed several times and has not worked since."""
        return all(
            (breaker := replica.breakers.get(access_code)) is not None and breaker.tripped
            for replica in self._replicas(access_code)
        )

    def due(self, replica: Replica, now: float) -> bool:
        """Whether the replica's health is to be asked for the sake of a breaker."""
        return replica.alive and bool(self._due(replica, now))

    def asked(self, replica: Replica, now: float) -> None:
        """The replica's health is being asked."""
        for breaker in self._due(replica, now):
            breaker.asked(now)

    def answered(self, replica: Replica, now: float, note: str, *, well: bool) -> None:
        """The replica's health was asked: who was ejected gets a trial, or is left alone for longer."""
        for breaker in replica.breakers.values():
            if breaker.probing:
                if well:
                    breaker.probe()
                else:
                    breaker.open(now, note)
                self._changed(replica)

    def _due(self, replica: Replica, now: float) -> list[Breaker]:
        return [
            breaker
            for code, breaker in replica.breakers.items()
            if breaker.due(now, hurried=not self._others_ready(replica, code))
        ]

    def _others_ready(self, replica: Replica, access_code: str) -> bool:
        return any(
            other is not replica and other.state_at(access_code) == "ready" for other in self._replicas(access_code)
        )


def _breaker(replica: Replica, access_code: str) -> Breaker | None:
    """The breaker to write into, or None if the replica does not serve the access code any more."""
    if not replica.alive or access_code not in replica.access_codes:
        return None
    breaker = replica.breakers.get(access_code)
    if breaker is None:
        breaker = replica.breakers[access_code] = Breaker()
    return breaker
