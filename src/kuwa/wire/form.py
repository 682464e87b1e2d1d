"""The v1.0 form wire: urlencoded forms, the chat history in them, and the texts old front ends know."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlencode

import msgspec

from kuwa.wire.errors import InvalidRequest

MAX_FIELDS = 100

ERROR_TEXT = "Error occurred. Please consult support."
TOO_LONG_TEXT = "[Sorry, The input message is too long!]"
EMPTY_TEXT = "[No input message entered]"

PARAMETER_PREFIX = "llm_"
PROVIDER_KEY_FIELDS = ("openai_token", "google_token", "third_party_token", "user_token")


class Turn(msgspec.Struct, frozen=True):
    """One turn of the old history: `msg` may be null, as old clients send it for an answer yet to come."""

    msg: str | None = None
    isbot: bool = False


_decode_turns = msgspec.json.Decoder(list[Turn]).decode
_decode_integers = msgspec.json.Decoder(list[int]).decode


def parse_form(body: bytes) -> dict[str, str]:
    """Read an urlencoded form; the last value of a repeated field counts.

    Raises InvalidRequest for bytes that are no UTF-8, for a truncated percent escape and for too many fields.
    """
    if not body:
        return {}
    try:
        text = body.decode("ascii")
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True, max_num_fields=MAX_FIELDS, errors="strict")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The form is not urlencoded UTF-8: {error.reason}.") from error
    except ValueError as error:
        raise InvalidRequest(f"The form is not urlencoded: {error}.") from error
    for index in _percent_signs(text):
        if len(text) < index + 3 or not all(c in "0123456789abcdefABCDEF" for c in text[index + 1 : index + 3]):
            raise InvalidRequest(f"The form is cut off or garbled: bad percent escape at byte {index}.")
    return dict(pairs)


def _percent_signs(text: str) -> list[int]:
    found: list[int] = []
    index = text.find("%")
    while index >= 0:
        found.append(index)
        index = text.find("%", index + 1)
    return found


def encode_form(fields: dict[str, str]) -> bytes:
    return urlencode(fields).encode("ascii")


def required(form: dict[str, str], *names: str) -> tuple[str, ...]:
    """The values of the fields `names`; a missing or empty one raises InvalidRequest naming it."""
    for name in names:
        if not form.get(name):
            raise InvalidRequest(f"The form field {name!r} is missing.", param=name)
    return tuple(form[name] for name in names)


def parse_history(text: str) -> list[dict[str, Any]]:
    """The field `input` (`[{"msg": str|null, "isbot": bool}, …]`) as OpenAI messages.

    A bot's turn without text is the place of the answer to come and is left out.
    """
    try:
        turns = _decode_turns(text)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidRequest(f"The form field 'input' is no chat history: {error}", param="input") from error
    return [
        {"role": "assistant" if turn.isbot else "user", "content": turn.msg or ""}
        for turn in turns
        if not (turn.isbot and turn.msg is None)
    ]


def encode_history(messages: list[dict[str, Any]]) -> str:
    """OpenAI messages as the field `input`. The caller has made sure that their contents are text."""
    turns = [
        Turn(msg=message["content"], isbot=message["role"] == "assistant")
        for message in messages
        if message["role"] in ("user", "assistant")
    ]
    return msgspec.json.encode(turns).decode()


def encode_modelfile(system_prompts: list[str], parameters: dict[str, Any]) -> str:
    """The field `modelfile`: system prompts, and generation options as `parameter llm_*` lines."""
    commands = [{"name": "system", "args": text} for text in system_prompts]
    for name, value in parameters.items():
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        commands.append({"name": "parameter", "args": f"{PARAMETER_PREFIX}{name} {text}"})
    return msgspec.json.encode(commands).decode()


def parse_history_ids(text: str) -> list[int]:
    """The abort's `history_id`, such as `[12,-5]`: a JSON list of integers and nothing else (never evaluated)."""
    try:
        return _decode_integers(text)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidRequest(
            f"The form field 'history_id' must be a JSON list of integers such as [12,-5]: {error}",
            param="history_id",
        ) from error
