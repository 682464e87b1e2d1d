"""How replicas are spoken to: a canonical request goes out in the replica's wire, its answer comes as OpenAI events.

A wire knows nothing of client dialects (`kernel/dialects`), which render those events.
"""

from __future__ import annotations

from typing import Protocol

from kuwa.kernel.call import Call
from kuwa.kernel.relay import Reader
from kuwa.kernel.replica import Replica
from kuwa.kernel.wires.openai import OpenAIWire
from kuwa.kernel.wires.v1 import V1Wire


class ReplicaWire(Protocol):
    """One protocol of replicas."""

    def target(self, replica: Replica, path: str) -> tuple[str, bytes]:
        """The URL and the content type of requests for the OpenAI path `path`. Raises Unsupported."""
        ...

    def is_own(self, replica: Replica) -> bool:
        """Whether the replica is an executor, not a server of somebody else's."""
        ...

    def is_plain(self, replica: Replica) -> bool:
        """Whether the replica gets OpenAI bodies as they are, and answers with OpenAI's events."""
        ...

    def body(self, call: Call, replica: Replica) -> bytes:
        """Raises Unsupported for what the wire cannot carry."""
        ...

    def reader(self, call: Call) -> Reader | None:
        """None where the replica's answers are OpenAI's as they are."""
        ...

    def abort_url(self, replica: Replica) -> str:
        """Where a replica that computes on after its connection has closed is asked to stop; empty for others."""
        ...


_WIRES: dict[str, ReplicaWire] = {"openai": OpenAIWire(), "v1.0": V1Wire()}


def wire_of(replica: Replica) -> ReplicaWire:
    return _WIRES[replica.facts.wire]
