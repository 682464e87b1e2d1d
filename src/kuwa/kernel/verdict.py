"""What the end of an attempt means: for the client, for the replica, and for the request. Pure; `chat` acts on it."""

from __future__ import annotations

from dataclasses import dataclass

from kuwa.http.upstream_connection import Unanswered
from kuwa.kernel.refusals import PassedOn, error_from_answer
from kuwa.kernel.relay import Relay
from kuwa.kernel.replica import Replica
from kuwa.kernel.resume import StreamDiffers
from kuwa.wire.errors import (
    Draining,
    EngineLost,
    KuwaError,
    NoReplica,
    QueueFull,
    RequestCancelled,
    ResumeMismatch,
    UnreadableAnswer,
    UpstreamLost,
)
from kuwa.wire.redaction import Redactor

# What an executor says that is well and only has no room, or is the wrong one to ask: no failure of its own.
_NO_FAULT = frozenset(
    (Draining.code, NoReplica.code, QueueFull.code, ResumeMismatch.code, UnreadableAnswer.code, "rate_limit_exceeded")
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`error` is what the client would be told.

    `elsewhere`: another replica may do better, even if part of the answer has been delivered. `again`: so may this
    one. `fault`: the replica failed. `answered`: it said so itself, before any content, so that the request may be the
    cause. `refused`: its port is closed. `death`: the replica, or the engine behind it, died while it computed the
    request.
    """

    error: KuwaError
    elsewhere: bool = False
    again: bool = False
    fault: bool = False
    answered: bool = False
    refused: bool = False
    death: bool = False


def judge(attempt: Relay, replica: Replica) -> Verdict:
    """The verdict on an attempt at `replica` that has failed: it has a `refusal` or an `error`."""
    error, refusal = attempt.error, attempt.refusal
    hide = Redactor(replica.authorization.removeprefix(b"Bearer ").decode())
    if error is None:
        if refusal is None:
            raise ValueError("an attempt that went well is not judged")
        who = f"The executor at {replica.address}"
        error, elsewhere = error_from_answer(refusal.status, bytes(refusal.body), who, refusal.retry_after, hide)
        elsewhere = elsewhere or error.code == ResumeMismatch.code
        fault = refusal.status >= 500 and error.code not in _NO_FAULT
        death = error.code == EngineLost.code
        return Verdict(error, elsewhere, fault=fault, answered=fault and not death, death=death)
    error.reword(hide)
    if isinstance(error, StreamDiffers):
        return Verdict(error)
    engine_died = error.code == EngineLost.code
    lost = isinstance(error, UpstreamLost) and replica.life.one_process and replica.state != "draining"
    if isinstance(error, Unanswered):
        # Either the replica died of the request, or it closed the idle connection that the request was sent over.
        return Verdict(error, elsewhere=True, again=True, death=lost)
    # An error that the executor itself put into its stream would come again, unless its engine died or it is leaving.
    leaving = error.code == Draining.code
    own_words = isinstance(error, PassedOn) and not engine_died and not leaving
    said = own_words and attempt.begun
    return Verdict(
        error,
        elsewhere=not said,
        fault=not leaving and error.code not in (RequestCancelled.code, UnreadableAnswer.code),
        answered=own_words and not said,
        refused=isinstance(error.__cause__, ConnectionRefusedError),
        death=lost or engine_died,
    )
