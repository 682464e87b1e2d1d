"""What a provider's refusals and breakdowns become for the client: one of `kuwa.wire.errors`, saying what to do.

Pure: the executor's `upstream` hands in the facts of the failure (status, headers, body) and raises what comes
back. The provider's own words are passed on, but never a key that they repeat. OpenAI's and Google's errors are read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from kuwa.wire.errors import (
    BadUpstream,
    ContentFiltered,
    ContextLengthExceeded,
    InvalidApiKey,
    InvalidRequest,
    KuwaError,
    ModelNotFound,
    PermissionDenied,
    RateLimited,
    RequestTooLarge,
    UpstreamTimeout,
)
from kuwa.wire.json import fields_in, items_in
from kuwa.wire.redaction import Redactor

MAX_WORDS = 2000
MAX_RETRY_AFTER_S = 3600
# What servers without a code for it say: vLLM and others of OpenAI's dialect, llama-server, Gemini.
_TOO_LONG = re.compile(
    r"maximum context length|exceeds? the (available )?context|input token count.{0,40}exceeds the maximum|"
    r"longer than the (model's )?(maximum )?context",
    re.IGNORECASE,
)
_WINDOW = re.compile(
    r"(?:context length (?:is|of)|context of|context size of|tokens allowed)[ (]{1,2}(?:only )?([0-9]{1,9})",
    re.IGNORECASE,
)
# The most telling first: what was requested may hold the answer's room, too.
_USED = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"([0-9]{1,9}) (?:tokens )?in the (?:messages|prompt)",
        r"resulted in ([0-9]{1,9})",
        r"([0-9]{1,9}) input tokens",
        r"token count \(([0-9]{1,9})\)",
        r"requested ([0-9]{1,9})",
    )
)
_FILTERED = {"content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation"}


@dataclass(frozen=True, slots=True)
class Origin:
    """Who answered, and with which key it was asked: what an error has to name."""

    base_url: str
    model: str
    key: str = field(repr=False)
    key_source: str
    wants_path: bool = True

    @property
    def url_hint(self) -> str:
        if not self.wants_path or urlsplit(self.base_url).path.strip("/"):
            return ""
        return " --base_url names no path; most servers want it to end in /v1."

    def quote(self, words: str) -> str:
        """The provider's own words, bounded, without the key."""
        return Redactor(self.key)(words)[:MAX_WORDS]


def refusal(
    status: int, headers: Mapping[str, str], body: object, origin: Origin, *, now: datetime | None = None
) -> KuwaError:
    """The error for an answer of `status` with the decoded JSON (or the text) `body`. `now` is the wall clock."""
    error = _error_object(body)
    said = origin.quote(_message(error, body))
    answered = f"{origin.base_url} answered {status}: {said or 'nothing that explains it.'}"
    param = error.get("param")
    param = origin.quote(param) if isinstance(param, str) else None
    match status:
        case 401:
            return InvalidApiKey(f"{answered} (The key came from {origin.key_source}; is it right for this server?)")
        case 403:
            return PermissionDenied(f"{answered} (The key came from {origin.key_source}.)")
        case 404:
            return ModelNotFound(f"{answered} (Asked for the model {origin.model!r}; see --model.){origin.url_hint}")
        case 408 | 504:
            return UpstreamTimeout(answered)
        case 413:
            return RequestTooLarge(answered)
        case 429:
            wait = headers.get("retry-after") or _retry_delay(error)
            return RateLimited(answered, retry_after_s=retry_after_s(wait, now))
        case _ if 300 <= status < 400:
            where = origin.quote(headers.get("location", "another place"))
            return BadUpstream(f"{answered} (It points to {where}; is that the right --base_url?)")
        case _ if 400 <= status < 500:
            return _refused_request(error, said, answered, param, origin)
        case _:
            broken = BadUpstream(answered)
            if wait := headers.get("retry-after"):
                broken.retry_after_s = retry_after_s(wait, now)
            return broken


