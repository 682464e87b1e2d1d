"""The OpenAI dialect: `/v1/chat/completions`, `/v1/completions`, `/v1/embeddings`, `/v1/rerank`.

The body is decoded once, only in the fields that routing needs; the executor checks the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec

from kuwa.http.exchange import Exchange, Head, HeaderPair
from kuwa.kernel import trail
from kuwa.kernel.chat import Chat, ChatRequest, Outgoing
from kuwa.kernel.policy import PolicyName, Trail
from kuwa.kernel.registry import Replica
from kuwa.kernel.relay import Clock, EventRelay, Relay, TranslatingRelay, WholeRelay
from kuwa.kernel.resume import Journal, Replay
from kuwa.kernel.translate import CompletionFromText, EventsFromText, body_for_upstream, form_from_openai
from kuwa.wire.errors import InvalidRequest, KuwaError, RequestCancelled, Unsupported
from kuwa.wire.form import encode_form
from kuwa.wire.names import RequestIds, echoable_request_id

JSON = b"application/json"
FORM = b"application/x-www-form-urlencoded"
FORWARDED = (b"traceparent", b"tracestate", b"x-request-id", b"accept-language", b"x-kuwa-provider-key")
SESSION_HEADER = b"x-session-id"
GENERATES = ("/chat/completions", "/completions")
PRINCIPAL_BYTES = 16


_ABSENT = msgspec.Raw()


class _HeadRead(msgspec.Struct, frozen=True):
    """What this dialect needs of a request's head: the principal that a token names, and what is forwarded."""

    key: str
    forwarded: tuple[HeaderPair, ...]


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = False


class _Routed(msgspec.Struct):
    """The fields of a request that the kernel reads."""

    model: str
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    user: str | None = None
    kuwa_resume: msgspec.Raw = _ABSENT


_decode = msgspec.json.Decoder(_Routed).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_all = msgspec.json.Decoder(dict[str, Any]).decode
_USAGE_WANTED = msgspec.Raw(b'{"include_usage":true}')


class OpenAIDialect:
    """How requests of the OpenAI dialect go to replicas, and how their answers come back."""

    def outgoing(self, request: ChatRequest, replica: Replica) -> Outgoing:
        if replica.wire == "openai":
            body = body_for_upstream(request.body, replica.model) if replica.model else request.body
            return Outgoing(replica.base_url + request.route, JSON, body)
        if request.route != "/chat/completions":
            raise Unsupported(f"{request.access_code!r} is served by an executor of the v1.0 wire, which only chats.")
        # API requests of the v1.0 wire carry negative history ids, so that they never meet a chat of the web.
        history_id = f"-{int(request.id[-8:], 16)}"
        form = form_from_openai(_decode_all(request.body), request.access_code, history_id, "0")
        return Outgoing(replica.endpoint, FORM, encode_form(form))

    def trail(self, exchange: Exchange, request: ChatRequest, policy: PolicyName) -> Trail:
        """Only what an engine generates from has beginnings worth going back to."""
        if policy == "session":
            named = exchange.headers.get(SESSION_HEADER)
            return trail.of_session(named.decode("latin-1") if named else trail.session_in(request.body))
        return trail.of_conversation(request.body) if request.route in GENERATES else ()

    def relay(
        self,
        exchange: Exchange,
        request: ChatRequest,
        replica: Replica,
        clock: Clock,
        journal: Journal | None,
        replay: Replay | None,
    ) -> Relay:
        headers = request.reply_headers
        if replica.wire == "openai":
            if request.whole:
                return WholeRelay(exchange, headers, clock)
            usage = request.include_usage
            return EventRelay(exchange, headers, clock, include_usage=usage, journal=journal, replay=replay)
        answer_id = "chatcmpl-" + request.id
        if request.whole:
            whole = CompletionFromText(answer_id, request.access_code)
            return TranslatingRelay(exchange, (*headers, (b"content-type", JSON)), clock, whole, whole=True)
        events = EventsFromText(answer_id, request.access_code, include_usage=request.include_usage)
        return TranslatingRelay(exchange, (*headers, (b"content-type", b"text/event-stream")), clock, events)

    def fail(self, exchange: Exchange, request: ChatRequest, error: KuwaError) -> None:
        exchange.fail(error, request.reply_headers)

    def aborted(self, exchange: Exchange, request: ChatRequest) -> None:
        exchange.fail(RequestCancelled("The request was cancelled."), request.reply_headers)


