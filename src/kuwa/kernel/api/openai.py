"""The OpenAI dialect: `/v1/chat/completions`, `/v1/completions`, `/v1/embeddings`, `/v1/rerank`.

The body is decoded once, only in the fields that routing needs; the executor checks the rest.
"""

from __future__ import annotations

import hashlib
from functools import partial

import msgspec

from kuwa.http.exchange import JSON_LINE, Exchange, Handler, Head, header_lines
from kuwa.kernel import trail
from kuwa.kernel.chat import Call, Chat, Outgoing
from kuwa.kernel.policy import PolicyName, Trail
from kuwa.kernel.registry import Replica
from kuwa.kernel.relay import Clock, EventRelay, Relay, TranslatingRelay, WholeRelay
from kuwa.kernel.translate import CompletionFromText, EventsFromText, body_for_upstream, fields_of, form_from_openai
from kuwa.wire.errors import InvalidRequest, KuwaError, RequestCancelled, Unsupported
from kuwa.wire.form import encode_form
from kuwa.wire.names import PROVIDER_KEY_HEADER, RequestIds, echoable_request_id

JSON = b"application/json"
EVENTS_LINE = b"content-type: text/event-stream\r\n"
FORM = b"application/x-www-form-urlencoded"
FORWARDED = (b"traceparent", b"tracestate", b"x-request-id", b"accept-language", PROVIDER_KEY_HEADER)
SESSION_HEADER = b"x-session-id"
GENERATES = ("/chat/completions", "/completions")
PRINCIPAL_BYTES = 16


_ABSENT = msgspec.Raw()


class HeadRead(msgspec.Struct, frozen=True):
    """What the dialects need of a request's head, read once for all requests with this head.

    `key` is the principal that a token names, empty without one; `forwarded` the lines that travel on; `echoed` the
    client's own request id, empty without one.
    """

    key: str
    forwarded: bytes
    echoed: bytes
    progress: bool

    @classmethod
    def of(cls, head: Head) -> HeadRead:
        known = head.derived
        if known is None:
            theirs = head.get(b"x-request-id") or b""
            known = head.derived = cls(
                key=key_of(head.get(b"authorization") or b""),
                forwarded=header_lines([(name, value) for name in FORWARDED if (value := head.get(name)) is not None]),
                echoed=(echoable_request_id(theirs.decode("latin-1")) or "").encode(),
                progress=head.get(b"x-kuwa-progress") == b"1",
            )
        return known

    def reply(self, own: bytes) -> bytes:
        """The headers of every answer: the kernel's request id, and the client's own echoed (or the kernel's again)."""
        return b"x-kuwa-request-id: %b\r\nx-request-id: %b\r\n" % (own, self.echoed or own)


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
_USAGE_WANTED = msgspec.Raw(b'{"include_usage":true}')


class OpenAIDialect:
    """How requests of the OpenAI dialect go to replicas, and how their answers come back."""

    def outgoing(self, call: Call, replica: Replica) -> Outgoing:
        if replica.wire == "openai":
            body = body_for_upstream(call.body, replica.model) if replica.model else call.body
            return replica.base_url + call.route, JSON, body
        if call.route != "/chat/completions":
            raise Unsupported(f"{call.access_code!r} is served by an executor of the v1.0 wire, which only chats.")
        # API requests of the v1.0 wire carry negative history ids, so that they never meet a chat of the web.
        history_id = f"-{int(call.id[-8:], 16)}"
        form = form_from_openai(call.body, call.access_code, history_id, "0")
        return replica.endpoint, FORM, encode_form(form)

    def trail(self, call: Call, policy: PolicyName) -> Trail:
        """Only what an engine generates from has beginnings worth going back to."""
        if policy == "session":
            named = call.exchange.headers.get(SESSION_HEADER)
            return trail.of_session(named.decode("latin-1") if named else trail.session_in(call.body))
        return trail.of_conversation(call.body) if call.route in GENERATES else ()

    def relay(self, call: Call, replica: Replica, clock: Clock) -> Relay:
        exchange, headers = call.exchange, call.reply_headers
        if replica.wire == "openai":
            if call.whole:
                return WholeRelay(exchange, headers, clock)
            usage, journal = call.include_usage, call.journal_at(replica)
            return EventRelay(exchange, headers, clock, include_usage=usage, journal=journal, replay=call.replay)
        answer_id = "chatcmpl-" + call.id
        if call.whole:
            whole = CompletionFromText(answer_id, call.access_code)
            return TranslatingRelay(exchange, headers + JSON_LINE, clock, translator=whole, whole=True)
        events = EventsFromText(answer_id, call.access_code, include_usage=call.include_usage)
        return TranslatingRelay(exchange, headers + EVENTS_LINE, clock, translator=events)

    def fail(self, call: Call, error: KuwaError) -> None:
        call.exchange.fail(error, call.reply_headers)

    def aborted(self, call: Call) -> None:
        self.fail(call, RequestCancelled("The request was cancelled."))


