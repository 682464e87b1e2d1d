"""Which Host and Origin a server answers to, and what other sites may not change."""

from __future__ import annotations

import pytest

from kuwa.http.guard import HostGuard
from kuwa.wire.errors import ForbiddenHost, ForbiddenOrigin

WELCOME = b"localhost LOCALHOST:9000 127.0.0.1:9000 127.8.8.8 [::1]:9000 app.localhost localhost. 127.0.0.1".split()
FOREIGN = [
    *b"evil.test evil.test:9000 localhost.evil.test 10.0.0.1 [::2] a@localhost localhost/x localhost:0".split(),
    *b"localhost:x localhost:99999 [::1 127.0.0.1.evil.test 0.0.0.0".split(),
    b"",
    b"\xff",
]


@pytest.mark.parametrize("host", WELCOME)
def test_loopback_names_are_welcome(host: bytes) -> None:
    assert HostGuard().check(host, None) is None
    assert HostGuard().check(b"localhost", b"http://" + host) is None


@pytest.mark.parametrize("host", FOREIGN)
def test_other_names_are_refused_as_host_and_as_origin(host: bytes) -> None:
    assert isinstance(HostGuard().check(host, None), ForbiddenHost)
    assert isinstance(HostGuard().check(b"localhost", b"https://" + host), ForbiddenOrigin)


@pytest.mark.parametrize("origin", [b"null", b"", b"file://", b"chrome-extension://abc", b"localhost"])
def test_an_origin_that_is_no_web_page_of_a_known_host_is_refused(origin: bytes) -> None:
    assert isinstance(HostGuard().check(b"localhost", origin), ForbiddenOrigin)


def test_allowed_hosts_are_welcome_whatever_their_case_and_port() -> None:
    guard = HostGuard(["AI.School.tw", "10.0.0.5", "[fd00::1]"])
    for host in (b"ai.school.tw:9000", b"ai.school.tw.", b"10.0.0.5:9000", b"[fd00::1]:1"):
        assert guard.check(host, b"https://ai.school.tw") is None
    assert isinstance(guard.check(b"school.tw", None), ForbiddenHost)


ABORT = "/talk/abort"
GUARD = HostGuard(["ai.school.tw"], changing=[ABORT])
CHANGING = [("GET", ABORT), ("HEAD", ABORT), *((method, "/any") for method in ("POST", "PUT", "DELETE", "PATCH"))]


@pytest.mark.parametrize(("method", "path"), CHANGING)
@pytest.mark.parametrize("site", [b"cross-site", b"same-site", b"", b"Cross-Site", b"new-word"])
def test_another_site_changes_nothing(site: bytes, method: str, path: str) -> None:
    refusal = GUARD.check(b"localhost:4001", None, site, method, path)
    assert isinstance(refusal, ForbiddenOrigin)
    assert f"{method} {path!r}" in refusal.message


@pytest.mark.parametrize(("method", "path"), CHANGING)
@pytest.mark.parametrize("site", [None, b"same-origin", b"none"])
def test_the_own_site_the_address_bar_and_programs_do(site: bytes | None, method: str, path: str) -> None:
    assert GUARD.check(b"localhost:4001", None, site, method, path) is None


@pytest.mark.parametrize(("method", "path"), CHANGING)
def test_so_does_a_page_of_an_allowed_host(method: str, path: str) -> None:
    assert GUARD.check(b"localhost:4001", b"https://ai.school.tw", b"cross-site", method, path) is None
    refusal = GUARD.check(b"localhost:4001", b"https://evil.test", b"same-origin", method, path)
    assert isinstance(refusal, ForbiddenOrigin)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_another_site_may_link_to_what_changes_nothing(method: str) -> None:
    assert GUARD.check(b"localhost:4001", None, b"cross-site", method, "/health") is None