class OpenAIRoutes:
    """The hot handlers of the OpenAI dialect."""

    def __init__(self, chat: Chat, ids: RequestIds) -> None:
        self._chat = chat
        self._ids = ids
        self._dialect = OpenAIDialect()
        self.handlers: dict[str, Callable[[Exchange], None]] = {
            "/v1/chat/completions": self.chat_completions,
            "/v1/completions": self.completions,
            "/v1/embeddings": self.embeddings,
            "/v1/rerank": self.rerank,
        }

    def chat_completions(self, exchange: Exchange) -> None:
        self._serve(exchange, "/chat/completions", streams=True)

    def completions(self, exchange: Exchange) -> None:
        self._serve(exchange, "/completions", streams=True)

    def embeddings(self, exchange: Exchange) -> None:
        self._serve(exchange, "/embeddings", streams=False)

    def rerank(self, exchange: Exchange) -> None:
        self._serve(exchange, "/rerank", streams=False)

    def _serve(self, exchange: Exchange, route: str, *, streams: bool) -> None:
        request_id = self._ids.draw()
        reply_headers = request_headers(exchange, request_id)
        try:
            routed = read_body(exchange.body)
            if routed.stream_options is not None and not routed.stream:
                raise InvalidRequest("'stream_options' goes with 'stream': true only.", param="stream_options")
            if routed.kuwa_resume is not _ABSENT:
                raise InvalidRequest("'kuwa_resume' is for the kernel's own use.", param="kuwa_resume")
            body, include_usage = exchange.body, False
            stream = bool(routed.stream) and streams
            if stream:
                include_usage = routed.stream_options is not None and bool(routed.stream_options.include_usage)
                if not include_usage:
                    body = _asking_for_usage(body, replace=routed.stream_options is not None)
        except KuwaError as error:
            exchange.fail(error, reply_headers)
            return
        request = ChatRequest(
            id=request_id,
            dialect=self._dialect,
            access_code=routed.model,
            principal=principal_of(exchange, routed.user),
            route=route,
            body=body,
            whole=not stream,
            include_usage=include_usage,
            progress=exchange.headers.get(b"x-kuwa-progress") == b"1",
            forwarded=forwarded_headers(exchange),
            reply_headers=reply_headers,
        )
        self._chat.serve(exchange, request)


def read_body(body: bytes) -> _Routed:
    """Decode what routing needs. Raises InvalidRequest."""
    try:
        return _decode(body)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"The request body does not fit: {error}.") from error
    except RecursionError as error:
        raise InvalidRequest("The request body is nested too deeply.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The request body is no JSON: {error}.") from error


def request_headers(exchange: Exchange, request_id: str) -> tuple[HeaderPair, ...]:
    """The headers of every answer: the kernel's request id, and the client's own echoed (or the kernel's again)."""
    own = request_id.encode()
    theirs = exchange.headers.get(b"x-request-id")
    echoed = echoable_request_id(theirs.decode("latin-1")) if theirs is not None else None
    return ((b"x-kuwa-request-id", own), (b"x-request-id", echoed.encode() if echoed is not None else own))


def forwarded_headers(exchange: Exchange) -> tuple[HeaderPair, ...]:
    """The client's headers that travel on to the executor."""
    return _read(exchange.headers).forwarded


def principal_of(exchange: Exchange, user: str | None) -> str:
    """Whom the request counts for: the bearer token's hash, else the named user, else the peer's address."""
    return principal(_read(exchange.headers).key, user, exchange.peer[0])


def principal(key: str, user: str | None, host: str) -> str:
    if key:
        return key
    return f"user {user}" if user else f"peer {host}"


def key_of(token: bytes) -> str:
    """The principal that a bearer token names."""
    return "key " + hashlib.blake2b(token, digest_size=PRINCIPAL_BYTES).hexdigest() if token else ""


def _read(head: Head) -> _HeadRead:
    known = head.derived
    if isinstance(known, _HeadRead):
        return known
    key = key_of(head.get(b"authorization") or b"")
    forwarded = tuple([(name, value) for name in FORWARDED if (value := head.get(name)) is not None])
    head.derived = read = _HeadRead(key, forwarded)
    return read


def _asking_for_usage(body: bytes, *, replace: bool) -> bytes:
    """The body with `stream_options.include_usage` set, everything else byte for byte as it came."""
    if not replace:
        end = body.rindex(b"}")
        return body[:end] + b',"stream_options":{"include_usage":true}}'
    fields = _decode_fields(body)
    fields["stream_options"] = _USAGE_WANTED
    return msgspec.json.encode(fields)
