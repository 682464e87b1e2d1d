"""The life of one request: admit, slot, attempt, verdict, again. Read this file first.

A dialect (`kernel/dialects`) has made an exchange into a `Call`; `Chat.serve` starts its story, a generator driven by
hand (`story`) that yields where it waits for a slot or for the end of an attempt. Slot release, cancel and failover
are decided here and nowhere else; what a failure means is decided in `verdict`, how long it may take in `deadlines`,
and what is counted in `accounting`.

1. Admit: a kernel that drains, and a request that has killed two replicas, end it here.
2. Slot: the dispatcher grants a replica, or the call waits in its queue.
3. Attempt: the replica's wire makes the request, a relay brings the answer to the client.
4. Verdict: an attempt that failed is held against the replica or the request. If another replica may do better, and
   nothing has been delivered or the stream can be resumed, the story goes back to 2.
5. Whatever ends the story, the client is answered once, and one outcome is written.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator
from typing import Any, Protocol, cast

from kuwa.http.client import fetch
from kuwa.http.origin import UpstreamRequest
from kuwa.http.upstream import UpstreamPool
from kuwa.kernel import deadlines
from kuwa.kernel.accounting import Ledger, Outcome
from kuwa.kernel.call import Aborted, Call
from kuwa.kernel.dispatcher import Dispatcher
from kuwa.kernel.health import settle
from kuwa.kernel.identity import brought_keys
from kuwa.kernel.policy import PolicyName, Trail
from kuwa.kernel.quarantine import Quarantine, digest_of
from kuwa.kernel.queue import Ticket
from kuwa.kernel.registry import Registry
from kuwa.kernel.relay import Clock, EventRelay, Relay, WholeRelay
from kuwa.kernel.replica import Replica
from kuwa.kernel.resume import Journal, Journals
from kuwa.kernel.routes import new_route
from kuwa.kernel.story import Steps, Story
from kuwa.kernel.verdict import Verdict, judge
from kuwa.kernel.wires import wire_of
from kuwa.wire.errors import (
    ClientGone,
    Draining,
    InternalError,
    KuwaError,
    ModelNotFound,
    NoReplica,
    RequestCancelled,
    UpstreamLost,
)
from kuwa.wire.redaction import Redactor

log = logging.getLogger("kuwa.kernel.chat")

MAX_ATTEMPTS = 3
MAX_RESUMES = 3
ABORT_TIMEOUT_S = 2.0


class LaysTrails(Protocol):
    """What is asked of a dialect here."""

    def trail(self, call: Call, policy: PolicyName) -> Trail: ...


class Chat:
    """Serves every request that a model answers, of every dialect."""

    def __init__(
        self,
        *,
        registry: Registry,
        dispatcher: Dispatcher,
        pool: UpstreamPool,
        ledger: Ledger,
        clock: Clock,
        first_token_s: float = 120.0,
    ) -> None:
        """`first_token_s`: how long a replica may be silent before the first content."""
        self._registry = registry
        self._dispatcher = dispatcher
        self._pool = pool
        self._ledger = ledger
        self._clock = clock
        self._quarantine = Quarantine()
        self._journals = Journals()
        self._first_token_s = first_token_s
        self._calls: dict[str, Call] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self.draining = False

    def serve(self, call: Call, dialect: LaysTrails) -> None:
        """Start the story of `call`, which came in `dialect`; it answers through its exchange."""
        dispatcher = self._dispatcher
        if dispatcher.policies and (policy := dispatcher.policy_of(call.access_code)) != "least_loaded":
            call.trail = dialect.trail(call, policy)
        call.started_at = self._clock.time()
        exchange = call.exchange
        call.story = story = Story(self._story(call), exchange.abort)
        exchange.on_gone = story.client_gone
        self._calls[call.id] = call
        story.wake()

    # ---- the story -----------------------------------------------------------------------------------------

    def _story(self, call: Call) -> Steps:
        dispatcher = self._dispatcher
        failure: KuwaError | None = None
        try:
            if self.draining or self._quarantine.suspects:
                self._admit(call)
            while True:
                replica = dispatcher.acquire(call, self._clock.now) if failure is None else self._another(call, failure)
                if replica is None:
                    replica = yield from self._queued(call, failure)
                try:
                    relay = self._attempt(call, replica)
                    while not relay.over:
                        yield
                finally:
                    if call.relay is not None and not call.relay.over:
                        self._cut(call.relay, replica)
                    settled = dispatcher.release(call, self._clock.now)
                    if settled:
                        self.settle(settled)
                if relay.error is None and relay.refusal is None:
                    break
                failure = self._failed(call, replica, relay, failure)
            if replica.breakers or call.blamed or self._quarantine.suspects:
                self._went_well(call, replica)
            self._settle(call, "ok")
        except Exception as raised:
            label, error = _ending(raised)
            if isinstance(error, InternalError):
                log.exception("request %s failed inside the kernel", call.id)
            self._settle(call, label)
            if error is not None:
                call.exchange.fail(error, call.reply_headers)
        finally:
            del self._calls[call.id]
            if call.journal is not None:
                call.journal.drop()

    def _admit(self, call: Call) -> None:
        """Raises Draining or RequestQuarantined."""
        if self.draining:
            raise Draining("This kernel is shutting down; send the request again in a moment.")
        self._quarantine.check(call.access_code, call.body, call.started_at)

    def _another(self, call: Call, failure: KuwaError) -> Replica | None:
        """A slot for an attempt after `failure`; raises what the client is told where no replica is left."""
        try:
            return self._dispatcher.acquire(call, self._clock.now)
        except NoReplica:
            raise self._last_word(call, failure) from failure

    def _queued(self, call: Call, failure: KuwaError | None) -> Generator[None, None, Replica]:
        """Wait for a slot. Raises what the ticket was refused with, or what follows from the `failure` before it."""
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
            if failure is not None and isinstance(call.error, NoReplica):
                raise self._last_word(call, failure) from failure
            raise call.error
        return cast("Replica", call.replica)

    def _attempt(self, call: Call, replica: Replica) -> Relay:
        """Send the request to `replica`; the relay wakes the story when the answer has come to its end."""
        facts = replica.facts
        route = facts.routes.get(call.route) or new_route(replica, call.route)
        forwarded = call.forwarded if route.own else call.forwarded_abroad
        body, reader = call.body, None
        if not (route.plain and (route.own or call.form is None)):
            wire = wire_of(replica)
            body, reader = wire.body(call, replica), wire.reader(call)
        call.attempts += 1
        relay: Relay
        if call.whole:
            relay = WholeRelay(call.exchange, call.reply_headers, self._clock, reader, call.renderer)
        else:
            if facts.resumes and call.journal is None:
                call.journal = Journal(self._journals)
            if call.replay is not None:
                body = call.replay.request(body)
            relay = EventRelay(
                call.exchange,
                call.reply_headers,
                self._clock,
                reader,
                call.renderer,
                include_usage=call.include_usage,
                journal=call.journal if facts.resumes else None,
                replay=call.replay,
            )
        call.relay = relay
        relay.on_over = cast("Story", call.story).wake
        head = b"%b%b\r\n%bcontent-length: %d\r\n\r\n" % (route.head, call.own_id, forwarded, len(body))
        # After a failure no connection is trusted that was open before it.
        send = self._pool.send if call.attempts == 1 else self._pool.dial
        send(UpstreamRequest(route.origin, head, body), relay)
        return relay

    def _cut(self, relay: Relay, replica: Replica) -> None:
        """The story ends in the middle of an attempt."""
        relay.cancel()
        url = wire_of(replica).abort_url(replica)
        if url:
            self._start_task(self._abort(url))

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
            call.refused_attempts += 1
        elif call.attempts - call.refused_attempts >= MAX_ATTEMPTS:
            raise self._last_word(call, failure)
        if verdict.answered and call.replay is None:
            if self._registry.faults.all_failing(call.access_code):
                raise self._last_word(call, failure)  # the others would only fail once more
            call.excluded |= self._registry.faults.doubtful(call.access_code, call.excluded | {replica.id})
        if not verdict.again:
            call.excluded |= {replica.id}
        return failure

    def _last_word(self, call: Call, failure: KuwaError) -> KuwaError:
        """What the client is told of attempts that failed: where no replica is well, to come again later."""
        code = call.access_code
        if call.relay is None or call.relay.begun:
            return failure
        if not self._registry.faults.all_failing(code):
            return failure
        return NoReplica(f"Every executor of the model {code!r} is failing at present. {failure.message}")

    def _prepare_resume(self, call: Call, failure: KuwaError) -> None:
        """The client has part of an answer whose replica is lost: have the rest computed by one that is the same.

        Raises `failure` where that cannot be.
        """
        replay = call.journal.replay() if call.journal is not None else None
        if replay is None or call.resumes == MAX_RESUMES:
            self._ledger.not_resumable()
            raise failure
        others = self._registry.replicas(call.access_code)
        fingerprint = replay.announced.fingerprint
        call.excluded |= {other.id for other in others if other.fingerprint != fingerprint}
        call.replay = replay
        call.resumes += 1

    def _went_well(self, call: Call, replica: Replica) -> None:
        if call.blamed:
            self._prove(call)
        if replica.breakers:
            self._registry.faults.worked(replica, call.access_code)
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
            body = digest_of(call.access_code, call.body)
            self._registry.faults.blame(replica, call.access_code, body, now, said, answered=verdict.answered)
            call.blamed = (*call.blamed, (replica, said))
        if verdict.refused or verdict.death:
            self._registry.doubt(replica, now)
        settle(self._registry, self._dispatcher, now)
        if verdict.death and self._counts(call):
            self._quarantine.died(call.access_code, call.body, replica.id, now)
            self._quarantine.check(call.access_code, call.body, now)

    def _prove(self, call: Call) -> None:
        """Another replica answers this request: that some have failed it was their own fault."""
        now, body = self._clock.time(), digest_of(call.access_code, call.body)
        for replica, why in call.blamed:
            self._registry.faults.proved(replica, call.access_code, body, call.own_id, now, why)
        call.blamed = ()
        settle(self._registry, self._dispatcher, now)

    def _counts(self, call: Call) -> bool:
        """Whether this death speaks against the request: what kills does so at the same place each time."""
        before, call.delivered_at_loss = call.delivered_at_loss, call.kept_bytes
        if call.replay is None:
            return True
        if call.delivered_at_loss > before:  # it got past the place of the death before, so that one was not its doing
            self._quarantine.cleared(call.access_code, call.body)
            return True
        return call.replay.done

    # ---- what the story stands on --------------------------------------------------------------------------

    def settle(self, settled: list[Ticket]) -> None:
        """Tell the stories of tickets that the dispatcher has granted or refused."""
        for ticket in settled:
            if ticket.granted is not None:
                ticket.granted()

    async def _abort(self, url: str) -> None:
        try:
            await fetch("GET", url, timeout_s=ABORT_TIMEOUT_S)
        except KuwaError as error:
            log.info("%s was not reached: %s", url, error)

    def _start_task(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _settle(self, call: Call, label: str) -> None:
        """Write how the request ended."""
        relay = call.relay
        first_at = relay.first_content_at if relay is not None else 0.0
        self._ledger.settle(
            Outcome(
                call.id,
                call.principal,
                call.access_code,
                label,
                (first_at if call.whole and label == "ok" else self._clock.time()) - call.started_at,
                first_at - call.started_at if first_at else -1.0,
                call.queue_s,
                call.whole,
                relay is not None or label != ModelNotFound.code,
                relay is not None,
                call.attempts,
                call.resumes,
                relay.usage if relay is not None else None,
            )
        )

    # ---- asked from elsewhere ------------------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        """Enforce the deadlines of replicas and keep silent streams open; called a few times a second."""
        for call in list(self._calls.values()):
            error = deadlines.overdue(call, now, self._first_token_s)
            if error is not None and call.relay is not None:
                call.relay.on_lost(error)
            elif deadlines.keepalive_due(call, now):
                call.last_keepalive_at = now
                self._keep_alive(call, now)
            if call.blamed and call.replay is None and call.relay is not None and call.relay.begun:
                self._prove(call)
        self._quarantine.sweep(now)

    def _keep_alive(self, call: Call, now: float) -> None:
        """Write into a stream that is silent, so that no proxy cuts it; before the first content only where the client
        asked for it, since that commits the status 200."""
        exchange = call.exchange
        if call.whole or exchange.gone or exchange.ended:
            return
        if call.relay is not None and call.relay.begun:
            if deadlines.is_silent(call, now):
                exchange.write(deadlines.keepalive(call, "ping"))
        elif call.progress:
            waited_s = now - call.started_at
            if call.queued:
                text = f"queued position={self._dispatcher.ahead_of(call)} wait_s={waited_s:.1f}"
            else:
                text = f"running wait_s={waited_s:.1f}"
            if not exchange.started:
                content_type = b"text/event-stream" if call.renderer is None else call.renderer.content_type
                exchange.errors = call.renderer or exchange.errors
                exchange.start(200, b"%bcontent-type: %b\r\n" % (call.reply_headers, content_type))
            exchange.write(deadlines.keepalive(call, text))

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


def _ending(raised: Exception) -> tuple[str, KuwaError | None]:
    """How a story that ended by `raised` is counted, and what its client is told; None where there is no client."""
    if isinstance(raised, ClientGone):
        return "cancelled", None
    if isinstance(raised, Aborted):
        return "cancelled", RequestCancelled("The request was cancelled.")
    if isinstance(raised, KuwaError):
        return raised.code, raised
    return InternalError.code, InternalError("Internal error of the kernel; see its log.")
