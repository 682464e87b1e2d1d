"""Where an executor listens, and under which name the kernel reaches it. `run` asks before it listens.

An executor takes requests from everybody who reaches it, so it listens on one address: the one that it registers.
"""

from __future__ import annotations

import hashlib
import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from kuwa.wire.names import is_loopback


@dataclass(frozen=True, slots=True)
class Address:
    """Under which name others reach the executor."""

    host: str
    port: int
    scheme: str

    @property
    def origin(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Way:
    """The way to the kernel: this machine's address on it, and whether it ends on this machine."""

    own: str = "127.0.0.1"
    local: bool = True


def way_to(kernel_url: str) -> Way:
    """Find the way to the kernel. Sends nothing: connecting a datagram socket only routes. Raises OSError."""
    parts = urlsplit(kernel_url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)
        own = str(probe.getsockname()[0])
        return Way(own, local=own == probe.getpeername()[0] or is_loopback(own))


def bind_address(host: str, local: Sequence[str], way: Callable[[], Way]) -> str:
    """The one address to listen on for an executor that registers `host`; `local`: those of its addresses that this
    machine has.

    A host that leads elsewhere is that of a proxy, a router or a container's machine: they reach this machine at its
    address on the way to the kernel.
    """
    if is_loopback(host):
        return "127.0.0.1" if _is_name(host) else host
    if local and not _is_name(host):
        return local[0]
    kernel = way()
    # /etc/hosts often gives a machine's own name a loopback address, which is of use on this machine alone.
    reachable = [address for address in local if kernel.local or not is_loopback(address)]
    return reachable[0] if reachable else kernel.own


def local_addresses(host: str) -> list[str]:
    """The addresses of `host` that a server on this machine can listen on; none where nobody knows the host."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [str(address[0]) for family, _, _, _, address in found if _can_listen(family, address)]


def _can_listen(family: socket.AddressFamily, address: tuple[object, ...]) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind(address)
    except OSError:
        return False
    return True


def _is_name(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False


def executor_id(origin: str) -> str:
    """The same after a restart on the same port, so that a restarted executor takes the place of the old one."""
    return "exe_" + hashlib.sha256(f"{socket.gethostname()} {origin}".encode()).hexdigest()[:16]
