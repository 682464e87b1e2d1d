"""The story of one request: admit, acquire a slot, relay, account. Read this file first.

A dialect (`kernel/api`) has made an exchange into a `ChatRequest`; `Chat.serve` starts its story. Slot release,
cancel, failover and accounting each live here and nowhere else. The story is driven by hand (`story`), so its
awaits are signals: a slot granted, a connection made, an attempt ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from kuwa.http.client import fetch
from kuwa.http.exchange import Exchange, HeaderPair
from kuwa.http.upstream import Origin, UpstreamConnection, UpstreamPool
from kuwa.kernel.dispatcher import Dispatcher
from kuwa.kernel.health import settle
from kuwa.kernel.metrics import UNKNOWN, Metrics, Tally
from kuwa.kernel.policy import PolicyName, Trail
from kuwa.kernel.quarantine import Quarantine
from kuwa.kernel.queue import Ticket
from kuwa.kernel.registry import Registry, Replica
from kuwa.kernel.relay import Clock, Outcome, Relay
from kuwa.kernel.resume import Journal, Journals, Replay
from kuwa.kernel.story import Signal, Story
from kuwa.kernel.verdict import Verdict, judge
from kuwa.wire import resume, sse
from kuwa.wire.errors import (
    ClientGone,
    Draining,
    InternalError,
    KuwaError,
    ModelNotFound,
    NoReplica,
    UpstreamLost,
    UpstreamTimeout,
)
from kuwa.wire.lease import EndedRequest

log = logging.getLogger("kuwa.kernel.chat")

MAX_ATTEMPTS = 3
MAX_RESUMES = 3
PING_S = 10.0
PROGRESS_S = 1.0
IDLE_S = 30.0
TOTAL_S = 3600.0
ABORT_TIMEOUT_S = 2.0
MAX_ROUTES = 10_000
MAX_UNPAID = 10_000


class Aborted(Exception):
    """Somebody with the right to do so ended this request; what was delivered stands."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request as a replica is to get it: the URL, its content type, and the body."""

    url: str
    content_type: bytes
    body: bytes


class Dialect(Protocol):
    """What differs between the client dialects. Implemented in `kernel/api`."""

    def outgoing(self, request: ChatRequest, replica: Replica) -> Outgoing:
        """The request in the replica's wire. Raises Unsupported for what that wire cannot carry."""
        ...

    def trail(self, exchange: Exchange, request: ChatRequest, policy: PolicyName) -> Trail:
        """What the policy of the request's access code knows its conversation, or its session, by."""
        ...

    def relay(
        self,
        exchange: Exchange,
        request: ChatRequest,
        replica: Replica,
        clock: Clock,
        journal: Journal | None,
        replay: Replay | None,
    ) -> Relay:
        """What brings the replica's answer to the client; with `journal` so that it may outlive the replica, with
        `replay` where it goes on with what another one began."""
        ...

    def fail(self, exchange: Exchange, request: ChatRequest, error: KuwaError) -> None: ...
    def aborted(self, exchange: Exchange, request: ChatRequest) -> None:
        """Close the client's response after an abort, keeping what was delivered."""
        ...


@dataclass(slots=True, kw_only=True)
class ChatRequest:
    """One request, whichever dialect it came in.

    `body` is the OpenAI body that an executor gets; `route` the path under its base URL. `forwarded` are the
    client's headers that travel on, `reply_headers` those of every answer. `key` is the v1.0 pair
    (history_id, user_id), `form` the v1.0 form as it came. `whole`: the replica's answer is one piece.
    `progress`: the client wants to be told, by comments in its stream, how long it will have to wait.
    """

    id: str
    dialect: Dialect
    access_code: str
    principal: str
    route: str
    body: bytes
    whole: bool = False
    include_usage: bool = False
    progress: bool = False
    forwarded: tuple[HeaderPair, ...] = ()
    reply_headers: tuple[HeaderPair, ...] = ()
    key: tuple[str, str] | None = None
    form: dict[str, str] | None = None


