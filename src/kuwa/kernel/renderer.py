"""What makes OpenAI events a client's bytes: implemented by the dialects, used by the relay."""

from __future__ import annotations

from typing import Protocol

from kuwa.wire.errors import ErrorShape
from kuwa.wire.openai import Usage


class Renderer(ErrorShape, Protocol):
    """Makes the OpenAI events of one answer the client's bytes. Pure; may keep what it needs from call to call."""

    content_type: bytes
    """The Content-Type of a streamed answer."""

    def events(self, events: bytes) -> bytes:
        """Whole events as the client's bytes; may be empty. Raises BadUpstream for what is not an event."""
        ...

    def finish(self, usage: Usage | None) -> bytes:
        """What closes a streamed answer that is complete."""
        ...

    def whole(self, answer: bytes) -> tuple[bytes, bytes]:
        """A whole OpenAI answer as the client's: its Content-Type and its body. Raises BadUpstream."""
        ...

    def keepalive(self, text: str) -> bytes:
        """What a silent stream carries, so that no proxy cuts it; empty where the dialect has nothing for it."""
        ...
