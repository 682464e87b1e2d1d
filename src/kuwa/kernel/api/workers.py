"""The routes by which executors join and leave, and the page that shows who is there: `/v1.0/worker/*`.

Old executors send `name` and `endpoint` and read a word of plain text; ours send the field `kuwa` as well and read
a lease. The chat routes of the same wire are in `dialects/v1`.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from time import monotonic, time
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from kuwa import __version__
from kuwa.kernel.api import page
from kuwa.kernel.api.errors import wants_json
from kuwa.kernel.api.page import Cell
from kuwa.kernel.dispatcher import Dispatcher
from kuwa.kernel.health import settle
from kuwa.kernel.registry import UNLIMITED, Registry, Replica
from kuwa.kernel.trust import EndpointRule, check_registration
from kuwa.wire import lease
from kuwa.wire.errors import MethodNotAllowed, ModelNotFound, NoReplica, NotFound
from kuwa.wire.form import parse_form, required
from kuwa.wire.names import check_access_code

REFRESH_S = 3

OldStatus = dict[str, list[list[object]]]


class WorkerApi:
    """The endpoints of `/v1.0/worker/`. `draining` says whether the kernel is stopping."""

    def __init__(
        self,
        registry: Registry,
        dispatcher: Dispatcher,
        rule: EndpointRule,
        *,
        draining: Callable[[], bool],
        late_usage: Callable[[list[lease.EndedRequest]], None],
    ) -> None:
        self._registry = registry
        self._dispatcher = dispatcher
        self._rule = rule
        self._draining = draining
        self._late_usage = late_usage

    async def register(self, request: Request) -> Response:
        form = await _form(request)
        name, endpoint = required(form, "name", "endpoint")
        peer = _peer(request)
        check_access_code(name)
        endpoint = endpoint.rstrip("/")
        self._rule.check(endpoint, peer)
        now = monotonic()
        if not form.get("kuwa"):
            self._registry.register_old(name, endpoint, now, peer)
            answer = None
        else:
            registration = lease.decode_registration(form["kuwa"])
            check_registration(registration, self._rule, peer, time())
            answer = self._registry.register(registration, now, peer)
            self._late_usage(registration.ended)
        settle(self._registry, self._dispatcher, now)
        if answer is None or not wants_json(request):
            return PlainTextResponse("Success")
        answer = msgspec.structs.replace(answer, kernel=f"kuwa {__version__}")
        return Response(lease.encode(answer), media_type="application/json")

    async def unregister(self, request: Request) -> Response:
        name, endpoint = required(await _form(request), "name", "endpoint")
        self._rule.check(endpoint.rstrip("/"), _peer(request))
        now = monotonic()
        known = self._registry.unregister(name, endpoint, now)
        settle(self._registry, self._dispatcher, now)
        if not known:
            raise NotFound(f"No executor of {name!r} is registered at {endpoint!r}.")
        return PlainTextResponse("Success")

    async def schedule(self, request: Request) -> Response:
        """READY: a slot is held for the chat to come; BUSY: none is free; NOMACHINE: nobody serves that name."""
        name, history_id, user_id = required(await _form(request), "name", "history_id", "user_id")
        if self._draining():
            return PlainTextResponse("BUSY")
        try:
            free = self._dispatcher.reserve(name, (history_id, user_id), monotonic())
        except (ModelNotFound, NoReplica):
            return PlainTextResponse("NOMACHINE")
        return PlainTextResponse("READY" if free else "BUSY")

    async def list(self, request: Request) -> Response:
        del request
        return Response(msgspec.json.encode(self._registry.codes()), media_type="application/json")

    async def debug(self, request: Request) -> Response:
        """Who is registered and what they do: a page for people, JSON when asked for it. Read-only."""
        if request.method == "POST":
            raise MethodNotAllowed(
                "The registry cannot be written by this route. Executors join by POST /v1.0/worker/register and "
                "leave by POST /v1.0/worker/unregister."
            )
        now = monotonic()
        if wants_json(request):
            return Response(msgspec.json.encode(self._report(now)), media_type="application/json")
        return page.respond("Kuwa: what is served", self._page(now), refresh_s=REFRESH_S, wide=True)

    def _report(self, now: float) -> dict[str, Any]:
        replicas = sorted(self._registry.all_replicas(), key=_order)
        codes = sorted({code for replica in replicas if replica.alive for code in replica.access_codes})
        return {
            "kernel": {"version": __version__, "draining": self._draining()},
            "models": [{"access_code": code, **self._queue(code)} for code in codes],
            "replicas": [_described(replica, now) for replica in replicas if replica.alive],
            "gone": [_described(replica, now) for replica in replicas if not replica.alive],
            "v1.0": self._old_status(),
        }

    def _queue(self, access_code: str) -> dict[str, int]:
        waiting, size = self._dispatcher.waiting(access_code)
        return {"waiting": waiting, "waiting_bytes": size}

    def _old_status(self) -> OldStatus:
        """What the old kernel showed: per access code [endpoint, READY or BUSY, history_id, user_id]."""
        holders = self._dispatcher.holders()
        status: OldStatus = {}
        for replica in sorted(self._registry.all_replicas(), key=_order):
            if not replica.alive:
                continue
            free = replica.state == "ready" and replica.running < replica.slots
            ids = [_number(value) for value in holders.get(replica, ("-1", "-1"))]
            for code in replica.access_codes:
                status.setdefault(code, []).append(
                    [replica.endpoint or replica.base_url, "READY" if free else "BUSY", *ids]
                )
        return status

    def _page(self, now: float) -> str:
        replicas = sorted(self._registry.all_replicas(), key=_order)
        alive = [replica for replica in replicas if replica.alive]
        gone = [replica for replica in replicas if not replica.alive]
        running = sum(replica.running for replica in alive)
        parts = [
            "<h1>Kuwa: what is served</h1>",
            (
                f'<p class="dim">Kuwa {escape(__version__)} · executors: {len(alive)} · requests running: {running}'
                f"{' · <strong>the kernel is stopping</strong>' if self._draining() else ''}"
                f" · renewed every {REFRESH_S} s</p>"
            ),
        ]
        if alive:
            parts.append(page.table(_HEADS, (self._row(code, r, now) for r in alive for code in r.access_codes)))
        else:
            parts.append("<p>No executor is registered. Start one: <code>kuwa-executor debug</code></p>")
        if gone:
            parts.append("<h2>Gone within the last minute</h2>")
            parts.append(page.table(_GONE_HEADS, (_gone_row(replica, now) for replica in gone)))
        parts.append(
            "<details><summary>As JSON, in the form of the v1.0 kernel</summary>"
            f"<pre>{_json_in_html(self._old_status())}</pre></details>"
            '<p class="dim">In full: <code>curl -H "Accept: application/json"</code> on this address.</p>'
        )
        return "".join(parts)

    def _row(self, code: str, replica: Replica, now: float) -> list[Cell]:
        slots = "∞" if replica.slots >= UNLIMITED else str(replica.slots)
        return [
            Cell(code, "m"),
            Cell(replica.executor or replica.source),
            Cell(replica.address, "m"),
            Cell(replica.state, word=replica.state),
            Cell(f"{replica.running} / {slots}", "n"),
            Cell(self._dispatcher.waiting(code)[0], "n"),
            Cell(_load(replica)),
            Cell(page.duration(now - replica.since), "n"),
        ]


_HEADS = (
    ("Access code", ""),
    ("Executor", ""),
    ("Endpoint", ""),
    ("State", ""),
    ("Slots", "n"),
    ("Waiting", "n"),
    ("Load", ""),
    ("Since", "n"),
)
_GONE_HEADS = (("Access code", ""), ("Endpoint", ""), ("Why", ""), ("Since", "n"))


def _gone_row(replica: Replica, now: float) -> list[Cell]:
    return [
        Cell(" ".join(replica.access_codes), "m"),
        Cell(replica.address, "m"),
        Cell(replica.note or "unregistered or replaced"),
        Cell(page.duration(now - replica.since), "n"),
    ]


def _load(replica: Replica) -> str:
    """What the executor itself said last, in a few words."""
    load = replica.load
    words = [f"{load.tokens_per_s:.0f} tokens/s"] if load.tokens_per_s >= 0.5 else []
    if load.waiting:
        words.append(f"{load.waiting} waiting there")
    if replica.note:
        words.append(replica.note)
    return ", ".join(words)


def _described(replica: Replica, now: float) -> dict[str, Any]:
    return {
        "id": replica.id,
        "access_codes": replica.access_codes,
        "endpoint": replica.address,
        "wire": replica.wire,
        "source": replica.source,
        "executor": replica.executor,
        "version": replica.version,
        "state": replica.state,
        "since_s": round(now - replica.since, 3),
        "slots": replica.slots if replica.slots < UNLIMITED else None,
        "running": replica.running,
        "load": replica.load,
        "capabilities": sorted(replica.capabilities),
        "context_length": replica.context_length,
        "registered_from": replica.registered_from,
        "note": replica.note,
    }


def _order(replica: Replica) -> tuple[str, str, str]:
    return (replica.access_codes[0] if replica.access_codes else "", replica.address, replica.id)


def _number(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


def _json_in_html(value: object) -> str:
    """JSON that reads the same to a scraper and to a browser: escaped by JSON's own means, not by HTML's."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


async def _form(request: Request) -> dict[str, str]:
    return parse_form(await request.body())


def _peer(request: Request) -> str:
    return request.client.host if request.client is not None else ""
