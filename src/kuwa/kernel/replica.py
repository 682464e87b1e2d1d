"""One executor process (or one `--upstream`), under one or more access codes, as the kernel knows it.

The registry keeps the replicas; policy, dispatcher, wires and pages read them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from kuwa.kernel.breaker import Breaker
from kuwa.wire.lease import Load

State = Literal["starting", "ready", "suspect", "draining", "ejected", "gone"]
STATES: tuple[State, ...] = ("starting", "ready", "suspect", "draining", "ejected", "gone")
Wire = Literal["openai", "v1.0"]
Source = Literal["lease", "old", "upstream"]

UNLIMITED = 1 << 30

_NO_LOAD = Load()


@dataclass(slots=True, eq=False, kw_only=True)
class Replica:
    """One executor process that can answer for its access codes.

    The registry alone writes `state`; the dispatcher alone writes `running`, the exact count of held slots.
    `admits` is how many slots may be held now: all `slots`, or one while it is on trial. `lost`: its process was given
    up as dead or frozen and has not come back, so that whatever still waits for it need wait no longer.
    `resumes`: its streams can be gone on with elsewhere, and others' here.
    `base_url` is of the OpenAI dialect (`http://127.0.0.1:4001/v1`), `endpoint` the chat endpoint of the v1.0
    wire. `model` is the name to send upstream, empty where it is the access code. Times are monotonic seconds.
    """

    id: str
    executor_id: str
    incarnation: int
    source: Source
    access_codes: tuple[str, ...]
    wire: Wire
    base_url: str = ""
    endpoint: str = ""
    model: str = ""
    authorization: bytes = field(default=b"", repr=False)
    slots: int = 1
    admits: int = field(init=False)
    running: int = 0
    state: State = "starting"
    since: float = 0.0
    registered_at: float = 0.0
    registered_from: str = ""
    heard_at: float = 0.0
    next_poll: float = math.inf
    last_poll: float = -math.inf
    failures: int = 0
    breaker: Breaker = field(default_factory=Breaker)
    lost: bool = False
    note: str = ""
    load: Load = _NO_LOAD
    capabilities: frozenset[str] = frozenset()
    context_length: int = 0
    fingerprint: str = ""
    resumes: bool = False
    executor: str = ""
    version: str = ""

    def __post_init__(self) -> None:
        self.admits = self.slots

    @property
    def address(self) -> str:
        """Where the kernel reaches it."""
        return self.base_url or self.endpoint

    @property
    def alive(self) -> bool:
        return self.state != "gone"

    @property
    def may_return(self) -> bool:
        """Whether it is asked on although it is gone: one of the old wire registers once in its life."""
        return self.lost and self.source == "old"
