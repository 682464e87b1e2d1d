"""The chat routes of the v1.0 wire: `/v1.0/chat/completions` and `/v1.0/chat/abort`.

A form comes in, raw text goes out. Our executors get the OpenAI dialect with the whole form beside it (`kuwa`);
executors of the old wire get the form as it came.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from kuwa.http.exchange import Exchange
from kuwa.kernel import trail
from kuwa.kernel.api.openai import FORM, JSON, HeadRead, principal
from kuwa.kernel.chat import Call, Chat, Outgoing
from kuwa.kernel.policy import PolicyName, Trail
from kuwa.kernel.registry import Replica
from kuwa.kernel.relay import Clock, Relay, TextRelay, TranslatingRelay
from kuwa.kernel.translate import PlainText, body_for_upstream
from kuwa.wire import form as form_wire
from kuwa.wire.errors import ContextLengthExceeded, KuwaError
from kuwa.wire.names import RequestIds

TEXT = b"content-type: text/plain; charset=utf-8\r\n"


class FormDialect:
    """How requests of the v1.0 wire go to replicas, and how their answers come back."""

    def outgoing(self, call: Call, replica: Replica) -> Outgoing:
        if replica.wire == "openai":
            body = call.body if replica.source != "upstream" else body_for_upstream(call.body, replica.model)
            return replica.base_url + call.route, JSON, body
        return replica.endpoint, FORM, form_wire.encode_form(call.form or {})

    def trail(self, call: Call, policy: PolicyName) -> Trail:
        """The history_id changes with every turn: a session of this wire is its user."""
        form = call.form or {}
        if policy == "session":
            return trail.of_session(form.get("user_id"))
        return trail.of_conversation(call.body, form.get("modelfile", ""))

    def relay(self, call: Call, replica: Replica, clock: Clock) -> Relay:
        headers = call.reply_headers + TEXT
        if replica.wire == "openai":
            return TextRelay(call.exchange, headers, clock, journal=call.journal_at(replica), replay=call.replay)
        return TranslatingRelay(call.exchange, headers, clock, translator=PlainText())

    def fail(self, call: Call, error: KuwaError) -> None:
        """The real status with the error's text; in a stream that has begun, the text that old front ends know."""
        exchange = call.exchange
        if exchange.gone or exchange.ended:
            return
        if exchange.started:
            exchange.end(form_wire.ERROR_TEXT.encode())
            return
        refuse(exchange, error, call.reply_headers)

    def aborted(self, call: Call) -> None:
        exchange = call.exchange
        if exchange.gone or exchange.ended:
            return
        if exchange.started:
            exchange.end()
        else:
            exchange.respond(200, b"", call.reply_headers + TEXT)


class FormChatRoutes:
    """The hot handlers of the v1.0 wire's chat."""

    def __init__(self, chat: Chat, ids: RequestIds) -> None:
        self._chat = chat
        self._ids = ids
        self._dialect = FormDialect()
        self.handlers: dict[str, Callable[[Exchange], None]] = {
            "/v1.0/chat/completions": self.chat_completions,
            "/v1.0/chat/abort": self.abort,
        }

    def chat_completions(self, exchange: Exchange) -> None:
        head = HeadRead.of(exchange.head)
        request_id = self._ids.draw()
        own = request_id.encode()
        try:
            form = form_wire.parse_form(exchange.body)
            name, text = form_wire.required(form, "name", "input")
            messages = form_wire.parse_history(text)
        except KuwaError as error:
            refuse(exchange, error, head.reply(own))
            return
        user = form.get("user_id")
        key = (form["history_id"], user or "") if form.get("history_id") else None
        language = (exchange.headers.get(b"accept-language") or b"").decode("latin-1")
        body = _openai_body(name, messages, form, language)
        self._chat.serve(
            Call(
                name,
                head.key or principal(user, exchange.connection.peer[0]),
                len(body),
                key,
                id=request_id,
                own_id=own,
                dialect=self._dialect,
                exchange=exchange,
                route="/chat/completions",
                body=body,
                forwarded=head.forwarded,
                reply_headers=head.reply(own),
                form=form,
            )
        )

    def abort(self, exchange: Exchange) -> None:
        """`history_id` is a JSON list of integers, refused with 400 if it is anything else."""
        try:
            form = form_wire.parse_form(exchange.body)
            (history_ids,) = form_wire.required(form, "history_id")
            ids = form_wire.parse_history_ids(history_ids)
        except KuwaError as error:
            refuse(exchange, error, b"")
            return
        user = form.get("user_id", "")
        self._chat.abort({(str(history_id), user) for history_id in ids})
        exchange.respond(200, b"Success", TEXT)


def refuse(exchange: Exchange, error: KuwaError, headers: bytes) -> None:
    """Answer with the error's status and its text, as the v1.0 wire has it."""
    text = error.message
    if isinstance(error, ContextLengthExceeded):
        text = form_wire.TOO_LONG_TEXT
    if error.retry_after_s is not None:
        headers += b"retry-after: %d\r\n" % error.retry_after_s
    exchange.respond(error.status, text.encode("utf-8", "replace"), headers + TEXT)


def _openai_body(name: str, messages: list[dict[str, Any]], form: dict[str, str], language: str) -> bytes:
    extension = {"form": form, "trim_history": True, "language": language}
    return msgspec.json.encode(
        {
            "model": name,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            "kuwa": extension,
        }
    )
