"""The chat routes of the v1.0 wire: `/v1.0/chat/completions` and `/v1.0/chat/abort`.

A form comes in, raw text goes out. Our executors get the OpenAI dialect with the whole form beside it (`kuwa`);
executors of the old wire get the form as it came.
"""

from __future__ import annotations

import asyncio
import logging
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

log = logging.getLogger("kuwa.kernel")

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


class _Asked(msgspec.Struct, frozen=True):
    """What a form asks for: its fields, and the body that an executor gets."""

    form: dict[str, str]
    body: bytes

    @classmethod
    def of(cls, data: bytes, language: str) -> _Asked:
        """Raises InvalidRequest."""
        form = form_wire.parse_form(data, max_bytes=len(data))
        name, text = form_wire.required(form, "name", "input")
        return cls(form, _openai_body(name, form_wire.parse_history(text), form, language))


class FormChatRoutes:
    """The hot handlers of the v1.0 wire's chat."""

    def __init__(self, chat: Chat, ids: RequestIds) -> None:
        self._chat = chat
        self._ids = ids
        self._dialect = FormDialect()
        self._reading: set[asyncio.Task[None]] = set()
        self.handlers: dict[str, Callable[[Exchange], None]] = {
            "/v1.0/chat/completions": self.chat_completions,
            "/v1.0/chat/abort": self.abort,
        }

    def chat_completions(self, exchange: Exchange) -> None:
        head = HeadRead.of(exchange.head)
        own = self._ids.draw().encode()
        language = (exchange.headers.get(b"accept-language") or b"").decode("latin-1")
        if len(exchange.body) > form_wire.MAX_FORM_BYTES:
            task = asyncio.get_running_loop().create_task(self._read_large(exchange, head, own, language))
            self._reading.add(task)
            task.add_done_callback(self._reading.discard)
            return
        try:
            asked = _Asked.of(exchange.body, language)
        except KuwaError as error:
            refuse(exchange, error, head.reply(own))
            return
        self._serve(exchange, head, own, asked)

    async def _read_large(self, exchange: Exchange, head: HeadRead, own: bytes, language: str) -> None:
        """Read a large form in a thread, so that the streams of others do not wait for it."""
        try:
            asked = await asyncio.to_thread(_Asked.of, exchange.body, language)
            if not exchange.gone:
                self._serve(exchange, head, own, asked)
        except KuwaError as error:
            refuse(exchange, error, head.reply(own))
        except Exception:
            log.exception("a form could not be read")
            exchange.abort()

    def _serve(self, exchange: Exchange, head: HeadRead, own: bytes, asked: _Asked) -> None:
        form, body = asked.form, asked.body
        user = form.get("user_id")
        key = (form["history_id"], user or "") if form.get("history_id") else None
        self._chat.serve(
            Call(
                form["name"],
                head.key or principal(user, exchange.connection.peer[0]),
                len(body),
                key,
                id=own.decode(),
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
