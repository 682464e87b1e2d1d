"""Registration as a lease: what an executor tells the kernel every few seconds, and the answer.

It travels as the form field `kuwa` (JSON) beside the old fields `name` and `endpoint` of
`POST /v1.0/worker/register`; kernels of the old wire ignore the field and answer `Success` or `Failed`.
Every time is in seconds; nothing here is a wall-clock time but `started_at`, which is for people only.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from kuwa.wire.errors import InvalidRequest
from kuwa.wire.json import BadJson, decoder
from kuwa.wire.openai import Usage

LEASE_TTL_S = 6.0
RENEW_S = 2.0
MAX_TOKENS = 2**53
"""Token counts beyond this are not true; up to it, a JSON or Prometheus number holds them exactly."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**30 - 1)]
Incarnation = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Capability = Literal["chat", "completions", "embeddings", "rerank", "images", "tools", "abort", "resume"]
ExecutorState = Literal["starting", "ready", "draining"]


class Dialects(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """Where the executor answers: the base URL of its OpenAI dialect and its v1.0 chat endpoint."""

    openai: str = ""
    v1_0: str = msgspec.field(default="", name="v1.0")


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What the executor is doing now. `tokens_per_s` is generated tokens over the last renewal period."""

    running: Count = 0
    waiting: Count = 0
    tokens_per_s: float = 0.0
    progress: str = ""


class EndedRequest(Usage, frozen=True, kw_only=True):
    """What a request cost whose answer did not reach its end, so that the answer could not say it."""

    request_id: str


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """One registration or renewal: idempotent; a newer `incarnation` of an `executor_id` replaces the older one.

    `incarnation` is the start of the executor's process in nanoseconds since the epoch: it only ever grows.
    `context_length` is in tokens, 0 where unknown. `ended` are the cut requests since the last renewal that arrived.
    `fingerprint`: executors that name the same one give the same answer to the same seeded request; empty where that
    cannot be said.
    """

    executor_id: str
    incarnation: Incarnation
    access_codes: list[str]
    dialects: Dialects
    executor: str = ""
    version: str = ""
    state: ExecutorState = "ready"
    concurrency: Count = 1
    capabilities: list[str] = []
    context_length: Count = 0
    fingerprint: str = ""
    load: Load = Load()
    ended: list[EndedRequest] = []
    started_at: float = 0.0


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """The kernel's answer. The executor renews every `renew_s`; without renewal it is gone after `ttl_s`."""

    lease_id: str
    ttl_s: float = LEASE_TTL_S
    renew_s: float = RENEW_S
    kernel: str = ""


_decode_registration = decoder(Registration)
_decode_lease = decoder(Lease)


def decode_registration(text: str | bytes) -> Registration:
    """Read the form field `kuwa`; a malformed one raises InvalidRequest naming the field at fault."""
    try:
        registration = _decode_registration(text)
    except BadJson as error:
        raise InvalidRequest(f"The form field 'kuwa' is no registration: {error}", param="kuwa") from error
    if not registration.access_codes:
        raise InvalidRequest("The registration names no access code.", param="kuwa")
    if registration.concurrency < 1:
        raise InvalidRequest(
            f"The registration's concurrency is {registration.concurrency}; it must be at least 1.", param="kuwa"
        )
    return registration


def decode_lease(body: bytes) -> Lease | None:
    """The kernel's answer as a lease, or None where an old kernel answered in plain text."""
    try:
        return _decode_lease(body)
    except BadJson:
        return None


def encode(message: Registration | Lease) -> bytes:
    return msgspec.json.encode(message)
