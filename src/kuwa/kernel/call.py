"""One request, whichever dialect it came in, and how far it has come."""

from __future__ import annotations

from kuwa.http.exchange import Exchange
from kuwa.kernel.identity import Principal
from kuwa.kernel.queue import Ticket
from kuwa.kernel.relay import Relay
from kuwa.kernel.renderer import Renderer
from kuwa.kernel.replica import Replica
from kuwa.kernel.resume import Journal, Replay
from kuwa.kernel.story import Story


class Aborted(Exception):
    """Somebody with the right to do so ended this request; what was delivered stands."""


class Call(Ticket, kw_only=True):
    """One request. It is its own ticket at the dispatcher; the fields below `story` say what has become of it.

    `own_id` is `id` as it travels. `body` is the canonical body, in the OpenAI dialect, `route` the path below a
    replica's base URL. `forwarded` are the client's header lines that travel on to executors, `forwarded_abroad` those
    for servers of others, without provider keys; `reply_headers` are those of every answer. `renderer` makes OpenAI
    events the client's; None where they pass as they are. `key` is the v1.0 pair (history_id, user_id), `form` the v1.0
    form as it came. `whole`: the client wants its answer in one piece. `progress`: the client wants to be told, by
    comments in its stream, how long it will have to wait.

    `relay` is that of the current attempt, or of the last one; `refused_attempts` counts those that no replica
    received; `delivered_at_loss` is how much had been delivered when the replica before was lost. `blamed` are the
    replicas that failed it, and how, until another one answers it.
    """

    id: str
    own_id: bytes
    who: Principal
    exchange: Exchange
    route: str
    body: bytes
    forwarded: bytes
    forwarded_abroad: bytes
    reply_headers: bytes
    renderer: Renderer | None = None
    whole: bool = False
    include_usage: bool = False
    progress: bool = False
    form: dict[str, str] | None = None
    story: Story | None = None
    started_at: float = 0.0
    relay: Relay | None = None
    journal: Journal | None = None
    replay: Replay | None = None
    queue_s: float = 0.0
    attempts: int = 0
    refused_attempts: int = 0
    resumes: int = 0
    delivered_at_loss: int = 0
    last_keepalive_at: float = 0.0
    blamed: tuple[tuple[Replica, str], ...] = ()

    @property
    def kept_bytes(self) -> int:
        """How much is kept of what was delivered, so that another replica can continue."""
        return self.journal.bytes if self.journal is not None else 0

    def interrupt(self, error: BaseException) -> None:
        """Raise `error` where the story waits."""
        if self.story is not None:
            self.story.interrupt(error)
