"""Which proxy is on the way to a provider, and what it is told."""

from __future__ import annotations

import argparse

import pytest

from kuwa.executor.arguments import UsageError
from kuwa.executor.provider.proxy import Proxy, exempt, find_proxy, read_proxy, tunnel_refused

API = "https://api.example.com/v1"


def found(proxy: str | None = None, base_url: str = API, **environment: str) -> Proxy | None:
    return find_proxy(argparse.Namespace(proxy=proxy, base_url=base_url), environment)


def test_the_option_goes_before_the_environment_and_holds_for_any_provider() -> None:
    assert str(found("http://a:1", HTTPS_PROXY="http://b:2")) == "a:1"
    assert str(found("a:1", "http://10.0.0.1:8000/v1", NO_PROXY="*")) == "a:1"


def test_the_environment_is_for_https_alone_and_in_either_case() -> None:
    assert str(found(HTTPS_PROXY="http://b")) == "b:3128"
    assert str(found(https_proxy="b:2")) == "b:2"
    assert found(base_url="http://api.example.com/v1", HTTPS_PROXY="http://b:2") is None
    assert found() is None
    assert found(HTTPS_PROXY="http://b:2", NO_PROXY="example.com") is None


@pytest.mark.parametrize(
    ("no_proxy", "named"),
    [
        ("", False), ("*", True), ("api.example.com", True), ("example.com", True), (".example.com", True),
        ("*.example.com", True), ("ample.com", False), ("other.com, API.EXAMPLE.COM.", True),
        ("api.example.com:443", True), ("api.example.com:80", False), ("10.0.0.0/8", False),
        ("other.com api.example.com", True),
    ],
)  # fmt: skip
def test_no_proxy_names_hosts(no_proxy: str, named: bool) -> None:
    assert exempt("api.example.com", 443, no_proxy) is named


@pytest.mark.parametrize(
    ("host", "no_proxy", "named"),
    [
        ("10.1.2.3", "10.0.0.0/8", True), ("10.1.2.3", "10.1.2.3", True), ("11.1.2.3", "10.0.0.0/8", False),
        ("::1", "::1", True), ("fd00::7", "fd00::/8", True), ("::1", "[::1]:443", True), ("::1", "127.0.0.1", False),
    ],
)  # fmt: skip
def test_no_proxy_names_addresses_and_networks(host: str, no_proxy: str, named: bool) -> None:
    assert exempt(host, 443, no_proxy) is named


def test_a_tunnel_is_asked_for_with_the_password_and_no_key() -> None:
    proxy = read_proxy("HTTPS_PROXY", "http://me:p%40ss@proxy:8080")
    assert proxy.ask("api.example.com", 443) == (
        b"CONNECT api.example.com:443 HTTP/1.1\r\nhost: api.example.com:443\r\n"
        b"proxy-authorization: Basic bWU6cEBzcw==\r\n\r\n"
    )
    assert b"[::1]:8443" in proxy.ask("::1", 8443)
    assert "bWU6" not in repr(proxy) + str(proxy)


@pytest.mark.parametrize("url", ["socks5://p:1", "https://p:1", "http://", "", "http://p:99999", "http://ü:1"])
def test_what_is_no_http_proxy_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(UsageError, match="HTTPS_PROXY"):
        read_proxy("HTTPS_PROXY", url)


def test_a_password_on_the_command_line_is_refused() -> None:
    with pytest.raises(UsageError, match="HTTPS_PROXY") as refused:
        found("http://me:canary@p:1")
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", ""), (b"HTTP/1.0 200 Connection established\r\n\r\n", ""),
        (b"HTTP/1.1 407 No\r\n\r\n", "407"), (b"HTTP/1.1 403 No\r\n\r\n", "403"), (b"", "no HTTP"),
        (b"SSH-2.0", "no HTTP"),
    ],
)  # fmt: skip
def test_what_a_proxy_answers(answer: bytes, word: str) -> None:
    refused = tunnel_refused(answer)
    assert (word in refused) if word else not refused
