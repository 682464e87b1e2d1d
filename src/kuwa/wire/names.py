"""The names that travel: access codes, request ids and host names, and what makes one valid."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from itertools import chain

from kuwa.wire.errors import InvalidRequest

MAX_ACCESS_CODE = 200
MAX_CLIENT_REQUEST_ID = 128
RESERVED_PREFIX = "bot/"
ID_BYTES = 12
IDS_AT_A_TIME = 256
PROVIDER_KEY_HEADER = b"x-kuwa-provider-key"


def check_access_code(code: str) -> str:
    """Return `code` if it is 1 to 200 printable characters without space or comma, else raise InvalidRequest.

    `/` and `:` are allowed (model names hold them); the prefix `bot/` is reserved.
    """
    if not code:
        raise InvalidRequest("An access code must not be empty.", param="access_code")
    if len(code) > MAX_ACCESS_CODE:
        raise InvalidRequest(
            f"An access code has at most {MAX_ACCESS_CODE} characters; this one has {len(code)}.",
            param="access_code",
        )
    bad = next((c for c in code if not c.isprintable() or c.isspace() or c == ","), None)
    if bad is not None:
        raise InvalidRequest(
            f"An access code holds printable characters without space or comma; {code!r} holds {bad!r}.",
            param="access_code",
        )
    if code.startswith(RESERVED_PREFIX):
        raise InvalidRequest(
            f"The prefix {RESERVED_PREFIX!r} is reserved; choose another access code than {code!r}.",
            param="access_code",
        )
    return code


class RequestIds:
    """Draws request ids, `req_` and 96 random bits: one who knows an id may cancel the request, so nobody can guess it
    from another one."""

    def __init__(self) -> None:
        # Many at a time, and no step of Python's for most of them: every request draws one.
        self.draw: Callable[[], str] = chain.from_iterable(iter(_many_ids, None)).__next__


def _many_ids() -> map[str]:
    digits = os.urandom(IDS_AT_A_TIME * ID_BYTES).hex("-", ID_BYTES)
    return map("req_".__add__, digits.split("-"))


def echoable_request_id(value: str) -> str | None:
    """The client's own `x-request-id` if it can be echoed (1 to 128 printable ASCII characters), else None."""
    if 0 < len(value) <= MAX_CLIENT_REQUEST_ID and value.isascii() and value.isprintable():
        return value
    return None


def is_loopback(name: str) -> bool:
    """Whether a host name (without port and brackets) always means this machine."""
    name = name.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
