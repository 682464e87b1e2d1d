"""The OpenAI wire: our own executors, and the servers that `--upstream` names. Pure."""

from __future__ import annotations

import msgspec

from kuwa.kernel.call import Call
from kuwa.kernel.replica import Replica
from kuwa.wire import form as form_wire
from kuwa.wire.errors import InvalidRequest
from kuwa.wire.json import BadJson, decode, decoder

JSON = b"application/json"
SMALL_BYTES = 256 * 1024
MAX_QUOTES = 200_000


class OpenAIWire:
    """The canonical body as it is, but for what a server that is not an executor would not understand."""

    def target(self, replica: Replica, path: str) -> tuple[str, bytes]:
        return replica.base_url + path, JSON

    def is_own(self, replica: Replica) -> bool:
        return replica.source != "upstream"

    def is_plain(self, replica: Replica) -> bool:
        return not replica.model

    def body(self, call: Call, replica: Replica) -> bytes:
        """For a server that is not an executor: its own model name, and nothing of our extension."""
        return body_for_upstream(call.body, replica.model)

    def reader(self, call: Call) -> None:
        del call

    def abort_url(self, replica: Replica) -> str:
        del replica
        return ""


def body_for_upstream(body: bytes, model: str) -> bytes:
    """A body as a server that is no executor of ours gets it: its own model name, our extension `kuwa` taken out.

    Of a v1.0 form's Modelfile, which an executor would apply, the system prompts and the parameters are applied here.
    """
    fields = fields_of(body)
    if model:
        fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    extension = fields.pop("kuwa", None)
    if extension is not None:
        _apply_modelfile(fields, _modelfile_of(extension))
    return msgspec.json.encode(fields)


def fields_of(body: bytes) -> dict[str, msgspec.Raw]:
    """The members of a JSON object, undecoded, so that some of them can be replaced. Raises InvalidRequest."""
    # Each name is a string. Millions of them take seconds, in which nothing else of the kernel would run.
    if len(body) > SMALL_BYTES and body.count(b'"') - body.count(b'\\"') > MAX_QUOTES:
        raise InvalidRequest(f"The request body holds more than {MAX_QUOTES // 2} strings; send fewer at once.")
    try:
        return _decode_fields(body)
    except BadJson as error:
        raise InvalidRequest(f"The request body cannot be read: {error}.") from error


_decode_fields = decoder(dict[str, msgspec.Raw])


class _Command(msgspec.Struct):
    name: str = ""
    args: str = ""


class _Form(msgspec.Struct):
    modelfile: str = "[]"


class _Extension(msgspec.Struct):
    form: _Form = msgspec.field(default_factory=_Form)


def _modelfile_of(extension: msgspec.Raw) -> list[_Command]:
    try:
        return decode(decode(bytes(extension), _Extension).form.modelfile, list[_Command])
    except BadJson:
        return []


def _apply_modelfile(fields: dict[str, msgspec.Raw], modelfile: list[_Command]) -> None:
    system = "\n".join(command.args for command in modelfile if command.name == "system")
    if system:
        try:
            messages = decode(bytes(fields.get("messages", b"[]")), list[msgspec.Raw])
        except BadJson as error:
            raise InvalidRequest(f"Invalid messages: {error}.", param="messages") from error
        first = msgspec.Raw(msgspec.json.encode({"role": "system", "content": system}))
        fields["messages"] = msgspec.Raw(msgspec.json.encode([first, *messages]))
    for command in modelfile:
        key, _, value = command.args.partition(" ")
        if command.name in ("parameter", "kuwaparam") and key.startswith(form_wire.PARAMETER_PREFIX) and value:
            fields[key.removeprefix(form_wire.PARAMETER_PREFIX)] = msgspec.Raw(_json_value(value.strip()))


def _json_value(text: str) -> bytes:
    """The value of a Modelfile parameter: a number, true or false where it reads as one, else text."""
    try:
        if isinstance(decode(text), bool | int | float):
            return text.encode()
    except BadJson:
        pass
    return msgspec.json.encode(text)
