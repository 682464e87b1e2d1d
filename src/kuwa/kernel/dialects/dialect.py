"""What a client dialect is, and the handler that serves one of its routes."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol

import msgspec

from kuwa.http.exchange import Exchange, Head
from kuwa.kernel import trail
from kuwa.kernel.call import Call
from kuwa.kernel.identity import Caller, bearer, of_peer, of_user
from kuwa.kernel.policy import PolicyName, Trail
from kuwa.kernel.renderer import Renderer
from kuwa.wire.errors import ErrorShape, KuwaError
from kuwa.wire.names import RequestIds

SESSION_HEADER = b"x-session-id"
GENERATES = ("/chat/completions", "/completions")
"""The routes of replicas whose answers an engine generates: only those have beginnings worth returning to."""

log = logging.getLogger("kuwa.kernel")


class Dialect(ErrorShape, Protocol):
    """One client protocol. As an ErrorShape it renders the errors of requests that have not been read, too."""

    inline_bytes: int
    """Bodies up to this size are read on the event loop, larger ones in a thread."""

    def credential(self, head: Head) -> bytes:
        """What names the principal; empty where the head has none."""
        ...

    def read(self, exchange: Exchange, caller: Caller, request_id: str, route: str) -> Call:
        """The request as a call for a replica's `route`. Raises KuwaError. Runs in a thread for a large body."""
        ...

    def trail(self, call: Call, policy: PolicyName) -> Trail:
        """By what the policy of the call's access code recognises its conversation, or its session."""
        ...


class BaseDialect:
    """What most dialects share: a bearer token, and the OpenAI body as what a conversation is recognised by."""

    inline_bytes = 1024 * 1024
    credential = staticmethod(bearer)

    def trail(self, call: Call, policy: PolicyName) -> Trail:
        if policy == "session":
            named = (call.exchange.head.get(SESSION_HEADER) or b"").decode("latin-1")
            return trail.of_session(named or trail.session_in(call.body))
        return trail.of_conversation(call.body) if call.route in GENERATES else ()


def call_for(
    exchange: Exchange,
    caller: Caller,
    request_id: str,
    route: str,
    body: dict[str, Any],
    renderer: Renderer,
    user: str | None = None,
) -> Call:
    """The call of a dialect that makes an OpenAI `body` of its request and renders the answer. `body` names the model
    and says whether to stream; a streamed answer always brings its usage."""
    if body.get("stream"):
        body["stream_options"] = {"include_usage": True}
    encoded, own_id = msgspec.json.encode(body), request_id.encode()
    who = caller.principal or (of_user(user) if user else of_peer(exchange.connection.peer[0]))
    return Call(
        body["model"],
        who.id,
        len(encoded),
        id=request_id,
        own_id=own_id,
        who=who,
        exchange=exchange,
        route=route,
        body=encoded,
        forwarded=caller.forwarded,
        forwarded_abroad=caller.forwarded_abroad,
        reply_headers=caller.reply(own_id),
        renderer=renderer,
        whole=not body.get("stream"),
        progress=caller.progress,
    )


class Serves(Protocol):
    def serve(self, call: Call, dialect: Dialect) -> None: ...


class Entrance:
    """The handler of one route: reads requests in its dialect and has them served."""

    def __init__(self, chat: Serves, ids: RequestIds, dialect: Dialect, route: str) -> None:
        self.dialect = dialect
        self._chat = chat
        self._ids = ids
        self._route = route
        self._inline_bytes = dialect.inline_bytes
        self._reading: set[asyncio.Task[None]] = set()

    def __call__(self, exchange: Exchange) -> None:
        head = exchange.head
        caller = head.derived
        if caller is None:
            caller = head.derived = Caller.of(head, self.dialect.credential(head))
        request_id = self._ids.draw()
        if len(exchange.body) > self._inline_bytes:
            task = asyncio.get_running_loop().create_task(self._read_in_thread(exchange, caller, request_id))
            self._reading.add(task)
            task.add_done_callback(self._reading.discard)
            return
        try:
            call = self.dialect.read(exchange, caller, request_id, self._route)
        except KuwaError as error:
            exchange.fail(error, caller.reply(request_id.encode()))
            return
        self._chat.serve(call, self.dialect)

    async def _read_in_thread(self, exchange: Exchange, caller: Caller, request_id: str) -> None:
        """Other clients' streams must not wait for a large body to be read."""
        try:
            call = await asyncio.to_thread(self.dialect.read, exchange, caller, request_id, self._route)
            if not exchange.gone:
                self._chat.serve(call, self.dialect)
        except KuwaError as error:
            exchange.fail(error, caller.reply(request_id.encode()))
        except Exception:
            log.exception("reading a request failed")
            exchange.abort()