def _refused_request(
    error: Mapping[str, Any], said: str, answered: str, param: str | None, origin: Origin
) -> KuwaError:
    codes = {error.get("code"), *(detail.get("reason") for detail in _details(error))}
    if "API_KEY_INVALID" in codes:
        return InvalidApiKey(f"{answered} (The key came from {origin.key_source}; is it right for this server?)")
    if "context_length_exceeded" in codes or _TOO_LONG.search(said):
        return ContextLengthExceeded(said + origin.quote(_llama_figures(error)), param=param)
    if codes & _FILTERED:
        return ContentFiltered(said, param=param)
    return InvalidRequest(said or answered, param=param)


def broken_event(error: object, origin: Origin) -> KuwaError:
    """The error for an error object that the provider sent inside its stream."""
    return BadUpstream(f"{origin.base_url} broke off its answer: {origin.quote(_message(fields_in(error), error))}")


def not_a_stream(content_type: str, origin: Origin) -> KuwaError:
    what = origin.quote(content_type) or "no content type"
    return BadUpstream(
        f"{origin.base_url} answered with {what} instead of an event stream; "
        f"is --base_url the base of an OpenAI-compatible API?{origin.url_hint}"
    )


def not_an_answer(origin: Origin) -> KuwaError:
    return BadUpstream(f"{origin.base_url} sent an answer that cannot be read; is --base_url right?{origin.url_hint}")


def context_figures(message: str) -> tuple[int, int] | None:
    """The context window and the tokens of the prompt, as a provider's refusal of a prompt that is too long names
    them; None where it does not."""
    window = _WINDOW.search(message)
    used = next((found for pattern in _USED if (found := pattern.search(message))), None)
    return (int(window.group(1)), int(used.group(1))) if window and used else None


def unreachable(reason: str, origin: Origin) -> KuwaError:
    return BadUpstream(
        f"{origin.base_url} cannot be reached ({origin.quote(reason)}). Check --base_url and that its server runs."
    )


def retry_after_s(value: str, now: datetime | None = None) -> int:
    """The header's seconds or date as whole seconds from `now`, within 1 second and an hour; 1 if unreadable."""
    try:
        seconds = float(value)
    except ValueError:
        seconds = _seconds_until(value, now or datetime.now(UTC))
    if not math.isfinite(seconds):
        return 1
    return min(max(math.ceil(seconds), 1), MAX_RETRY_AFTER_S)


def _seconds_until(date: str, now: datetime) -> float:
    try:
        return (parsedate_to_datetime(date) - now).total_seconds()
    except (ValueError, TypeError):
        return 1.0


def _error_object(body: object) -> Mapping[str, Any]:
    """`{"error": {…}}` is OpenAI's shape; some servers send the inner object alone."""
    outer = fields_in(body)
    return fields_in(outer.get("error")) or outer


def _details(error: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Google's `details`: objects that say more than the status."""
    details = error.get("details")
    return [fields_in(detail) for detail in items_in(details)]


def _llama_figures(error: Mapping[str, Any]) -> str:
    """llama-server says in fields of their own what others say in words."""
    if "n_prompt_tokens" not in error or "n_ctx" not in error:
        return ""
    return f" ({error['n_prompt_tokens']} tokens in the prompt, a context of {error['n_ctx']})"


def _retry_delay(error: Mapping[str, Any]) -> str:
    """Google's way to say Retry-After: `"retryDelay": "17s"`."""
    delays = (detail.get("retryDelay") for detail in _details(error))
    return next((delay.removesuffix("s") for delay in delays if isinstance(delay, str)), "")


def _message(error: Mapping[str, Any], body: object) -> str:
    for value in (error.get("message"), error.get("error"), error.get("detail")):
        if isinstance(value, str) and value:
            return value
    if isinstance(body, str):
        return "a web page, no API's answer." if body.lstrip().startswith("<") else body.strip()
    return ""
