"""The HTTP proxy that a provider is reached through: which one, and what it is told. Pure; `connections` dials.

`--proxy` names one for whatever `--base_url` is; `HTTPS_PROXY` names one for providers at https, unless `NO_PROXY`
names their host. Either way the proxy is asked for a tunnel (`CONNECT`), so that it never sees a key.
"""

from __future__ import annotations

import argparse
import base64
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from kuwa.executor.arguments import UsageError

DEFAULT_PORT = 3128
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r]").match


@dataclass(frozen=True, slots=True)
class Proxy:
    host: str
    port: int
    authorization: bytes = field(default=b"", repr=False)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def ask(self, host: str, port: int) -> bytes:
        """The request for a tunnel to a server."""
        name = f"[{host}]" if ":" in host else host
        target = f"{name}:{port}".encode("idna" if not name.isascii() else "ascii")
        credentials = b"proxy-authorization: Basic %b\r\n" % self.authorization if self.authorization else b""
        return b"CONNECT %b HTTP/1.1\r\nhost: %b\r\n%b\r\n" % (target, target, credentials)


def add_proxy_option(add_argument: Callable[..., Any]) -> None:
    add_argument(
        "--proxy",
        default=None,
        metavar="URL",
        help="HTTP proxy for the API, for example http://proxy:3128 (default: HTTPS_PROXY for an https API, unless "
        "NO_PROXY contains the API's host)",
    )


def find_proxy(args: argparse.Namespace, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy on the way to `--base_url`; None where there is none. Raises UsageError for one that is none."""
    given: str | None = args.proxy
    if given is not None:
        if "@" in given:
            raise UsageError("--proxy holds a password, which everybody could read here; put it into HTTPS_PROXY")
        return read_proxy("--proxy", given)
    target = urlsplit(str(args.base_url))
    url = _variable(environment, "HTTPS_PROXY")
    if not url or target.scheme != "https":
        return None
    if exempt(target.hostname or "", target.port or 443, _variable(environment, "NO_PROXY")):
        return None
    return read_proxy("HTTPS_PROXY", url)


def read_proxy(source: str, url: str) -> Proxy:
    """Raises UsageError, which never repeats the URL: it may hold a password."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port or DEFAULT_PORT
    except ValueError:
        parts, host, port = None, None, 0
    if parts is None or parts.scheme != "http" or not host or not host.isascii():
        raise UsageError(f"{source} names no HTTP proxy; it looks like http://proxy:{DEFAULT_PORT}")
    credentials = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}" if parts.username else ""
    return Proxy(host, port, base64.b64encode(credentials.encode()))


def exempt(host: str, port: int, no_proxy: str) -> bool:
    """Whether `NO_PROXY` names a host: `*`, a name (its subdomains too), an address, a network; `:port` may follow."""
    host = host.lower().rstrip(".")
    for entry in no_proxy.lower().replace(",", " ").split():
        name, colon, only = entry.rpartition(":")
        if not colon or not only.isdigit() or (":" in name and not name.endswith("]")):
            name, only = entry, ""
        if (not only or int(only) == port) and _names(name.strip("[]"), host):
            return True
    return False


def _names(entry: str, host: str) -> bool:
    suffix = entry.removeprefix("*").strip(".")
    if entry == "*" or (suffix and (host == suffix or host.endswith("." + suffix))):
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False


def tunnel_refused(answer: bytes) -> str:
    """Why the proxy's answer opens no tunnel; empty where it does."""
    status = _STATUS(answer)
    if status is None:
        return "its answer is no HTTP proxy's"
    if status[1] == b"407":
        return "it wants a user name and a password (407): http://user:password@proxy in HTTPS_PROXY"
    return "" if status[1].startswith(b"2") else f"it answered {status[1].decode()}"


def _variable(environment: Mapping[str, str], name: str) -> str:
    return (environment.get(name.lower()) or environment.get(name) or "").strip()
