"""The routes by which executors join and leave, and the page that shows who is there: `/v1.0/worker/*`.

Old executors send `name` and `endpoint` and read a word of plain text; ours send the field `kuwa` as well and read
a lease. The chat routes of the same wire are in `dialects/v1`.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from time import monotonic, time

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from kuwa import __version__
from kuwa.kernel.api import page
from kuwa.kernel.api.errors import wants_json
from kuwa.kernel.api.page import Cell
from kuwa.kernel.dispatcher import Dispatcher
from kuwa.kernel.health import settle
from kuwa.kernel.registry import Registry
from kuwa.kernel.trust import EndpointRule, check_registration
from kuwa.wire import lease
from kuwa.wire.errors import MethodNotAllowed, ModelNotFound, NoReplica, NotFound
from kuwa.wire.form import parse_form, required
from kuwa.wire.names import check_access_code
from kuwa.wire.report import Replica, Report, encode_report
from kuwa.words.phrases import duration

REFRESH_S = 3


class WorkerApi:
    """The endpoints of `/v1.0/worker/`. `report` makes the kernel's report; `draining`: whether it is stopping."""

    def __init__(
        self,
        registry: Registry,
        dispatcher: Dispatcher,
        rule: EndpointRule,
        *,
        report: Callable[[], Report],
        draining: Callable[[], bool],
        late_usage: Callable[[list[lease.EndedRequest]], None],
    ) -> None:
        self._registry = registry
        self._dispatcher = dispatcher
        self._rule = rule
        self._report = report
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
        report = self._report()
        if wants_json(request):
            return Response(encode_report(report), media_type="application/json")
        return page.respond("Kuwa: what is served", _page(report), refresh_s=REFRESH_S, wide=True)


def _page(report: Report) -> str:
    count, running = len(report.replicas), sum(replica.running for replica in report.replicas)
    parts = [
        "<h1>Kuwa: what is served</h1>",
        (
            f'<p class="dim">Kuwa {escape(report.kernel.version)} · executors: {count} · requests running: {running}'
            f"{' · <strong>the kernel is stopping</strong>' if report.kernel.draining else ''}"
            f" · renewed every {REFRESH_S} s</p>"
        ),
    ]
    if report.replicas:
        parts.append(page.table(_HEADS, (_row(report, code, replica) for code, replica in report.rows())))
    else:
        parts.append("<p>No executor is registered. Start one: <code>kuwa-executor debug</code></p>")
    if report.gone:
        parts.append("<h2>Gone within the last minute</h2>")
        parts.append(page.table(_GONE_HEADS, map(_gone_row, report.gone)))
    parts.append(
        "<details><summary>As JSON, in the form of the v1.0 kernel</summary>"
        f"<pre>{_json_in_html(report.v1_0)}</pre></details>"
        '<p class="dim">In full: <code>curl -H "Accept: application/json"</code> on this address.</p>'
    )
    return "".join(parts)


def _row(report: Report, code: str, replica: Replica) -> list[Cell]:
    slots = "∞" if replica.slots is None else str(replica.slots)
    return [
        Cell(code, "m"),
        Cell(replica.kind),
        Cell(replica.endpoint, "m"),
        Cell(replica.state_at(code), word=replica.state_at(code)),
        Cell(f"{replica.running} / {slots}", "n"),
        Cell(report.waiting(code), "n"),
        Cell(_load(code, replica)),
        Cell(duration(replica.since_s), "n"),
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


def _gone_row(replica: Replica) -> list[Cell]:
    return [
        Cell(" ".join(replica.access_codes), "m"),
        Cell(replica.endpoint, "m"),
        Cell(replica.note or "unregistered or replaced"),
        Cell(duration(replica.since_s), "n"),
    ]


def _load(code: str, replica: Replica) -> str:
    """What the executor itself said last, in a few words."""
    load = replica.load
    words = [f"{load.tokens_per_s:.0f} tokens/s"] if load.tokens_per_s >= 0.5 else []
    if load.waiting:
        words.append(f"{load.waiting} waiting there")
    if note := replica.note_at(code):
        words.append(note)
    return ", ".join(words)


def _json_in_html(value: object) -> str:
    """JSON that reads the same to a scraper and to a browser: escaped by JSON's own means, not by HTML's."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


async def _form(request: Request) -> dict[str, str]:
    return parse_form(await request.body())


def _peer(request: Request) -> str:
    return request.client.host if request.client is not None else ""
