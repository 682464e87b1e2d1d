from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuwa.kernel.trust import EndpointRule, check_registration, may_listen
from kuwa.wire.errors import ForbiddenEndpoint, InvalidRequest
from kuwa.wire.lease import Dialects, Registration

LOCAL = "127.0.0.1"
NOW_S = 1_800_000_000.0
DAY_S = 24 * 3600


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:4001/v1",
        "https://localhost:4001/chat",
        "http://[::1]:4001/chat",
        "http://127.9.9.9/chat",
        "http://LOCALHOST./chat",
        "http://[::ffff:127.0.0.1]:1/chat",
    ],
)
def test_a_registrant_on_this_machine_may_use_loopback(url: str) -> None:
    EndpointRule().check(url, LOCAL)


def test_a_registrant_on_this_machine_may_use_the_machines_other_addresses() -> None:
    rule = EndpointRule(own=lambda: ["192.0.2.7", "mybox"])
    rule.check("http://192.0.2.7:4001/chat", LOCAL)
    rule.check("http://mybox:4001/chat", "::1")
    with pytest.raises(ForbiddenEndpoint):
        rule.check("http://192.0.2.8:4001/chat", LOCAL)


def test_a_registrant_elsewhere_may_use_its_own_address() -> None:
    rule = EndpointRule()
    rule.check("http://192.0.2.7:4001/chat", "192.0.2.7")
    rule.check("http://192.0.2.7:4001/chat", "::ffff:192.0.2.7")
    rule.check("http://[2001:db8:0::7]:4001/chat", "2001:db8::7")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:4001/chat", "http://localhost/chat", "http://192.0.2.7/chat", "http://mybox/chat"]
)
def test_a_registrant_elsewhere_may_not_point_at_this_machine(url: str) -> None:
    rule = EndpointRule(own=lambda: ["192.0.2.7", "mybox"])
    with pytest.raises(ForbiddenEndpoint, match="--allowed_executor"):
        rule.check(url, "192.0.2.99")


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://example.test/chat",
        "http://127.0.0.1.example.test/chat",
        "http://2130706433/chat",
        "http://0x7f.1/chat",
        "http://127.1/chat",
        "http://localhost.example.test/chat",
    ],
)
def test_an_endpoint_on_another_machine_is_refused(url: str) -> None:
    with pytest.raises(ForbiddenEndpoint):
        EndpointRule().check(url, LOCAL)


def test_a_host_that_is_allowed_may_be_registered_by_anyone() -> None:
    rule = EndpointRule(allowed=["GPU-box.example.test", "[2001:db8::1]"])
    rule.check("http://gpu-box.example.test:4001/chat", LOCAL)
    rule.check("http://[2001:db8::1]:4001/chat", "192.0.2.7")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:4001/chat",
        "file:///etc/passwd",
        "gopher://127.0.0.1/x",
        "javascript:alert(1)",
        "http://",
        "http:///chat",
        "http://127.0.0.1:0/chat",
        "http://127.0.0.1:99999/chat",
        "http://127.0.0.1:x/chat",
        "http://user@127.0.0.1/chat",
        "http://user:password@127.0.0.1/chat",
        "http://@127.0.0.1/chat",
        "http://127.0.0.1/chat?x=1",
        "http://127.0.0.1/chat#x",
        "http://127.0.0.1/ch at",
        "http://127.0.0.1/chat\r\nx: y",
        "http://127.0.0.1\\@example.test/chat",
        "http://127.0.0.1/\x00",
        "http://127.0.0.1/聊天",
        "http://[::1",
        "http://0.0.0.0:4001/chat",
        "http://[::]:4001/chat",
        "http://127.0.0.1/" + "x" * 2000,
    ],
)
def test_what_is_no_plain_url_is_no_endpoint(url: str) -> None:
    with pytest.raises(InvalidRequest):
        EndpointRule(allowed=["127.0.0.1", "0.0.0.0", "::"]).check(url, LOCAL)  # noqa: S104 - that it is refused is the test


def registration(**fields: object) -> Registration:
    whole: dict[str, object] = {
        "executor_id": "a",
        "incarnation": 1,
        "access_codes": ["m"],
        "dialects": Dialects(openai="http://127.0.0.1:4001/v1", v1_0="http://127.0.0.1:4001/chat"),
        **fields,
    }
    return Registration(**whole)  # type: ignore[arg-type]


def test_an_ordinary_registration_is_believed() -> None:
    check_registration(registration(), EndpointRule(), LOCAL, NOW_S)


@pytest.mark.parametrize(
    "fields",
    [
        {"executor_id": ""},
        {"executor_id": "x" * 201},
        {"executor_id": "a\nb"},
        {"access_codes": ["m", "a b"]},
        {"access_codes": ["bot/x"]},
        {"access_codes": [f"m{n}" for n in range(101)]},
        {"dialects": Dialects()},
        {"dialects": Dialects(openai="ftp://127.0.0.1/v1")},
    ],
)
def test_an_odd_registration_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        check_registration(registration(**fields), EndpointRule(), LOCAL, NOW_S)


@given(ahead_s=st.integers(-int(NOW_S), 7 * 10**9))
def test_a_process_that_starts_more_than_a_day_from_now_is_not_believed(ahead_s: int) -> None:
    message = registration(incarnation=(int(NOW_S) + ahead_s) * 10**9)
    if ahead_s <= DAY_S:
        check_registration(message, EndpointRule(), LOCAL, NOW_S)
    else:
        with pytest.raises(InvalidRequest, match="set the clocks"):
            check_registration(message, EndpointRule(), LOCAL, NOW_S)


def test_both_addresses_of_a_registration_are_checked() -> None:
    for dialects in (
        Dialects(openai="http://192.0.2.7/v1"),
        Dialects(openai="http://127.0.0.1/v1", v1_0="http://192.0.2.7/chat"),
    ):
        with pytest.raises(ForbiddenEndpoint):
            check_registration(registration(dialects=dialects), EndpointRule(), LOCAL, NOW_S)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.9"])
def test_loopback_needs_no_keys(host: str) -> None:
    assert may_listen(host, insecure_no_auth=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.7", "mybox"])  # noqa: S104 - that they are refused is the test
def test_listening_beyond_loopback_needs_a_word(host: str) -> None:
    assert not may_listen(host, insecure_no_auth=False)
    assert may_listen(host, insecure_no_auth=True)
