"""The kernel's report of itself and its executors: the JSON of `GET /v1.0/worker/debug`.

The kernel builds it (`kuwa.kernel.report`); the client, the terminal and the fleet read it. Fields that a newer kernel
adds are ignored.
"""

from __future__ import annotations

import msgspec

from kuwa.wire.json import decoder
from kuwa.wire.lease import Load

WELCOME = "welcome"
"""The access code of the model that `kuwa up` makes; a good first model to try."""

OldStatus = dict[str, list[list[str | int]]]


class About(msgspec.Struct, frozen=True):
    version: str
    draining: bool = False


class Queue(msgspec.Struct, frozen=True):
    """How many requests for an access code wait for a slot, and their bytes."""

    access_code: str
    waiting: int = 0
    waiting_bytes: int = 0


class Replica(msgspec.Struct, frozen=True):
    """One executor (or upstream) that serves `access_codes`. `slots` is None if they are unlimited; `since_s`: seconds
    in this state; `note`: why it is not ready, if the kernel knows; `ejected`: the access codes that it gets no
    requests for at present, and why."""

    id: str
    access_codes: list[str]
    endpoint: str
    state: str
    wire: str = ""
    source: str = ""
    executor: str = ""
    version: str = ""
    since_s: float = 0.0
    slots: int | None = None
    running: int = 0
    load: Load = Load()
    capabilities: list[str] = []
    context_length: int = 0
    registered_from: str = ""
    note: str = ""
    ejected: dict[str, str] = {}

    def state_at(self, access_code: str) -> str:
        """Its state for one of its access codes: one model may be ejected while the others of its executor work."""
        return "ejected" if access_code in self.ejected else self.state

    def note_at(self, access_code: str) -> str:
        return self.ejected.get(access_code, self.note)

    @property
    def kind(self) -> str:
        """The name of its executor; without one, how it came to the kernel."""
        return self.executor or self.source or self.wire

    def chats(self, access_code: str) -> bool:
        """Whether it is ready for a chat. Legacy executors and upstreams report no capabilities; they chat."""
        return self.state_at(access_code) == "ready" and (not self.capabilities or "chat" in self.capabilities)


class Report(msgspec.Struct, frozen=True):
    """`gone`: the replicas that left within the last minute; `v1_0`: the report of a v1.0 kernel."""

    kernel: About
    models: list[Queue]
    replicas: list[Replica]
    gone: list[Replica] = []
    v1_0: OldStatus = msgspec.field(default_factory=dict[str, list[list[str | int]]], name="v1.0")

    def waiting(self, access_code: str) -> int:
        return next((queue.waiting for queue in self.models if queue.access_code == access_code), 0)

    def ready(self) -> list[str]:
        """The access codes with a replica that is ready, sorted."""
        return sorted({code for code, replica in self.rows() if replica.state_at(code) == "ready"})

    def rows(self) -> list[tuple[str, Replica]]:
        """Each access code of each replica, in the kernel's order."""
        return [(code, replica) for replica in self.replicas for code in replica.access_codes]

    def by_code(self) -> dict[str, list[Replica]]:
        """The replicas of each access code, sorted by access code."""
        found: dict[str, list[Replica]] = {}
        for code, replica in self.rows():
            found.setdefault(code, []).append(replica)
        return dict(sorted(found.items()))

    def suggestion(self) -> str | None:
        """The access code to try first: `welcome` if it is ready, else the first that is ready and chats."""
        ready = [code for code, replicas in self.by_code().items() if any(replica.chats(code) for replica in replicas)]
        return WELCOME if WELCOME in ready else next(iter(ready), None)


decode_report = decoder(Report)


def encode_report(report: Report) -> bytes:
    return msgspec.json.encode(report)
