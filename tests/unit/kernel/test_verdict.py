"""What the failure of an attempt means for the request and for the replica."""

from __future__ import annotations

from typing import Any, cast

import pytest

from kuwa.kernel.refusals import PassedOn
from kuwa.kernel.registry import Registry
from kuwa.kernel.relay import Clock, Relay
from kuwa.kernel.verdict import judge
from kuwa.wire.errors import BadUpstream, Draining, EngineLost, KuwaError, RequestCancelled
from kuwa.wire.lease import Dialects, Registration


def verdict_on_stream_error(error: KuwaError) -> tuple[bool, bool]:
    """Whether a stream that a replica has ended with this error is gone on with elsewhere, and is a fault."""
    registry = Registry()
    dialects = Dialects(openai="http://127.0.0.1:4001/v1")
    registry.register(Registration(executor_id="a", incarnation=1, access_codes=["m"], dialects=dialects), 0.0)
    (replica,) = registry.replicas("m")
    passed = PassedOn.of(502, error.body())
    attempt = Relay(cast("Any", None), b"", cast("Clock", None), over=True, begun=True, error=passed)
    verdict = judge(attempt, replica)
    return verdict.elsewhere, verdict.fault


@pytest.mark.parametrize(
    ("error", "elsewhere", "fault"),
    [
        (RequestCancelled("aborted"), False, False),
        (Draining("leaving"), True, False),
        (EngineLost("died"), True, True),
        (BadUpstream("broken"), False, True),
    ],
)
def test_an_error_that_ends_a_stream(error: KuwaError, elsewhere: bool, fault: bool) -> None:
    assert verdict_on_stream_error(error) == (elsewhere, fault)
