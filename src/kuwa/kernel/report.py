"""Builds the kernel's report of itself (`kuwa.wire.report`) from the registry and the dispatcher. Pure.

The worker API sends it as JSON and shows it as a page; the front page is made of it too.
"""

from __future__ import annotations

from kuwa import __version__
from kuwa.kernel.dispatcher import Dispatcher
from kuwa.kernel.registry import Registry
from kuwa.kernel.replica import UNLIMITED, Replica
from kuwa.wire import report as wire
from kuwa.wire.report import About, OldStatus, Queue, Report


def build_report(registry: Registry, dispatcher: Dispatcher, *, draining: bool, now: float) -> Report:
    replicas = sorted(registry.all_replicas(), key=_order)
    alive = [replica for replica in replicas if replica.alive]
    return Report(
        kernel=About(__version__, draining),
        models=[
            Queue(code, *dispatcher.waiting(code))
            for code in sorted({code for replica in alive for code in replica.access_codes})
        ],
        replicas=[_described(replica, now) for replica in alive],
        gone=[_described(replica, now) for replica in replicas if not replica.alive],
        v1_0=_old_status(alive, dispatcher),
    )


def _described(replica: Replica, now: float) -> wire.Replica:
    return wire.Replica(
        id=replica.id,
        access_codes=list(replica.access_codes),
        endpoint=replica.address,
        state=replica.overall,
        wire=replica.wire,
        source=replica.source,
        executor=replica.facts.executor,
        version=replica.facts.version,
        since_s=round(now - replica.since, 3),
        slots=replica.slots if replica.slots < UNLIMITED else None,
        running=replica.running,
        load=replica.load,
        capabilities=sorted(replica.capabilities),
        context_length=replica.facts.context_length,
        registered_from=replica.registered_from,
        note=replica.note_at(replica.access_codes[0]) if replica.overall == "ejected" else replica.note,
        ejected=replica.ejected,
    )


def _old_status(alive: list[Replica], dispatcher: Dispatcher) -> OldStatus:
    """What kernels of the v1.0 wire report: per access code [endpoint, READY or BUSY, history_id, user_id]."""
    holders = dispatcher.reservations.holders()
    status: OldStatus = {}
    for replica in alive:
        room = replica.running < replica.slots
        ids = [_number(value) for value in holders.get(replica, ("-1", "-1"))]
        for code in replica.access_codes:
            free = room and replica.state_at(code) == "ready"
            row = [replica.endpoint or replica.base_url, "READY" if free else "BUSY", *ids]
            status.setdefault(code, []).append(row)
    return status


def _order(replica: Replica) -> tuple[str, str, str]:
    return (replica.access_codes[0] if replica.access_codes else "", replica.address, replica.id)


def _number(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text
