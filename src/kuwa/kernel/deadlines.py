"""How long an attempt may take, and what a silent stream says meanwhile. Decided here, from `now`; `chat` acts."""

from __future__ import annotations

from kuwa.kernel.call import Call
from kuwa.wire import sse
from kuwa.wire.errors import KuwaError, UpstreamLost, UpstreamTimeout

PING_S = 10.0
PROGRESS_S = 1.0
IDLE_S = 30.0
TOTAL_S = 3600.0


def overdue(call: Call, now: float, first_token_s: float) -> KuwaError | None:
    """What ends the current attempt of `call` at `now`; None where nothing does.

    `first_token_s`: how long a replica may be silent before the first content; a comment breaks the silence.
    """
    relay, replica = call.relay, call.replica
    if relay is None or relay.connection is None or relay.over or replica is None:
        return None
    connection = relay.connection
    if replica.lost:
        return UpstreamLost("The executor does not renew its lease any more; it has crashed or hangs.")
    if now - call.started_at > TOTAL_S:
        return UpstreamTimeout(f"The request took longer than {TOTAL_S:g} s.")
    if connection.paused:
        return None
    limit = TOTAL_S if call.whole else IDLE_S if relay.first_content_at else first_token_s
    if now - connection.since > limit:
        return UpstreamTimeout(f"The executor sent nothing for {limit:g} s.")
    return None


def keepalive_due(call: Call, now: float) -> bool:
    return now - call.last_keepalive_at > (PROGRESS_S if call.progress else PING_S)


def is_silent(call: Call, now: float) -> bool:
    """Whether the answer has begun and its replica has sent nothing for a while, of its own accord."""
    relay = call.relay
    if relay is None or not relay.begun or relay.connection is None:
        return False
    return not relay.connection.paused and now - relay.connection.since > PING_S


def keepalive(call: Call, text: str) -> bytes:
    """`text` as a client of this dialect can be sent it between two events; empty where it cannot."""
    return sse.comment(text) if call.renderer is None else call.renderer.keepalive(text)
