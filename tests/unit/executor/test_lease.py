"""What an executor makes of a kernel's answer to its registration."""

from __future__ import annotations

import pytest

from kuwa.executor.arguments import Settings
from kuwa.executor.lease import judge
from kuwa.wire.errors import ForbiddenEndpoint, NotFound
from kuwa.wire.lease import Lease, encode

SETTINGS = Settings(kernel_url="http://kernel:9000/", version="v2.0")


def test_a_lease_is_a_lease() -> None:
    verdict = judge(200, encode(Lease(lease_id="l1", renew_s=3)), SETTINGS)
    assert verdict.kind == "leased"
    assert verdict.lease is not None
    assert verdict.lease.renew_s == 3


@pytest.mark.parametrize(("body", "kind"), [(b"Success", "old"), (b"Failed", "failed"), (b"<html>", "refused")])
def test_an_old_kernel_answers_in_words(body: bytes, kind: str) -> None:
    assert judge(200, body, SETTINGS).kind == kind


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_kernel_without_the_worker_api_is_named_with_the_version(status: int) -> None:
    verdict = judge(status, NotFound("no such route").body(), SETTINGS)
    assert verdict.kind == "refused"
    assert "http://kernel:9000/" in verdict.text
    assert "v2.0" in verdict.text


def test_a_refusal_carries_the_kernels_own_words() -> None:
    verdict = judge(403, ForbiddenEndpoint("not from there").body(), SETTINGS)
    assert verdict.kind == "refused"
    assert "not from there" in verdict.text


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_a_kernel_in_trouble_is_asked_again(status: int) -> None:
    assert judge(status, b"", SETTINGS).kind == "away"
