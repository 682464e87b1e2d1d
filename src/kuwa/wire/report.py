"""What a kernel says about itself and its executors, as its status page gives it to programs. `Client.report`
returns it; fields that a newer kernel adds are ignored."""

from __future__ import annotations

import msgspec

from kuwa.wire.lease import Load


class About(msgspec.Struct, frozen=True):
    version: str
    draining: bool = False


class Queue(msgspec.Struct, frozen=True):
    """How many requests for an access code wait for a slot, and their bytes."""

    access_code: str
    waiting: int = 0
    waiting_bytes: int = 0


class Replica(msgspec.Struct, frozen=True):
    """One executor (or upstream) that serves `access_codes`. `slots` is None where nothing bounds them; `since_s`:
    in this state for so many seconds; `note`: why it is not ready, where the kernel knows."""

    id: str
    access_codes: list[str]
    endpoint: str
    state: str
    wire: str = ""
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


class Gone(msgspec.Struct, frozen=True):
    """One that was there within the last minute."""

    id: str
    access_codes: list[str]
    endpoint: str
    since_s: float = 0.0
    note: str = ""


class Report(msgspec.Struct, frozen=True):
    kernel: About
    models: list[Queue]
    replicas: list[Replica]
    gone: list[Gone] = []

    def waiting(self, access_code: str) -> int:
        return next((queue.waiting for queue in self.models if queue.access_code == access_code), 0)

    def ready(self) -> list[str]:
        """The access codes that somebody is ready to answer for, sorted."""
        return sorted({code for replica in self.replicas if replica.state == "ready" for code in replica.access_codes})


decode_report = msgspec.json.Decoder(Report).decode
