"""The v1.0 form wire: `/v1.0/chat/completions` and `/v1.0/chat/abort`.

A form comes in, raw text goes out. Our executors get the OpenAI dialect with the whole form beside it (`kuwa`);
executors of that wire get the form as it came.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kuwa.http.exchange import Exchange
from kuwa.kernel import trail
from kuwa.kernel.call import Call
from kuwa.kernel.dialects.dialect import BaseDialect, call_for
from kuwa.kernel.dialects.v1.render import TextRenderer, V1Errors
from kuwa.kernel.identity import Caller
from kuwa.kernel.policy import PolicyName, Trail
from kuwa.wire import form as form_wire
from kuwa.wire.errors import KuwaError

CHAT_PATH = "/v1.0/chat/completions"
ABORT_PATH = "/v1.0/chat/abort"


class V1Dialect(BaseDialect, V1Errors):
    """Chats of old front ends."""

    def read(self, exchange: Exchange, caller: Caller, request_id: str, route: str) -> Call:
        data = exchange.body
        form = form_wire.parse_form(data, max_bytes=len(data))
        name, text = form_wire.required(form, "name", "input")
        body = _body(name, text, form, (exchange.head.get(b"accept-language") or b"").decode("latin-1"))
        call = call_for(exchange, caller, request_id, route, body, TextRenderer(), form.get("user_id"))
        call.form = form
        call.progress = False  # raw text has no room for it
        if form.get("history_id"):
            call.key = (form["history_id"], form.get("user_id", ""))
        return call

    def trail(self, call: Call, policy: PolicyName) -> Trail:
        """The history_id changes with every turn: a session of this wire is its user."""
        form = call.form or {}
        if policy == "session":
            return trail.of_session(form.get("user_id"))
        return trail.of_conversation(call.body, form.get("modelfile", ""))


class AbortRoute:
    """`abort` ends the requests with given (history_id, user_id)."""

    def __init__(self, abort: Callable[[set[tuple[str, str]]], int]) -> None:
        self.dialect = V1Errors()
        self._abort = abort

    def __call__(self, exchange: Exchange) -> None:
        """`history_id` is a JSON list of integers, refused with 400 if it is anything else."""
        try:
            form = form_wire.parse_form(exchange.body)
            (history_ids,) = form_wire.required(form, "history_id")
            ids = form_wire.parse_history_ids(history_ids)
        except KuwaError as error:
            exchange.fail(error)
            return
        user = form.get("user_id", "")
        self._abort({(str(history_id), user) for history_id in ids})
        exchange.respond(200, b"Success", b"content-type: %b\r\n" % TextRenderer.content_type)


def _body(name: str, history: str, form: dict[str, str], language: str) -> dict[str, Any]:
    return {
        "model": name,
        "messages": form_wire.parse_history(history),
        "stream": True,
        "kuwa": {"form": form, "trim_history": True, "language": language},
    }
