"""One executor process (or one `--upstream`), under one or more access codes, as the kernel knows it.

The registry keeps the replicas; policy, dispatcher, wires and pages read them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import msgspec

from kuwa.http.origin import Origin
from kuwa.kernel.breaker import Breaker
from kuwa.kernel.lifecycle import Lifecycle, Source, State
from kuwa.wire.lease import Load, Registration

Wire = Literal["openai", "v1.0"]

UNLIMITED = 1 << 30

_NO_LOAD = Load()
_TAKES_REQUESTS: frozenset[State] = frozenset(("ready", "suspect"))


class Route(msgspec.Struct, frozen=True):
    """Where a request goes on its replica: the origin, and the request's head up to the request's id.

    `own`: an executor of ours answers there, which may see the keys that requests bring. `plain`: OpenAI bodies and
    answers pass as they are; else the replica's wire makes them.
    """

    origin: Origin
    head: bytes
    own: bool
    plain: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a replica is, as it said itself or as the kernel's settings say; replaced as a whole when it says otherwise.

    `base_url` is of the OpenAI dialect (`http://127.0.0.1:4001/v1`), `endpoint` the chat endpoint of the v1.0 wire.
    `model` is the name to send upstream, empty if it is the access code. `resumes`: another replica can go on with its
    streams, and it with another's. `routes` are kept by path for `kernel/routes`.
    """

    access_codes: tuple[str, ...]
    wire: Wire
    base_url: str = ""
    endpoint: str = ""
    model: str = ""
    authorization: bytes = field(default=b"", repr=False)
    slots: int = 1
    capabilities: frozenset[str] = frozenset()
    context_length: int = 0
    fingerprint: str = ""
    resumes: bool = False
    executor: str = ""
    version: str = ""
    routes: dict[str, Route] = field(default_factory=dict[str, Route], compare=False, repr=False)

    @classmethod
    def of(cls, registration: Registration) -> Facts:
        dialects = registration.dialects
        capabilities = frozenset(registration.capabilities)
        return cls(
            access_codes=tuple(dict.fromkeys(registration.access_codes)),
            wire="openai" if dialects.openai else "v1.0",
            base_url=dialects.openai,
            endpoint=dialects.v1_0,
            slots=registration.concurrency,
            capabilities=capabilities,
            context_length=registration.context_length,
            fingerprint=registration.fingerprint,
            resumes=bool(registration.fingerprint) and "resume" in capabilities,
            executor=registration.executor,
            version=registration.version,
        )

    @property
    def address(self) -> str:
        """Where the kernel reaches it."""
        return self.base_url or self.endpoint


@dataclass(slots=True, eq=False, kw_only=True)
class Replica:
    """One executor process that can answer for its access codes.

    The registry alone writes `facts` and `state`; the dispatcher alone writes `running`, the exact count of held
    slots. `breakers` holds, by access code, what failed since that model last worked there; it is empty for a replica
    that is well. `asked`: a poll of its health is under way. Times are monotonic seconds.
    """

    id: str
    executor_id: str
    incarnation: int
    life: Lifecycle
    facts: Facts
    running: int = 0
    state: State = "starting"
    since: float = 0.0
    registered_at: float = 0.0
    registered_from: str = ""
    note: str = ""
    load: Load = _NO_LOAD
    breakers: dict[str, Breaker] = field(default_factory=dict[str, Breaker])
    asked: bool = False

    @property
    def access_codes(self) -> tuple[str, ...]:
        return self.facts.access_codes

    @property
    def wire(self) -> Wire:
        return self.facts.wire

    @property
    def base_url(self) -> str:
        return self.facts.base_url

    @property
    def endpoint(self) -> str:
        return self.facts.endpoint

    @property
    def address(self) -> str:
        """Where the kernel reaches it."""
        return self.facts.address

    @property
    def health_url(self) -> str:
        """What to GET to learn whether it works."""
        return self.life.health_url(self.address)

    @property
    def model(self) -> str:
        return self.facts.model

    @property
    def authorization(self) -> bytes:
        return self.facts.authorization

    @property
    def slots(self) -> int:
        return self.facts.slots

    @property
    def fingerprint(self) -> str:
        return self.facts.fingerprint

    @property
    def resumes(self) -> bool:
        return self.facts.resumes

    @property
    def capabilities(self) -> frozenset[str]:
        return self.facts.capabilities

    @property
    def source(self) -> Source:
        """How it came to the kernel: for people to read, never to decide by."""
        return self.life.source

    @property
    def alive(self) -> bool:
        return self.state != "gone"

    @property
    def lost(self) -> bool:
        """Whether its process was given up as dead or frozen and has not come back."""
        return self.life.lost

    def state_at(self, access_code: str) -> State:
        """Its state for one access code: `ejected` also while the breaker of that code is open."""
        breaker = self.breakers.get(access_code)
        if breaker is not None and breaker.opened and self.state in _TAKES_REQUESTS:
            return "ejected"
        return self.state

    def note_at(self, access_code: str) -> str:
        """Why it is in that state for the access code, if the kernel knows."""
        breaker = self.breakers.get(access_code)
        return breaker.note if breaker is not None and breaker.opened else self.note

    @property
    def ejected(self) -> dict[str, str]:
        """The access codes whose breaker is open, and why."""
        return {code: breaker.note for code, breaker in self.breakers.items() if breaker.opened}

    @property
    def overall(self) -> State:
        """Its state in one word: `ejected` once it is for each of its access codes."""
        ejected = bool(self.breakers) and all(self.state_at(code) == "ejected" for code in self.access_codes)
        return "ejected" if ejected else self.state
