"""Where a request of ours goes, and the request. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit

import msgspec


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """Where to connect: scheme, host and port, and the Host header that goes with them.

    `of` gives one object for one origin, so that they are compared and hashed by identity: the pool is keyed by them.
    `address`: the host, resolved by somebody who has looked at it; empty: whatever it resolves to.
    """

    scheme: str
    host: str
    port: int
    host_header: bytes
    address: str = ""

    @classmethod
    def of(cls, url: str) -> Origin:
        """The origin of an absolute http(s) URL. Raises ValueError."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no http or https URL")
        return _origin(parts.scheme, parts.hostname, parts.port)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host_header.decode()}"


@lru_cache(maxsize=16_384)
def _origin(scheme: str, hostname: str, port: int | None) -> Origin:
    default = 443 if scheme == "https" else 80
    host = f"[{hostname}]" if ":" in hostname else hostname
    header = host if port in (None, default) else f"{host}:{port}"
    return Origin(scheme, hostname, port or default, header.encode("ascii" if header.isascii() else "idna"))


class UpstreamRequest(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A whole request: where it goes, its head with the blank line, and its body.

    `no_body`: its response has none, whatever the response's head says (HEAD).
    """

    origin: Origin
    head: bytes
    body: bytes
    no_body: bool = False
