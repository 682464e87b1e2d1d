"""What a replica's refusal means. Pure."""

from __future__ import annotations

from collections.abc import Callable

from kuwa.wire.errors import BadUpstream, KuwaError
from kuwa.wire.json import BadJson, is_object
from kuwa.wire.openai import decode_whole

MAX_RETRY_AFTER_S = 24 * 3600


def error_from_answer(
    status: int, body: bytes, who: str, retry_after: bytes = b"", hide: Callable[[str], str] = str
) -> tuple[KuwaError, bool]:
    """What an answer other than 200 means: the error for the client, and whether another replica may do better.

    `hide` takes out of the replica's words what a client is not to read.
    """
    passed = PassedOn.of(status, body)
    if passed is not None:
        passed.reword(hide)
        if retry_after.isdigit():
            passed.retry_after_s = min(int(retry_after[:9]), MAX_RETRY_AFTER_S)
        return passed, passed.retryable_elsewhere
    shown = hide(body.decode("utf-8", "replace"))[:200].strip() or "nothing"
    return BadUpstream(f"{who} answered with status {status} and {shown!r}."), status >= 500 or status in (
        404,
        429,
    )


class PassedOn(KuwaError):
    """An error in the OpenAI shape that a replica gave: passed on with its own status, message and code."""

    retryable_elsewhere: bool
    """Whether another replica may do better: overload and faults, but no fault of the request."""

    @classmethod
    def of(cls, status: int, body: bytes) -> PassedOn | None:
        """The error in `body`, or None where it is not in the OpenAI shape."""
        try:
            whole = decode_whole(body)
        except BadJson:
            return None
        error = whole.error
        if error is None or not is_object(whole.fault) or not error.message or not 400 <= status <= 599:
            return None
        passed = cls(error.message, param=error.param)
        passed.status = status
        passed.type = error.type or "upstream_error"
        passed.code = error.code or passed.type
        passed.retryable_elsewhere = status >= 500 or status == 429
        if status in (429, 503):
            passed.retry_after_s = 1
        return passed
