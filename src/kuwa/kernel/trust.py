"""What the kernel believes of those who register, and where it may listen. Pure.

A registered endpoint is an address that the kernel will send requests to, so whoever registers one could aim the
kernel at any server it can reach. `api/workers` asks here before the registry sees anything; `cli` asks before the
kernel listens.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from urllib.parse import SplitResult, urlsplit

from kuwa.wire.errors import ForbiddenEndpoint, InvalidRequest
from kuwa.wire.lease import Registration
from kuwa.wire.names import check_access_code, is_loopback

MAX_URL = 2000
MAX_EXECUTOR_ID = 200
MAX_ACCESS_CODES = 100
MAX_CLOCK_AHEAD_S = 24 * 3600


class EndpointRule:
    """Which endpoints may be registered by whom.

    `allowed` are the hosts of `--allowed_executor` (names or addresses, allowed to everyone); `own` tells this
    machine's names and addresses, which a registrant on this machine may use. It is asked when they matter: a
    laptop's change.
    """

    def __init__(self, allowed: Iterable[str] = (), own: Callable[[], Iterable[str]] = tuple) -> None:
        self._allowed = frozenset(_canonical(host) for host in allowed)
        self._own = own

    def check(self, url: str, peer: str) -> None:
        """Raise InvalidRequest for what is no endpoint, ForbiddenEndpoint for one on another's machine.

        `peer` is the address that the registration came from.
        """
        host = _canonical(_sound_url(url).hostname or "")
        if host in self._allowed or self._is_registrants(host, _canonical(peer)):
            return
        raise ForbiddenEndpoint(
            f"An executor at {peer} may not register the endpoint {url!r}: it is on another machine. Register the "
            f"executor's own address, or start the kernel with --allowed_executor {host}.",
            param="endpoint",
        )

    def _is_registrants(self, host: str, peer: str) -> bool:
        # Loopback means this machine: to a registrant elsewhere it would be somebody else's server.
        if host == peer:
            return True
        return is_loopback(peer) and (is_loopback(host) or any(host == _canonical(name) for name in self._own()))


def check_registration(registration: Registration, rule: EndpointRule, peer: str, wall_s: float) -> None:
    """Raise InvalidRequest or ForbiddenEndpoint for a registration that the registry must not see.

    `wall_s`: the time of day in seconds since the epoch.
    """
    executor_id = registration.executor_id
    if not (0 < len(executor_id) <= MAX_EXECUTOR_ID and executor_id.isprintable()):
        raise InvalidRequest(f"An executor_id is 1 to {MAX_EXECUTOR_ID} printable characters.", param="kuwa")
    ahead_s = registration.incarnation / 1e9 - wall_s
    if ahead_s > MAX_CLOCK_AHEAD_S:
        # No later process could ever take its place.
        raise InvalidRequest(
            f"The incarnation of executor {executor_id!r} is {ahead_s / 3600:.0f} hours in the future of this kernel's "
            "clock; set the clocks of both machines.",
            param="kuwa",
        )
    if len(registration.access_codes) > MAX_ACCESS_CODES:
        raise InvalidRequest(f"An executor has at most {MAX_ACCESS_CODES} access codes.", param="kuwa")
    for code in registration.access_codes:
        check_access_code(code)
    addresses = [url for url in (registration.dialects.openai, registration.dialects.v1_0) if url]
    if not addresses:
        raise InvalidRequest("The registration names no address in 'dialects'.", param="kuwa")
    for url in addresses:
        rule.check(url, peer)


def same_peer(one: str, other: str) -> bool:
    """Whether two peer addresses are the same host's, whatever their spelling; loopback has several."""
    one, other = _canonical(one), _canonical(other)
    return one == other or (is_loopback(one) and is_loopback(other))


def may_listen(host: str, *, insecure_no_auth: bool) -> bool:
    """Whether the kernel may listen there: without keys everyone who reaches it may use it."""
    return insecure_no_auth or is_loopback(host)


def _sound_url(url: str) -> SplitResult:
    """The parts of a plain http(s) URL. Raises InvalidRequest naming what is wrong with it."""
    if len(url) > MAX_URL or not (url.isascii() and url.isprintable()) or " " in url or "\\" in url:
        raise _unsound(url, "it must be at most 2000 printable ASCII characters without space or backslash")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _unsound(url, str(error)) from error
    if parts.scheme not in ("http", "https"):
        raise _unsound(url, "it must begin with http:// or https://")
    if not parts.hostname or port == 0:
        raise _unsound(url, "it must name a host and, where it has a port, one from 1 to 65535")
    if "@" in parts.netloc:
        raise _unsound(url, "it must not hold a user name or password")
    if "?" in url or "#" in url:
        raise _unsound(url, "it must not hold a query or a fragment")
    if _is_unspecified(parts.hostname):
        raise _unsound(url, "that address is for listening only; register the one that others reach")
    return parts


def _unsound(url: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"{url[:100]!a} is no endpoint: {why}.", param="endpoint")


def _canonical(host: str) -> str:
    """One spelling per host: lower case, no brackets, no trailing dot, an IPv4 address in IPv6 as IPv4."""
    name = host.strip("[]").rstrip(".").lower()
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
