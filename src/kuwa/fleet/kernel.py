"""What the fleet asks its kernel over HTTP: is it there, and what does it serve. Called by `kuwa.fleet.up`."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from kuwa.wire.errors import KuwaError

TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Served:
    """One line of what is served: a replica of an access code, and the kernel's name for the state it is in
    (`since_s`: for so many seconds)."""

    access_code: str
    executor: str
    state: str
    endpoint: str
    since_s: float = 0.0


class _Replica(msgspec.Struct, frozen=True):
    access_codes: list[str]
    state: str
    endpoint: str
    executor: str = ""
    since_s: float = 0.0


class _Report(msgspec.Struct, frozen=True):
    replicas: list[_Replica]


_decode = msgspec.json.Decoder(_Report).decode


async def is_live(kernel_url: str) -> bool:
    """Whether a kernel answers there."""
    from kuwa.http.client import fetch

    try:
        return (await fetch("GET", f"{kernel_url}/livez", timeout_s=TIMEOUT_S)).status == 200
    except KuwaError:
        return False


async def served(kernel_url: str) -> list[Served]:
    """What the kernel serves now; nothing where it does not answer."""
    from kuwa.http.client import fetch

    url = f"{kernel_url}/v1.0/worker/debug"
    try:
        response = await fetch("GET", url, headers=[(b"accept", b"application/json")], timeout_s=TIMEOUT_S)
        report = _decode(response.body)
    except (KuwaError, msgspec.MsgspecError):
        return []
    return [
        Served(code, replica.executor, replica.state, replica.endpoint, replica.since_s)
        for replica in report.replicas
        for code in replica.access_codes
    ]
