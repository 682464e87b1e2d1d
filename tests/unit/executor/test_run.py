"""Small decisions of the start: where to listen, what an exception at start-up means, the rate of chunks."""

from __future__ import annotations

import pytest

from kuwa.executor import NotBuiltYet, SetupFailed
from kuwa.executor.arguments import UsageError
from kuwa.executor.run import Address, Exit, Leave, bind_address, executor_id, why_not
from kuwa.wire.errors import InvalidRequest

EVERYWHERE = "0.0.0.0"  # noqa: S104 - what is expected, bound by nobody


@pytest.mark.parametrize(
    ("host", "bind"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.2", "127.0.0.2"),
        ("::1", "::1"),
        ("localhost", "127.0.0.1"),
        ("executor.localhost", "127.0.0.1"),
        ("10.0.0.5", EVERYWHERE),
        ("gpu1.example", EVERYWHERE),
        ("fd00::5", "::"),
    ],
)
def test_loopback_is_served_on_loopback_alone(host: str, bind: str) -> None:
    assert bind_address(host) == bind


def test_an_address_is_written_as_urls_write_it() -> None:
    assert Address("127.0.0.1", 4001, "http").origin == "http://127.0.0.1:4001"
    assert Address("fd00::5", 4001, "https").origin == "https://[fd00::5]:4001"


def test_an_executor_keeps_its_id_when_it_comes_back_to_its_address() -> None:
    assert executor_id("http://a:1") == executor_id("http://a:1") != executor_id("http://a:2")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotBuiltYet("later"), Exit.NOT_BUILT),
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
