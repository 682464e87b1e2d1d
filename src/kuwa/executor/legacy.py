"""A request as the older interfaces of `llm_compute` expect it: the form of May 2024, the history and Modelfile of
June 2024. Called by `compute` for executors whose signature asks for one of them.
"""

from __future__ import annotations

from typing import Any

from kuwa.executor.modelfile import Modelfile
from kuwa.executor.prompt import SYSTEM_ROLES, text_of
from kuwa.executor.request import Request
from kuwa.wire.form import PARAMETER_PREFIX, PROVIDER_KEY_FIELDS, encode_history, encode_modelfile

# Fields that executors of that time read without asking whether they are there.
_ALWAYS = ("name", "history_id", "user_id", *PROVIDER_KEY_FIELDS)


def history_of(request: Request) -> list[dict[str, Any]]:
    """The user's and the assistant's turns as text, without what the Modelfile adds."""
    return [
        {"role": message["role"], "content": text_of(message)}
        for message in request.conversation
        if message.get("role") in ("user", "assistant")
    ]


def modelfile_of(request: Request) -> Modelfile:
    """The Modelfile with the request's own system prompt, generation options and form fields in it."""
    given = request.modelfile
    modelfile = Modelfile(
        override_system_prompt=_system_prompt(request),
        messages=list(given.messages),
        template=given.template,
        before_prompt=given.before_prompt,
        after_prompt=given.after_prompt,
    )
    modelfile.parameters.update({"_" + name: request.form.get(name, "") for name in _ALWAYS})
    modelfile.parameters["_lang"] = request.language
    modelfile.parameters.update(given.parameters)
    modelfile.parameters.update({PARAMETER_PREFIX + name: value for name, value in request.parameters.items()})
    return modelfile


def form_of(request: Request) -> dict[str, str]:
    """The form as the old kernel sent it. Where the request came by the OpenAI dialect it is made up of it."""
    if "input" in request.form:
        return {**dict.fromkeys(_ALWAYS, ""), **request.form}
    system = _system_prompt(request)
    return {
        **dict.fromkeys(_ALWAYS, ""),
        "name": request.access_code,
        "input": encode_history(history_of(request)),
        "history_id": "-1",
        "user_id": str(request.body.get("user") or "-1"),
        "modelfile": encode_modelfile([system] if system else [], request.parameters),
        **request.form,
    }


def _system_prompt(request: Request) -> str:
    own = "\n".join(text_of(m) for m in request.conversation if m.get("role") in SYSTEM_ROLES)
    return request.modelfile.override_system_prompt or own
