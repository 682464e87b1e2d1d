"""Received JSON: one decoder, which fails in one way.

msgspec raises errors of its own, a RecursionError for deep nesting and a UnicodeError for bytes that are not UTF-8.
Whoever decodes here has one `except` to write, and cannot forget any of them: ruff bans the bare decoder elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard, TypeVar, overload

import msgspec

Fields = dict[str, Any]
"""The members of a JSON object that no struct describes."""

T = TypeVar("T")


class BadJson(ValueError):
    """The data is not JSON or has the wrong type; the message says what is wrong with it, and where.

    `wrong_type`: as far as it was read it is JSON, but not of the type that was asked for.
    """

    wrong_type: bool = False

    @classmethod
    def of(cls, error: Exception) -> BadJson:
        if isinstance(error, RecursionError):
            bad = cls("it is nested too deeply")
        elif isinstance(error, UnicodeError):
            bad = cls("it is not valid UTF-8")
        else:
            bad = cls(str(error))
        bad.wrong_type = isinstance(error, msgspec.ValidationError)
        return bad


Mend = Callable[[Fields], None]
"""Replaces the values of an object whose wrong type may be forgiven."""


@overload
def decoder(kind: type[T], mend: Mend | None = None) -> Callable[[bytes | str], T]: ...
@overload
def decoder(kind: Any, mend: Mend | None = None) -> Callable[[bytes | str], Any]: ...
def decoder(kind: Any, mend: Mend | None = None) -> Callable[[bytes | str], Any]:
    """A function that decodes `kind` and raises BadJson. Made once, for what is decoded often.

    An object that does not have the type is given to `mend` and tried once more: what is sent as it should be costs
    nothing more for it.
    """
    bare = msgspec.json.Decoder(kind).decode  # noqa: TID251 - its one home

    def decode_kind(data: bytes | str) -> Any:
        try:
            return bare(data)
        except (ValueError, RecursionError) as error:
            bad = BadJson.of(error)
            if mend is None or not bad.wrong_type:
                raise bad from error
        fields = decode(data, Fields)
        mend(fields)
        try:
            return bare(msgspec.json.encode(fields))
        except (ValueError, RecursionError) as error:
            raise BadJson.of(error) from error

    return decode_kind


FAULTS = (ValueError, RecursionError)
"""What a bare decoder raises."""


def bare_decoder(kind: type[T]) -> Callable[[bytes | str], T]:
    """A decoder without its guard, for what is decoded by the thousand: who calls it catches FAULTS."""
    return msgspec.json.Decoder(kind).decode  # noqa: TID251 - as above


@overload
def decode(data: bytes | str, kind: type[T]) -> T: ...
@overload
def decode(data: bytes | str, kind: Any = Any) -> Any: ...
def decode(data: bytes | str, kind: Any = Any) -> Any:
    """`data` as `kind`. Raises BadJson."""
    try:
        return msgspec.json.decode(data, type=kind)  # noqa: TID251 - as above
    except (ValueError, RecursionError) as error:
        raise BadJson.of(error) from error


def is_object(value: object) -> TypeGuard[Fields]:
    """Whether a decoded value is a JSON object."""
    return isinstance(value, dict)


def is_list(value: object) -> TypeGuard[list[Any]]:
    """Whether a decoded value is a JSON list."""
    return isinstance(value, list)


def fields_in(value: object) -> Fields:
    """The members of a decoded object; none of any other value."""
    return value if is_object(value) else {}


def items_in(value: object) -> list[Any]:
    """The items of a decoded list; none of any other value."""
    return value if is_list(value) else []
