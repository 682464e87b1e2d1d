"""Which failures are held against which replica, by access code, and what follows: the breakers of all replicas.

The registry keeps it and asks it for polls; `kernel/chat` reports how attempts went. The last replica that is ready for
an access code is never ejected for it. Pure; `changed` tells the registry that a replica takes other requests now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kuwa.kernel.breaker import Breaker
from kuwa.kernel.replica import Replica


class Faults:
    """`replicas` gives the live replicas of an access code."""

    def __init__(self, replicas: Callable[[str], Iterable[Replica]], changed: Callable[[Replica], None]) -> None:
        self._replicas = replicas
        self._changed = changed

    def failed(self, replica: Replica, access_code: str, fault: bytes, now: float, why: str) -> None:
        """An attempt there failed. After several in a row the access code is ejected there, unless no other replica is
        ready for it."""
        breaker = _breaker(replica, access_code)
        trips = breaker.fail(fault)
        if trips and replica.state_at(access_code) == "ready" and self._others_ready(replica, access_code):
            breaker.open(now, why)
            self._changed(replica)

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


def _breaker(replica: Replica, access_code: str) -> Breaker:
    breaker = replica.breakers.get(access_code)
    if breaker is None:
        breaker = replica.breakers[access_code] = Breaker()
    return breaker
