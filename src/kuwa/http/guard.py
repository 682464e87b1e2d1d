"""Which requests a server takes at all, by what their heads say of where they come from. Pure; the connection asks for
every head that it has not read before.

A page in somebody's browser can make it send requests to loopback; what gives such a request away is the name it was
sent to (DNS rebinding), the Origin it came from, or Sec-Fetch-Site. Host and Origin must be loopback names or names
allowed by option. A request that changes something and carries no Origin, such as an image's, must not come from
another site; what is no browser says nothing of its site.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from kuwa.wire.errors import ForbiddenHost, ForbiddenOrigin, KuwaError
from kuwa.wire.names import is_loopback

SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))
OWN_SITES = frozenset((b"same-origin", b"none"))


class HostGuard:
    """Checks Host and Origin against the loopback names and `allowed_hosts` (names without port, any case).

    `changing`: the paths at which even a GET changes something.
    """

    def __init__(self, allowed_hosts: Iterable[str] = (), *, changing: Iterable[str] = ()) -> None:
        self._allowed = frozenset(host.strip("[]").rstrip(".").lower() for host in allowed_hosts)
        self._changing = frozenset(changing)

    def check(
        self, host: bytes, origin: bytes | None, site: bytes | None = None, method: str = "GET", path: str = "/"
    ) -> KuwaError | None:
        """The refusal of a request with these headers (`site`: Sec-Fetch-Site), or None when it is welcome."""
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
        elif site is not None and site not in OWN_SITES and (method not in SAFE_METHODS or path in self._changing):
            return ForbiddenOrigin(
                f"A page of another site may not send {method} {path[:100]!a} to this server: it changes something."
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
