"""The story of one request: admit, acquire a slot, relay, account. Read this file first.

A dialect (`kernel/api`) has made an exchange into a `Call`; `Chat.serve` starts its story. Slot release, cancel,
failover and accounting each live here and nowhere else. The story is a generator driven by hand (`story`): it yields
where it waits for a slot or for the end of an attempt.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator
from typing import Any, Protocol, cast

import msgspec

from kuwa.http.client import fetch
from kuwa.http.exchange import Exchange
from kuwa.http.upstream import Origin, UpstreamPool, UpstreamRequest
from kuwa.kernel.dispatcher import Dispatcher
from kuwa.kernel.health import settle
from kuwa.kernel.metrics import UNKNOWN, Metrics, Tally
from kuwa.kernel.policy import PolicyName, Trail
from kuwa.kernel.quarantine import Quarantine
from kuwa.kernel.queue import Ticket
from kuwa.kernel.registry import Registry, Replica
from kuwa.kernel.relay import Clock, Relay
from kuwa.kernel.resume import Journal, Journals, Replay
from kuwa.kernel.story import Steps, Story
from kuwa.kernel.translate import brought_keys, without_provider_key
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
from kuwa.wire.redaction import Redactor

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


Outgoing = tuple[str, bytes, bytes]
"""A request as a replica is to get it: the URL, its content type, and the body."""


class Dialect(Protocol):
    """What differs between the client dialects. Implemented in `kernel/api`."""

    def outgoing(self, call: Call, replica: Replica) -> Outgoing:
        """The request in the replica's wire. Raises Unsupported for what that wire cannot carry."""
        ...

    def trail(self, call: Call, policy: PolicyName) -> Trail:
        """What the policy of the call's access code knows its conversation, or its session, by."""
        ...

    def relay(self, call: Call, replica: Replica, clock: Clock) -> Relay:
        """What brings the replica's answer to the client; one that writes `call.journal`, so that the answer may
        outlive the replica, or goes on by `call.replay` with what another one began, where the dialect can."""
        ...

    def fail(self, call: Call, error: KuwaError) -> None: ...
    def aborted(self, call: Call) -> None:
        """Close the client's response after an abort, keeping what was delivered."""
        ...


class Call(Ticket, kw_only=True):
    """One request, whichever dialect it came in, and how far it has come. It is its own ticket at the dispatcher.

    `own_id` is `id` as it travels. `body` is the OpenAI body that an executor gets, `route` the path below its URL.
    `forwarded` are the client's headers that travel on, `reply_headers` those of every answer, as lines. `key` is the
    v1.0 pair (history_id, user_id), `form` the v1.0 form as it came. `whole`: the replica's answer is one piece.
    `progress`: the client wants to be told, by comments in its stream, how long it will have to wait.

    `relay` is that of the current attempt, or of the last one; `unheard` counts the attempts of which no replica ever
    knew; `lost_at` is how much had been delivered when the replica before was lost.
    """

    id: str
    own_id: bytes
    dialect: Dialect
    exchange: Exchange
    route: str
    body: bytes
    forwarded: bytes
    reply_headers: bytes
    whole: bool = False
    include_usage: bool = False
    progress: bool = False
    form: dict[str, str] | None = None
    story: Story | None = None
    started_at: float = 0.0
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

    def journal_at(self, replica: Replica) -> Journal | None:
        """What is kept of an answer by this replica."""
        return self.journal if replica.resumes else None

    def interrupt(self, error: BaseException) -> None:
        """Raise `error` where the story waits."""
        if self.story is not None:
            self.story.interrupt(error)


RouteKey = tuple[str, bytes, bytes, bool]
"""URL, content type, the Authorization header, and whether streams may be gone on with."""


