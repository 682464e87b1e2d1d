"""Who sends a request: the principal that shares, limits and cancels count by. Pure.

A credential is read by the scheme of the client's dialect. Before there are keys, a bearer token names a principal
without being checked; a request without one counts for the user it names, else for the address it comes from.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import msgspec

from kuwa.http.exchange import Head, header_lines
from kuwa.wire import form as form_wire
from kuwa.wire.names import PROVIDER_KEY_HEADER, echoable_request_id

FORWARDED = (b"traceparent", b"tracestate", b"x-request-id", b"accept-language", PROVIDER_KEY_HEADER)
PRINCIPAL_BYTES = 16


class Principal(msgspec.Struct, frozen=True):
    """`id` is unique among all principals and never shown. `weight` is its share of a queue beside others."""

    id: str
    weight: float = 1.0


def principal(credential: bytes, user: str | None, host: str) -> Principal:
    """The principal of a request that brings `credential` (empty: none), names `user`, and comes from `host`."""
    return of_credential(credential) or (of_user(user) if user else of_peer(host))


def of_credential(credential: bytes) -> Principal | None:
    if not credential:
        return None
    return Principal("key " + hashlib.blake2b(credential, digest_size=PRINCIPAL_BYTES).hexdigest())


def of_user(user: str) -> Principal:
    return Principal(f"user {user}")


@lru_cache(maxsize=4096)
def of_peer(host: str) -> Principal:
    return Principal(f"peer {host}")


class Caller(msgspec.Struct, frozen=True):
    """What the kernel needs of a request's head, read once for all requests with this head.

    `principal` is that of the credential, None without one. `forwarded` are the header lines that travel on to an
    executor, `forwarded_abroad` those for a server of somebody else's; `echoed` is the client's own request id (empty
    without one). `progress`: the client asked for comments that say how long it will have to wait.
    """

    principal: Principal | None
    forwarded: bytes
    forwarded_abroad: bytes
    echoed: bytes
    progress: bool

    @classmethod
    def of(cls, head: Head, credential: bytes) -> Caller:
        """Read `head`, whose dialect found `credential` in it."""
        theirs = head.get(b"x-request-id") or b""
        lines = header_lines([(name, value) for name in FORWARDED if (value := head.get(name)) is not None])
        return cls(
            principal=of_credential(credential),
            forwarded=lines,
            forwarded_abroad=without_provider_key(lines),
            echoed=(echoable_request_id(theirs.decode("latin-1")) or "").encode(),
            progress=head.get(b"x-kuwa-progress") == b"1",
        )

    def reply(self, own: bytes) -> bytes:
        """The headers of every answer: the kernel's request id, and the client's own echoed (or the kernel's again)."""
        return b"x-kuwa-request-id: %b\r\nx-request-id: %b\r\n" % (own, self.echoed or own)


def bearer(head: Head) -> bytes:
    """The credential of dialects that send `Authorization`, scheme included."""
    return head.get(b"authorization") or b""


def brought_keys(lines: bytes, form: dict[str, str] | None) -> list[str]:
    """The keys for providers that a request brings, in its header lines or its v1.0 form: never for a log."""
    start = PROVIDER_KEY_HEADER + b":"
    keys = [line[len(start) :].strip().decode("latin-1") for line in lines.splitlines() if line.startswith(start)]
    return keys + [form[name] for name in form_wire.PROVIDER_KEY_FIELDS if name in form] if form else keys


def without_provider_key(lines: bytes) -> bytes:
    """Header lines as a server that is no executor of ours gets them: whose key a request brings is not known."""
    return b"".join(line for line in lines.splitlines(keepends=True) if not line.startswith(PROVIDER_KEY_HEADER + b":"))
