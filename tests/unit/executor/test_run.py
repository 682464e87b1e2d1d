"""Small decisions of the start: what an exception at start-up means."""

from __future__ import annotations

import pytest

from kuwa.executor import SetupFailed
from kuwa.executor.arguments import UsageError
from kuwa.executor.run import Exit, Leave, why_not
from kuwa.wire.errors import InvalidRequest


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("bad"), Exit.USAGE),
        (InvalidRequest("bad access code"), Exit.USAGE),
        (SetupFailed("no model"), Exit.SETUP_FAILED),
        (ValueError("bug"), Exit.SETUP_FAILED),
        (Leave(7, "own"), 7),
    ],
)
def test_what_went_wrong_at_the_start_is_an_exit_code_and_a_reason(error: Exception, code: int) -> None:
    leave = why_not(error)
    assert leave.code == code
    assert (str(error) or "own") in leave.reason
