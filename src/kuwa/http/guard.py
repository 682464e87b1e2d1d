"""Which Host and Origin headers a server answers to. Pure; asked by the connection for every request.

A page in somebody's browser can make it send requests to loopback; what gives such a request away is the name it
was sent to (DNS rebinding) or the Origin it came from. Both must be loopback names or names allowed by option.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from kuwa.wire.errors import ForbiddenHost, ForbiddenOrigin, KuwaError
from kuwa.wire.names import is_loopback


class HostGuard:
    """Checks Host and Origin against the loopback names and `allowed_hosts` (names without port, any case)."""

    def __init__(self, allowed_hosts: Iterable[str] = ()) -> None:
        self._allowed = frozenset(host.strip("[]").rstrip(".").lower() for host in allowed_hosts)

    def check(self, host: bytes, origin: bytes | None) -> KuwaError | None:
        """The refusal of a request with these headers, or None when it is welcome."""
        name = _hostname(host)
        if name is None or not self._welcome(name):
            return ForbiddenHost(
                f"This server does not answer to the host {_shown(host)}. "
                "Use localhost, or start it with --allowed_host for that name."
            )
        if origin is not None:
            name = _origin_hostname(origin)
            if name is None or not self._welcome(name):
                return ForbiddenOrigin(
                    f"Pages from the origin {_shown(origin)} may not call this server. "
                    "Start it with --allowed_host for that name to allow them."
                )
        return None

    def _welcome(self, name: str) -> bool:
        return is_loopback(name) or name in self._allowed


def _hostname(host: bytes) -> str | None:
    try:
        parts = urlsplit("//" + host.decode("ascii"))
        port_is_sound = parts.port is None or parts.port > 0
    except ValueError:
        return None
    if not port_is_sound or parts.username is not None or parts.path or parts.query or parts.fragment:
        return None
    return (parts.hostname or "").rstrip(".") or None


def _origin_hostname(origin: bytes) -> str | None:
    scheme, separator, rest = origin.partition(b"://")
    return _hostname(rest) if separator and scheme in (b"http", b"https") else None


def _shown(value: bytes) -> str:
    return ascii(value[:100].decode("latin-1"))
