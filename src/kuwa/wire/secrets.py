"""The global values: API keys that `kuwa secrets` keeps for the executors of the same user on the same machine.

`fleet.secrets` writes the file (`kuwa.home` names it), `executor.provider.keys` reads it; its format is here. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from kuwa.wire.json import BadJson, decoder

# Nobody but the owner may read the file; one that others can read is not used.
PRIVATE_MODE = 0o600
MAX_SECRET_LENGTH = 16 * 1024
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}").fullmatch


class BadSecret(ValueError):
    """A name, a value or the file itself is not what it must be; the message never holds a value."""


class Secret(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One secret: its value, or the file or the environment variable that holds it. One of the three is set."""

    value: str = ""
    file: str = ""
    variable: str = ""

    def __repr__(self) -> str:
        return f"<a secret kept as {self.kept_as}>"

    @property
    def kept_as(self) -> str:
        """Where the value is, for people to read."""
        if self.file:
            return f"the file {self.file}"
        return f"the environment variable {self.variable}" if self.variable else "a value"


def check_name(name: str) -> str:
    """`name` if a secret can be called so, such as `openai`. Raises BadSecret."""
    if _NAME(name) is None:
        raise BadSecret(f"{name!r} is no name of a secret; it is like openai or gemini: a-z, 0-9, - and _")
    return name


def check_value(value: str) -> str:
    """`value` without the white space around it. Raises BadSecret for what no header could carry."""
    stripped = value.strip()
    if not stripped:
        raise BadSecret("the value is empty")
    if len(stripped) > MAX_SECRET_LENGTH or not usable_key(stripped):
        raise BadSecret("the value is no API key: it holds spaces, line breaks or characters outside ASCII")
    return stripped


def usable_key(key: str) -> bool:
    """Whether a header can carry `key`."""
    return key.isascii() and key.isprintable() and " " not in key


_decode = decoder(dict[str, Secret])


def decode(data: bytes) -> dict[str, Secret]:
    """The secrets by name. Raises BadSecret for a file that is none of ours."""
    try:
        return _decode(data) if data.strip() else {}
    except BadJson:
        # Not the decoder's own words: they may quote the file.
        raise BadSecret("it is not in the form that kuwa secrets writes") from None


def encode(secrets: Mapping[str, Secret]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(dict(sorted(secrets.items())))) + b"\n"