class Route(msgspec.Struct, frozen=True):
    """Where a request goes on its replica: the origin, and the request's head up to the request's id."""

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
        self._routes: dict[RouteKey, Route] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self.draining = False

    def serve(self, call: Call) -> None:
        """Start the story of `call`; it answers through its exchange."""
        dispatcher = self._dispatcher
        if dispatcher.policies and (policy := dispatcher.policy_of(call.access_code)) != "least_loaded":
            call.trail = call.dialect.trail(call, policy)
        call.started_at = self._clock.time()
        call.story = story = Story(self._story(call), call.exchange.abort)
        call.exchange.on_gone = story.client_gone
        self._calls[call.id] = call
        story.wake()

    # ---- the story -----------------------------------------------------------------------------------------

    def _story(self, call: Call) -> Steps:
        """Attempt after attempt, each on another replica, until one answers or none is left."""
        dispatcher = self._dispatcher
        failure: KuwaError | None = None
        try:
            if self.draining:
                raise Draining("This kernel is shutting down; send the request again in a moment.")
            if self._quarantine.suspects:
                self._quarantine.check(call.access_code, call.body, call.started_at)
            while True:
                try:
                    replica = dispatcher.acquire(call, self._clock.now)
                    if replica is None:
                        replica = yield from self._queued(call)
                except NoReplica:
                    if failure is None:
                        raise
                    raise self._last_word(call, failure) from failure
                try:
                    relay = self._attempt(call, replica)
                    try:
                        while not relay.over:
                            yield
                    except BaseException:
                        relay.cancel()
                        self._tell_abort(replica)
                        raise
                finally:
                    settled = dispatcher.release(call, self._clock.now)
                    if settled:
                        self.settle(settled)
                if relay.error is None and relay.refusal is None:
                    break
                failure = self._failed(call, replica, relay, failure)
            if not replica.breaker.closed or self._quarantine.suspects:
                self._went_well(call, replica)
            self._account(call, relay)
        except ClientGone:
            self._account_failure(call, "cancelled")
        except Aborted:
            self._account_failure(call, "cancelled")
            call.dialect.aborted(call)
        except KuwaError as error:
            self._account_failure(call, error.code)
            call.dialect.fail(call, error)
        except Exception:
            log.exception("request %s failed inside the kernel", call.id)
            self._account_failure(call, InternalError.code)
            call.dialect.fail(call, InternalError("The kernel failed; its log says why."))
        finally:
            del self._calls[call.id]
            if call.journal is not None:
                call.journal.drop()

    def _queued(self, call: Call) -> Generator[None, None, Replica]:
        """Wait for a slot. Raises what the ticket was refused with."""
        since = self._clock.time()
        story = cast("Story", call.story)
        call.granted = story.wake
        try:
            while call.queued:
                yield
        except BaseException:
            self.settle(self._dispatcher.cancel(call, self._clock.now))
            raise
        call.queue_s += self._clock.time() - since
        if call.error is not None:
            raise call.error
        return cast("Replica", call.replica)

    def _attempt(self, call: Call, replica: Replica) -> Relay:
        """Send the request to `replica`; the relay wakes the story when the answer has come to its end."""
        url, content_type, body = call.dialect.outgoing(call, replica)
        key = (url, content_type, replica.authorization, replica.resumes)
        route = self._routes.get(key) or self._new_route(key)
        if replica.resumes and not call.whole and call.journal is None:
            call.journal = Journal(self._journals)
        if call.replay is not None:
            body = call.replay.request(body)
        call.attempts += 1
        call.relay = relay = call.dialect.relay(call, replica, self._clock)
        relay.on_over = cast("Story", call.story).wake
        forwarded = call.forwarded if replica.source != "upstream" else without_provider_key(call.forwarded)
        head = b"%b%b\r\n%bcontent-length: %d\r\n\r\n" % (route.head, call.own_id, forwarded, len(body))
        # After a failure no connection is trusted that was open before it.
        send = self._pool.send if call.attempts == 1 else self._pool.dial
        send(UpstreamRequest(route.origin, head, body), relay)
        return relay

    def _failed(self, call: Call, replica: Replica, relay: Relay, before: KuwaError | None) -> KuwaError:
        """Make ready for another attempt; gives what the client is told if there is none. Raises that where there is
        no going on."""
        verdict = judge(relay, replica)
        failure = verdict.error
        if before is not None and call.replay is not None and not isinstance(failure, UpstreamLost):
            failure = before  # what became of an attempt to go on is not what the client is told
        self._went_wrong(call, replica, verdict)
        if not verdict.elsewhere:
            raise failure
        if (relay.error is not None and relay.begun) or call.replay is not None:
            self._prepare_resume(call, failure)
        elif verdict.refused:
            call.unheard += 1
        elif call.attempts - call.unheard >= MAX_ATTEMPTS:
            raise self._last_word(call, failure)
        if not verdict.again:
            call.excluded |= {replica.id}
        return failure

    def _last_word(self, call: Call, failure: KuwaError) -> KuwaError:
        """What the client is told of attempts that failed: where no replica is well, to come again later."""
        code = call.access_code
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
        others = self._registry.replicas(call.access_code)
        fingerprint = replay.announced.fingerprint
        call.excluded |= {other.id for other in others if other.fingerprint != fingerprint}
        call.replay = replay
        call.resumes += 1

    def _went_well(self, call: Call, replica: Replica) -> None:
        if not replica.breaker.closed:
            self._registry.worked(replica)
            settle(self._registry, self._dispatcher, self._clock.time())
        self._quarantine.cleared(call.access_code, call.body)

    def _went_wrong(self, call: Call, replica: Replica, verdict: Verdict) -> None:
        """Hold the failed attempt against the replica, and a death against the request. Raises RequestQuarantined."""
        now = self._clock.time()
        # The log and the status page are not for the eyes of this client alone.
        said = Redactor(*brought_keys(call.forwarded, call.form))(verdict.error.message)
        if verdict.elsewhere:
            log.warning("request %s failed at %s: %s", call.id, replica.address, said)
        if verdict.fault:
            self._registry.failed(replica, now, said)
        if verdict.refused or verdict.death:
            self._registry.doubt(replica, now)
        settle(self._registry, self._dispatcher, now)
        if verdict.death and self._counts(call):
            self._quarantine.died(call.access_code, call.body, replica.id, now)
            self._quarantine.check(call.access_code, call.body, now)

    def _counts(self, call: Call) -> bool:
        """Whether this death speaks against the request: what kills does so at the same place each time."""
        before, call.lost_at = call.lost_at, call.kept_bytes
        if call.replay is None:
            return True
        if call.lost_at > before:  # it got past the place of the death before, so that one was not its doing
            self._quarantine.cleared(call.access_code, call.body)
            return True
        return call.replay.done

    # ---- what the story stands on --------------------------------------------------------------------------

    def _new_route(self, key: RouteKey) -> Route:
        url, content_type, authorization, resumes = key
        origin = Origin.of(url)
        path = url.partition("://")[2].partition("/")[2]
        head = b"POST /%b HTTP/1.1\r\nhost: %b\r\ncontent-type: %b\r\n" % (
            path.encode(),
            origin.host_header,
            content_type,
        )
        if authorization:
            head += b"authorization: %b\r\n" % authorization
        if resumes:
            head += resume.HEADER + b": 1\r\n"
        if len(self._routes) >= MAX_ROUTES:
            self._routes.clear()
        route = self._routes[key] = Route(origin, head + b"x-kuwa-request-id: ")
        return route

    def settle(self, settled: list[Ticket]) -> None:
        """Tell the stories of tickets that the dispatcher has granted or refused."""
        for ticket in settled:
            if ticket.granted is not None:
                ticket.granted()

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

    def _account(self, call: Call, relay: Relay) -> None:
        """Count a request that went well."""
        tally = self._metrics.of(call.access_code)
        tally.outcomes["ok"] += 1
        first_s = relay.first_content_at - call.started_at
        if call.whole:
            tally.whole_time.observe(first_s)
        else:
            tally.request_time.observe(self._clock.time() - call.started_at)
            if not call.resumes:
                tally.time_to_first_token.observe(first_s)
        if call.attempts > 1:
            self._account_attempts(call, tally, "resumed")
        elif call.queue_s:
            tally.queue_wait.observe(call.queue_s)
        else:
            tally.queue_wait.zeros += 1
        usage = relay.usage
        if usage is None:
            self._leave_unpaid(call, tally)
            return
        tally.prompt_tokens += usage.prompt_tokens
        tally.completion_tokens += usage.completion_tokens
        if usage.prompt_tokens_details is not None:
            tally.cached_tokens += usage.prompt_tokens_details.cached_tokens or 0

    def _account_failure(self, call: Call, label: str) -> None:
        relay = call.relay
        unknown = relay is None and label == ModelNotFound.code
        tally = self._metrics.of(UNKNOWN if unknown else call.access_code)
        tally.outcomes[label] += 1
        tally.request_time.observe(self._clock.time() - call.started_at)
        if relay is None:
            return
        if relay.first_content_at and not call.resumes:
            tally.time_to_first_token.observe(relay.first_content_at - call.started_at)
        self._account_attempts(call, tally, "cancelled" if label == "cancelled" else "failed")
        self._leave_unpaid(call, tally)

    def _account_attempts(self, call: Call, tally: Tally, resumed: str) -> None:
        tally.queue_wait.observe(call.queue_s)
        tally.retries += call.attempts - 1
        if call.resumes:
            self._metrics.resumes[resumed] += 1

    def _leave_unpaid(self, call: Call, tally: Tally) -> None:
        """What it cost may still be reported by its executor."""
        self._unpaid[call.id] = tally
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
            if now - call.told_at > (PROGRESS_S if call.progress else PING_S):
                self._tell(call, now)
        self._quarantine.sweep(now)

    def _check(self, call: Call, now: float) -> None:
        relay, replica = call.relay, call.replica
        if relay is None or relay.connection is None or relay.over or replica is None:
            return
        connection = relay.connection
        if replica.lost:
            relay.on_lost(UpstreamLost("The executor does not renew its lease any more; it is dead or frozen."))
        elif now - call.started_at > TOTAL_S:
            relay.on_lost(UpstreamTimeout(f"The request took longer than {TOTAL_S:g} s."))
        elif not connection.paused:
            limit = TOTAL_S if call.whole else IDLE_S if relay.first_content_at else self._first_token_s
            if now - connection.since > limit:
                relay.on_lost(UpstreamTimeout(f"The executor sent nothing for {limit:g} s."))

    def _tell(self, call: Call, now: float) -> None:
        """A comment into a stream that is silent, so that whoever stands between does not cut it; before the first
        content only where the client asked for it, since a comment commits the status 200."""
        call.told_at = now
        exchange, relay = call.exchange, call.relay
        if call.whole or exchange.gone or exchange.ended:
            return
        if exchange.started and relay is not None and relay.begun:
            connection = relay.connection
            silent = connection is not None and not connection.paused and now - connection.since > PING_S
            if silent and relay.takes_comments:
                exchange.write(sse.comment("ping"))
        elif call.progress:
            waited_s = now - call.started_at
            if call.queued:
                position = self._dispatcher.ahead_of(call)
                text = f"queued position={position} wait_s={waited_s:.1f}"
            else:
                text = f"running wait_s={waited_s:.1f}"
            if not exchange.started:
                exchange.start(200, call.reply_headers + b"content-type: text/event-stream\r\n")
            exchange.write(sse.comment(text))

    def cancel(self, request_id: str, principal: str) -> bool:
        """End the request with this id for whom it belongs to. Whether there was one of theirs."""
        call = self._calls.get(request_id)
        if call is None or call.principal != principal:
            return False
        call.interrupt(Aborted())
        return True

    def abort(self, keys: set[tuple[str, str]]) -> int:
        """End the v1.0 requests with these (history_id, user_id). Returns how many there were."""
        calls = [call for call in self._calls.values() if call.key in keys]
        for call in calls:
            call.interrupt(Aborted())
        return len(calls)

    def end_all(self, error: KuwaError) -> None:
        """End every request with `error`."""
        for call in list(self._calls.values()):
            call.interrupt(error)

    def status(self, request_id: str) -> dict[str, Any] | None:
        """What a request is doing: queued (with its position) or running; None where none has that id."""
        call = self._calls.get(request_id)
        if call is None:
            return None
        now = self._clock.time()
        state: dict[str, Any] = {
            "id": request_id,
            "model": call.access_code,
            "age_s": round(now - call.started_at, 3),
        }
        if call.queued:
            return {**state, "state": "queued", "position": self._dispatcher.ahead_of(call)}
        return {**state, "state": "running", "attempt": call.attempts}