class OpenAIRoutes:
    """The hot handlers of the OpenAI dialect."""

    def __init__(self, chat: Chat, ids: RequestIds) -> None:
        self._chat = chat
        self._ids = ids
        self._dialect = OpenAIDialect()
        self.handlers: dict[str, Handler] = {
            "/v1" + route: partial(self._serve, route, streams)
            for route, streams in (
                ("/chat/completions", True),
                ("/completions", True),
                ("/embeddings", False),
                ("/rerank", False),
            )
        }

    def _serve(self, route: str, streams: bool, exchange: Exchange) -> None:
        head = HeadRead.of(exchange.head)
        request_id = self._ids.draw()
        own = request_id.encode()
        body, include_usage = exchange.body, False
        try:
            routed = read_body(body)
            stream = bool(routed.stream) and streams
            if stream or routed.stream_options is not None or routed.kuwa_resume is not _ABSENT:
                body, include_usage = _streamed(routed, body, stream)
        except KuwaError as error:
            exchange.fail(error, head.reply(own))
            return
        self._chat.serve(
            Call(
                routed.model,
                head.key or principal(routed.user, exchange.connection.peer[0]),
                len(body),
                id=request_id,
                own_id=own,
                dialect=self._dialect,
                exchange=exchange,
                route=route,
                body=body,
                forwarded=head.forwarded,
                reply_headers=head.reply(own),
                whole=not stream,
                include_usage=include_usage,
                progress=head.progress,
            )
        )


def _streamed(routed: _Routed, body: bytes, stream: bool) -> tuple[bytes, bool]:
    """The body as it goes on, asking for the usage, and whether the client asked for it. Raises InvalidRequest."""
    if routed.stream_options is not None and not routed.stream:
        raise InvalidRequest("'stream_options' goes with 'stream': true only.", param="stream_options")
    if routed.kuwa_resume is not _ABSENT:
        raise InvalidRequest("'kuwa_resume' is for the kernel's own use.", param="kuwa_resume")
    if not stream:
        return body, False
    if routed.stream_options is not None and routed.stream_options.include_usage:
        return body, True
    return _asking_for_usage(body, replace=routed.stream_options is not None), False


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


def principal(user: str | None, host: str) -> str:
    """Whom a request without a token counts for: the named user, else the peer's address."""
    return f"user {user}" if user else f"peer {host}"


def key_of(token: bytes) -> str:
    """The principal that a bearer token names."""
    return "key " + hashlib.blake2b(token, digest_size=PRINCIPAL_BYTES).hexdigest() if token else ""


def _asking_for_usage(body: bytes, *, replace: bool) -> bytes:
    """The body with `stream_options.include_usage` set, everything else byte for byte as it came."""
    if not replace:
        end = body.rindex(b"}")
        return body[:end] + b',"stream_options":{"include_usage":true}}'
    fields = fields_of(body)
    fields["stream_options"] = _USAGE_WANTED
    return msgspec.json.encode(fields)
