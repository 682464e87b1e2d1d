"""The OpenAI dialect: `/v1/chat/completions`, `/v1/completions`, `/v1/embeddings`, `/v1/rerank`.

The body is decoded once, only in the fields that routing needs; the executor checks the rest. Answers pass as the
replica sent them.
"""

from __future__ import annotations

import sys

import msgspec

from kuwa.http.exchange import Exchange
from kuwa.kernel.call import Call
from kuwa.kernel.dialects.dialect import GENERATES, BaseDialect
from kuwa.kernel.identity import Caller, of_peer, of_user
from kuwa.kernel.wires.openai import fields_of
from kuwa.wire.errors import InvalidRequest, OpenAIErrors
from kuwa.wire.json import FAULTS, BadJson, bare_decoder, decoder

ROUTES = (*GENERATES, "/embeddings", "/rerank")

_ABSENT = msgspec.Raw()


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = False


class _Routed(msgspec.Struct):
    """The fields of a request that the kernel reads."""

    model: str
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    user: str | None = None
    kuwa_resume: msgspec.Raw = _ABSENT


_decode = decoder(_Routed)
_decode_unguarded = bare_decoder(_Routed)  # for each request
_USAGE_WANTED = msgspec.Raw(b'{"include_usage":true}')


class OpenAIDialect(BaseDialect, OpenAIErrors):
    """Requests with their body as it came; their answers need no renderer."""

    inline_bytes = sys.maxsize

    def read(self, exchange: Exchange, caller: Caller, request_id: str, route: str) -> Call:
        body, include_usage = exchange.body, False
        try:
            routed = _decode_unguarded(body)
        except FAULTS:
            routed = read_body(body)
        stream = bool(routed.stream) and route in GENERATES
        if stream or routed.stream_options is not None or routed.kuwa_resume is not _ABSENT:
            body, include_usage = _streamed(routed, body, stream)
        own_id = request_id.encode()
        user = routed.user
        who = caller.principal or (of_user(user) if user else of_peer(exchange.connection.peer[0]))
        return Call(
            routed.model,
            who.id,
            len(body),
            id=request_id,
            own_id=own_id,
            who=who,
            exchange=exchange,
            route=route,
            body=body,
            forwarded=caller.forwarded,
            forwarded_abroad=caller.forwarded_abroad,
            reply_headers=caller.reply(own_id),
            whole=not stream,
            include_usage=include_usage,
            progress=caller.progress,
        )


def _streamed(routed: _Routed, body: bytes, stream: bool) -> tuple[bytes, bool]:
    """The body to send on, asking for the usage, and whether the client asked for it. Raises InvalidRequest."""
    if routed.stream_options is not None and not routed.stream:
        raise InvalidRequest("'stream_options' needs 'stream': true.", param="stream_options")
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
    except BadJson as error:
        what = "Invalid request body" if error.wrong_type else "The request body is not valid JSON"
        raise InvalidRequest(f"{what}: {error}.") from error


def _asking_for_usage(body: bytes, *, replace: bool) -> bytes:
    """The body with `stream_options.include_usage` set, everything else byte for byte as it came."""
    if not replace:
        end = body.rindex(b"}")
        return body[:end] + b',"stream_options":{"include_usage":true}}'
    fields = fields_of(body)
    fields["stream_options"] = _USAGE_WANTED
    return msgspec.json.encode(fields)
