"""What a replica says in its OpenAI answers about itself: its refusals, and its token counts. Pure."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from kuwa.wire.errors import BadUpstream, KuwaError

MAX_RETRY_AFTER_S = 24 * 3600


class PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None


class Usage(msgspec.Struct, frozen=True):
    """Token counts as every OpenAI answer carries them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: PromptDetails | None = None

    @property
    def cached_tokens(self) -> int:
        details = self.prompt_tokens_details
        return (details.cached_tokens or 0) if details is not None else 0


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
            error = msgspec.json.decode(body, type=_ErrorBody).error
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
        if not 400 <= status <= 599:
            return None
        passed = cls(error.message, param=error.param)
        passed.status = status
        passed.type = error.type
        passed.code = str(error.code)
        passed.retryable_elsewhere = status >= 500 or status == 429
        if status in (429, 503):
            passed.retry_after_s = 1
        return passed


class _ErrorObject(msgspec.Struct):
    message: str
    type: str = "upstream_error"
    param: str | None = None
    code: str | int | None = None


class _ErrorBody(msgspec.Struct):
    error: _ErrorObject
