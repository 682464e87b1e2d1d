"""The v1.0 form wire: urlencoded forms, the chat history in them, and the texts old front ends know."""

from __future__ import annotations

from binascii import a2b_qp
from typing import Annotated
from urllib.parse import urlencode

import msgspec

from kuwa.wire.errors import InvalidRequest, RequestTooLarge
from kuwa.wire.json import BadJson, Fields, decoder

MAX_FIELDS = 100
MAX_FORM_BYTES = 1024 * 1024
"""The largest form of a route that carries no conversation."""

MAX_HISTORY_IDS = 1000
MAX_HISTORY_IDS_TEXT = 32 * MAX_HISTORY_IDS
"""Beyond as many characters, a list of history ids is refused before it is read."""

MAX_BRACES = 200_000
"""Beyond as many, a history is refused before it is read: each may be a turn."""

ERROR_TEXT = "Error occurred. Please consult support."
TOO_LONG_TEXT = "[Sorry, The input message is too long!]"
EMPTY_TEXT = "[No input message entered]"

PARAMETER_PREFIX = "llm_"
PROVIDER_KEY_FIELDS = ("openai_token", "google_token", "third_party_token", "user_token")


class Turn(msgspec.Struct, frozen=True, gc=False):
    """One turn of the old history: `msg` may be null, as old clients send it for an answer yet to come."""

    msg: str | None = None
    isbot: bool = False


_decode_turns = decoder(list[Turn])
_HistoryId = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_decode_history_ids = decoder(Annotated[list[_HistoryId], msgspec.Meta(max_length=MAX_HISTORY_IDS)])


def parse_form(body: bytes, max_bytes: int = MAX_FORM_BYTES) -> dict[str, str]:
    """Read an urlencoded form; the last value of a repeated field counts. Some 10 ms for each MiB, whatever it holds.

    Raises RequestTooLarge beyond `max_bytes`, and InvalidRequest for bytes that are not UTF-8, for an invalid percent
    escape and for too many fields.
    """
    if not body:
        return {}
    if len(body) > max_bytes:
        raise RequestTooLarge(f"The form has {len(body)} bytes; this route reads at most {max_bytes}.")
    if not body.isascii():
        raise InvalidRequest("The form is not urlencoded UTF-8: it holds bytes beyond ASCII.")
    fields = body.split(b"&", MAX_FIELDS)
    if len(fields) > MAX_FIELDS:
        raise InvalidRequest(f"The form has more than {MAX_FIELDS} fields.")
    form: dict[str, str] = {}
    for field in fields:
        name, equals, value = field.partition(b"=")
        if not equals:
            raise InvalidRequest(f"The form is not urlencoded: {field[:40].decode()!r} has no '='.")
        form[_decoded(name)] = _decoded(value)
    return form


def _decoded(text: bytes) -> str:
    """Undo the urlencoding of a name or a value, in C from end to end: in Python a large form would stop the kernel."""
    text = text.replace(b"+", b" ")
    escapes = text.count(b"%")
    if escapes:
        # Quoted-printable is the same encoding with another sign; it alone joins lines at an escaped line end.
        decoded = a2b_qp(text.replace(b"=", b"=3D").replace(b"%", b"="))
        if len(decoded) != len(text) - 2 * escapes or b"%\n" in text or b"%\r" in text:
            raise InvalidRequest("The form is cut off or garbled: a percent sign without two hexadecimal digits.")
        text = decoded
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The form is not urlencoded UTF-8: {error.reason}.") from error


def encode_form(fields: dict[str, str]) -> bytes:
    return urlencode(fields).encode("ascii")


def required(form: dict[str, str], *names: str) -> tuple[str, ...]:
    """The values of the fields `names`; a missing or empty one raises InvalidRequest naming it."""
    for name in names:
        if not form.get(name):
            raise InvalidRequest(f"The form field {name!r} is missing.", param=name)
    return tuple(form[name] for name in names)


def parse_history(text: str) -> list[Fields]:
    """The field `input` (`[{"msg": str|null, "isbot": bool}, …]`) as OpenAI messages.

    A bot's turn without text is the place of the answer to come and is left out.
    """
    if text.count("{") > MAX_BRACES:
        raise InvalidRequest(
            f"The form field 'input' holds more than {MAX_BRACES} opening braces; send a shorter history.",
            param="input",
        )
    try:
        turns = _decode_turns(text)
    except BadJson as error:
        raise InvalidRequest(f"The form field 'input' is no chat history: {error}", param="input") from error
    return [
        {"role": "assistant" if turn.isbot else "user", "content": turn.msg or ""}
        for turn in turns
        if not (turn.isbot and turn.msg is None)
    ]


def encode_history(messages: list[Fields]) -> str:
    """OpenAI messages as the field `input`. The caller has made sure that their contents are text."""
    turns = [
        Turn(msg=message["content"], isbot=message["role"] == "assistant")
        for message in messages
        if message["role"] in ("user", "assistant")
    ]
    return msgspec.json.encode(turns).decode()


def encode_modelfile(system_prompts: list[str], parameters: Fields) -> str:
    """The field `modelfile`: system prompts, and generation options as `parameter llm_*` lines."""
    commands = [{"name": "system", "args": text} for text in system_prompts]
    for name, value in parameters.items():
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        commands.append({"name": "parameter", "args": f"{PARAMETER_PREFIX}{name} {text}"})
    return msgspec.json.encode(commands).decode()


def parse_history_ids(text: str) -> list[int]:
    """The abort's `history_id`, such as `[12,-5]`: a JSON list of at most 1,000 integers of 64 bits and nothing else
    (never evaluated)."""
    try:
        if len(text) > MAX_HISTORY_IDS_TEXT:
            raise BadJson(f"it has {len(text)} characters")
        return _decode_history_ids(text)
    except BadJson as error:
        raise InvalidRequest(
            "The form field 'history_id' must be a JSON list of integers such as [12,-5], at most "
            f"{MAX_HISTORY_IDS} in one request: {error}",
            param="history_id",
        ) from error