@dataclass(slots=True, eq=False)
class Call:
    """A request under way. `replica` and `relay` are those of the current attempt; `unheard` counts the attempts of
    which no replica ever knew."""

    request: ChatRequest
    exchange: Exchange
    ticket: Ticket
    started_at: float
    story: Story | None = None
    replica: Replica | None = None
    connection: UpstreamConnection | None = None
    relay: Relay | None = None
    journal: Journal | None = None
    replay: Replay | None = None
    queue_s: float = 0.0
    attempts: int = 0
    unheard: int = 0
    resumes: int = 0
    lost_at: int = 0
    told_at: float = 0.0

    @property
    def kept_bytes(self) -> int:
        """How much is kept of what was delivered, so that another replica may go on."""
        return self.journal.bytes if self.journal is not None else 0


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes on its replica: the origin, and the request's head up to what differs each time."""

    origin: Origin
    head: bytes


class Chat:
    """Serves every request that a model answers, of every dialect."""

    def __init__(
        self,
        *,
        registry: Registry,
        dispatcher: Dispatcher,
        pool: UpstreamPool,
        metrics: Metrics,
        clock: Clock,
        first_token_s: float = 120.0,
    ) -> None:
        """`first_token_s`: how long a replica may be silent before the first content; a comment is no silence."""
        self._registry = registry
        self._dispatcher = dispatcher
        self._pool = pool
        self._metrics = metrics
        self._clock = clock
        self._quarantine = Quarantine()
        self._journals = Journals()
        self._first_token_s = first_token_s
        self._calls: dict[str, Call] = {}
        self._unpaid: dict[str, Tally] = {}
        self._routes: dict[tuple[str, bytes, bytes, bool], Route] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self.draining = False

    def serve(self, exchange: Exchange, request: ChatRequest) -> None:
        """Start the story of `request`; it answers through `exchange`."""
        ticket = Ticket(request.access_code, request.principal, len(request.body), request.key)
        policy = self._dispatcher.policy_of(request.access_code)
        if policy != "least_loaded":
            ticket.trail = request.dialect.trail(exchange, request, policy)
        call = Call(request, exchange, ticket, self._clock.time())
        call.story = story = Story(self._story(call))
        self._calls[request.id] = call
        exchange.on_gone = lambda: story.interrupt(ClientGone())
        story.start()

    # ---- the story -----------------------------------------------------------------------------------------

    async def _story(self, call: Call) -> None:
        request, exchange = call.request, call.exchange
        outcome: Outcome | None = None
        try:
            if self.draining:
                raise Draining("This kernel is shutting down; send the request again in a moment.")
            if not self._quarantine.empty:
                self._quarantine.check(request.access_code, request.body, self._clock.time())
            outcome = await self._answer(call)
            label = "ok"
        except ClientGone:
            label = "cancelled"
        except Aborted:
            label = "cancelled"
            request.dialect.aborted(exchange, request)
        except KuwaError as error:
            label = error.code
            request.dialect.fail(exchange, request, error)
        except Exception:
            label = InternalError.code
            log.exception("request %s failed inside the kernel", request.id)
            request.dialect.fail(exchange, request, InternalError("The kernel failed; its log says why."))
        finally:
            del self._calls[request.id]
            if call.journal is not None:
                call.journal.drop()
        self._account(call, label, outcome)

    async def _answer(self, call: Call) -> Outcome:
        """Attempt after attempt, each on another replica, until one answers or none is left."""
        failure: KuwaError | None = None
        while True:
            try:
                async with self._slot(call) as replica:
                    outcome = await self._attempt(call, replica)
            except NoReplica:
                if failure is None:
                    raise
                raise self._last_word(call, failure) from failure
            verdict = judge(outcome, replica)
            if verdict.error is None:
                self._went_well(call, replica)
                return outcome
            if failure is None or call.replay is None or isinstance(verdict.error, UpstreamLost):
                failure = verdict.error  # what became of an attempt to go on is not what the client is told
            self._went_wrong(call, replica, verdict)
            if not verdict.elsewhere:
                raise failure
            if outcome.delivered or call.replay is not None:
                self._prepare_resume(call, failure)
            elif verdict.refused:
                call.unheard += 1
            elif call.attempts - call.unheard >= MAX_ATTEMPTS:
                raise self._last_word(call, failure)
            call.ticket.excluded |= {replica.id}

    def _last_word(self, call: Call, failure: KuwaError) -> KuwaError:
        """What the client is told of attempts that failed: where no replica is well, to come again later."""
        code = call.request.access_code
        if call.relay is None or call.relay.begun:
            return failure
        if not all(replica.breaker.tripped for replica in self._registry.replicas(code)):
            return failure
        return NoReplica(f"Every executor of the model {code!r} is failing at present. {failure.message}")

    def _prepare_resume(self, call: Call, failure: KuwaError) -> None:
        """The client has part of an answer whose replica is lost: have the rest computed by one that is the same.

        Raises `failure` where that cannot be.
        """
        replay = call.journal.replay() if call.journal is not None else None
        if replay is None or call.resumes == MAX_RESUMES:
            self._metrics.resumes["impossible"] += 1
            raise failure
        others = self._registry.replicas(call.request.access_code)
        fingerprint = replay.announced.fingerprint
        call.ticket.excluded |= {other.id for other in others if other.fingerprint != fingerprint}
        call.replay = replay
        call.resumes += 1

    def _went_well(self, call: Call, replica: Replica) -> None:
        if not replica.breaker.closed:
            self._registry.worked(replica)
            settle(self._registry, self._dispatcher, self._clock.time())
        if not self._quarantine.empty:
            self._quarantine.cleared(call.request.access_code, call.request.body)

    def _went_wrong(self, call: Call, replica: Replica, verdict: Verdict) -> None:
        """Hold the failed attempt against the replica, and a death against the request. Raises RequestQuarantined."""
        request, now = call.request, self._clock.time()
        if verdict.elsewhere:
            log.warning("request %s failed at %s: %s", request.id, replica.address, verdict.error)
        if verdict.fault:
            self._registry.failed(replica, now, str(verdict.error))
        if verdict.refused or verdict.death:
            self._registry.doubt(replica, now)
        settle(self._registry, self._dispatcher, now)
        if verdict.death and self._counts(call):
            self._quarantine.died(request.access_code, request.body, replica.id, now)
            self._quarantine.check(request.access_code, request.body, now)

    def _counts(self, call: Call) -> bool:
        """Whether this death speaks against the request: what kills does so at the same place each time."""
        before, call.lost_at = call.lost_at, call.kept_bytes
        if call.replay is None:
            return True
        if call.lost_at > before:  # it got past the place of the death before, so that one was not its doing
            self._quarantine.cleared(call.request.access_code, call.request.body)
            return True
        return call.replay.done

    def _slot(self, call: Call) -> _Slot:
        return _Slot(self, call)

    async def _attempt(self, call: Call, replica: Replica) -> Outcome:
        """Send the request to `replica` and hear the answer to its end."""
        request, exchange = call.request, call.exchange
        outgoing = request.dialect.outgoing(request, replica)
        route = self._route(outgoing, replica)
        body, replay, journal = outgoing.body, call.replay, None
        if replica.resumes and not request.whole:
            journal = call.journal = call.journal or Journal(self._journals)
        if replay is not None:
            body = replay.request(body)
        message = self._message(route, request, body)
        call.attempts += 1
        connection = self._pool.take(route.origin)
        while True:
            if connection is None:
                try:
                    connection = await self._connect(route.origin)
                except NoReplica as error:
                    return Outcome(error=error)
            relay = request.dialect.relay(exchange, request, replica, self._clock, journal, replay)
            call.connection, call.relay = connection, relay
            exchange.source = connection
            try:
                connection.send(message, relay)
                if exchange.congested:
                    connection.pause()
                outcome = await relay.outcome
            except BaseException:
                self._tell_abort(replica)
                raise
            finally:
                exchange.source = None
                connection.cancel(relay)
            if outcome.error is None or not connection.reused or connection.received:
                return outcome
            # A pooled connection may have been closed by the replica just as the request went out: a fresh one tells.
            connection = None

    async def _connect(self, origin: Origin) -> UpstreamConnection:
        """A new connection, made in a task of its own. Raises NoReplica."""
        made: Signal[UpstreamConnection] = Signal()

        async def connect() -> None:
            try:
                connection = await self._pool.connect(origin)
            except KuwaError as error:
                made.fail(error)
                return
            made.fire(connection)
            if not taken:
                connection.abandon()

        taken = True
        self._start_task(connect())
        try:
            return await made
        except BaseException:
            taken = False
            raise

    # ---- what the story stands on --------------------------------------------------------------------------

    def _route(self, outgoing: Outgoing, replica: Replica) -> Route:
        key = (outgoing.url, outgoing.content_type, replica.authorization, replica.resumes)
        route = self._routes.get(key)
        if route is None:
            origin = Origin.of(outgoing.url)
            path = outgoing.url.partition("://")[2].partition("/")[2]
            head = b"POST /%b HTTP/1.1\r\nhost: %b\r\ncontent-type: %b\r\n" % (
                path.encode(),
                origin.host_header,
                outgoing.content_type,
            )
            if replica.authorization:
                head += b"authorization: %b\r\n" % replica.authorization
            if replica.resumes:
                head += resume.HEADER + b": 1\r\n"
            if len(self._routes) >= MAX_ROUTES:
                self._routes.clear()
            route = self._routes[key] = Route(origin, head)
        return route

    @staticmethod
    def _message(route: Route, request: ChatRequest, body: bytes) -> bytes:
        forwarded = b"".join([b"%b: %b\r\n" % header for header in request.forwarded])
        return b"%bx-kuwa-request-id: %b\r\n%bcontent-length: %d\r\n\r\n%b" % (
            route.head,
            request.id.encode(),
            forwarded,
            len(body),
            body,
        )

    def settle(self, settled: list[Ticket]) -> None:
        """Tell the stories of tickets that the dispatcher has granted or refused."""
        for ticket in settled:
            if ticket.granted is not None:
                ticket.granted()

    def acquire(self, call: Call, granted: Callable[[], None]) -> Replica | None:
        call.ticket.granted = granted
        return self._dispatcher.acquire(call.ticket, self._clock.time())

    def release(self, call: Call) -> None:
        self.settle(self._dispatcher.cancel(call.ticket, self._clock.now))

    def now(self) -> float:
        return self._clock.time()

    def _tell_abort(self, replica: Replica) -> None:
        """An executor of the old wire goes on computing when its connection closes: tell it."""
        if replica.wire == "v1.0":
            self._start_task(self._abort_old(replica.endpoint + "/abort"))

    async def _abort_old(self, url: str) -> None:
        try:
            await fetch("GET", url, timeout_s=ABORT_TIMEOUT_S)
        except KuwaError as error:
            log.info("the abort of %s was not heard: %s", url, error)

    def _start_task(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _account(self, call: Call, label: str, outcome: Outcome | None) -> None:
        request = call.request
        unknown = label == ModelNotFound.code and not call.attempts
        tally = self._metrics.of(UNKNOWN if unknown else request.access_code)
        tally.outcomes[label] += 1
        tally.request_time.observe(self._clock.time() - call.started_at)
        if call.resumes:
            self._metrics.resumes[{"ok": "resumed", "cancelled": "cancelled"}.get(label, "failed")] += 1
        if call.attempts:
            tally.queue_wait.observe(call.queue_s)
            tally.retries += call.attempts - 1
        relay = call.relay
        if relay is not None and relay.first_content_at and not call.resumes:
            tally.time_to_first_token.observe(relay.first_content_at - call.started_at)
        if outcome is not None and outcome.usage is not None:
            tally.prompt_tokens += outcome.usage.prompt_tokens
            tally.completion_tokens += outcome.usage.completion_tokens
        elif call.attempts:
            self._unpaid[request.id] = tally
            if len(self._unpaid) > MAX_UNPAID:
                del self._unpaid[next(iter(self._unpaid))]

    def late_usage(self, ended: list[EndedRequest]) -> None:
        """Count what cut requests cost, as their executors report it afterwards; each once."""
        for one in ended:
            tally = self._unpaid.pop(one.request_id, None)
            if tally is not None:
                tally.prompt_tokens += one.prompt_tokens
                tally.completion_tokens += one.completion_tokens

    # ---- asked from elsewhere ------------------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        """Enforce the deadlines of replicas, tell clients that they are not forgotten; called a few times a second."""
        for call in list(self._calls.values()):
            self._check(call, now)
            if now - call.told_at > (PROGRESS_S if call.request.progress else PING_S):
                self._tell(call, now)
        self._quarantine.sweep(now)

    def _check(self, call: Call, now: float) -> None:
        connection, relay, replica = call.connection, call.relay, call.replica
        if connection is None or relay is None or replica is None or relay.outcome.fired:
            return
        if replica.lost:
            relay.on_lost(UpstreamLost("The executor does not renew its lease any more; it is dead or frozen."))
        elif now - call.started_at > TOTAL_S:
            relay.on_lost(UpstreamTimeout(f"The request took longer than {TOTAL_S:g} s."))
        elif not connection.paused:
            limit = TOTAL_S if call.request.whole else IDLE_S if relay.first_content_at else self._first_token_s
            if now - connection.since > limit:
                relay.on_lost(UpstreamTimeout(f"The executor sent nothing for {limit:g} s."))

    def _tell(self, call: Call, now: float) -> None:
        """A comment into a stream that is silent, so that whoever stands between does not cut it; before the first
        content only where the client asked for it, since a comment commits the status 200."""
        call.told_at = now
        exchange, relay, connection = call.exchange, call.relay, call.connection
        if call.request.whole or exchange.gone or exchange.ended:
            return
        if exchange.started and relay is not None and relay.begun:
            silent = connection is not None and not connection.paused and now - connection.since > PING_S
            if silent and relay.takes_comments:
                exchange.write(sse.comment("ping"))
        elif call.request.progress:
            waited_s = now - call.started_at
            if call.ticket.queued:
                position = self._dispatcher.ahead_of(call.ticket)
                text = f"queued position={position} wait_s={waited_s:.1f}"
            else:
                text = f"running wait_s={waited_s:.1f}"
            if not exchange.started:
                exchange.start(200, (*call.request.reply_headers, (b"content-type", b"text/event-stream")))
            exchange.write(sse.comment(text))

    def cancel(self, request_id: str, principal: str) -> bool:
        """End the request with this id for whom it belongs to. Whether there was one of theirs."""
        call = self._calls.get(request_id)
        if call is None or call.story is None or call.request.principal != principal:
            return False
        call.story.interrupt(Aborted())
        return True

    def abort(self, keys: set[tuple[str, str]]) -> int:
        """End the v1.0 requests with these (history_id, user_id). Returns how many there were."""
        calls = [call for call in self._calls.values() if call.request.key in keys]
        for call in calls:
            if call.story is not None:
                call.story.interrupt(Aborted())
        return len(calls)

    def end_all(self, error: KuwaError) -> None:
        """End every request with `error`."""
        for call in list(self._calls.values()):
            if call.story is not None:
                call.story.interrupt(error)

    def status(self, request_id: str) -> dict[str, Any] | None:
        """What a request is doing: queued (with its position) or running; None where none has that id."""
        call = self._calls.get(request_id)
        if call is None:
            return None
        now = self._clock.time()
        state: dict[str, Any] = {
            "id": request_id,
            "model": call.request.access_code,
            "age_s": round(now - call.started_at, 3),
        }
        if call.ticket.queued:
            return {**state, "state": "queued", "position": self._dispatcher.ahead_of(call.ticket)}
        return {**state, "state": "running", "attempt": call.attempts}


class _Slot:
    """`async with`: holds a slot for the call, waiting for one in the queue if it must."""

    __slots__ = ("_call", "_chat")

    def __init__(self, chat: Chat, call: Call) -> None:
        self._chat = chat
        self._call = call

    async def __aenter__(self) -> Replica:
        call = self._call
        granted: Signal[None] = Signal()
        replica = self._chat.acquire(call, lambda: granted.fire(None))
        if replica is None:
            waits_since = self._chat.now()
            try:
                await granted
            except BaseException:
                self._chat.release(call)
                raise
            if call.ticket.error is not None:
                raise call.ticket.error
            replica = call.ticket.replica
            call.queue_s += self._chat.now() - waits_since
        if replica is None:
            raise InternalError("A slot was granted without a replica.")
        call.replica = replica
        return replica

    async def __aexit__(self, *_: object) -> None:
        self._chat.release(self._call)
