"""Where an executor listens, and under which name others reach it."""

from __future__ import annotations

import pytest

from kuwa.executor.address import Address, Way, bind_address, executor_id, local_addresses, way_to

FAR = Way("192.0.2.44", local=False)
HERE = Way("127.0.0.1", local=True)


def not_asked() -> Way:
    raise AssertionError("the way to the kernel does not matter here")


@pytest.mark.parametrize(
    ("host", "bind"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.2", "127.0.0.2"),
        ("::1", "::1"),
        ("localhost", "127.0.0.1"),
        ("executor.localhost", "127.0.0.1"),
    ],
)
def test_loopback_is_served_on_loopback(host: str, bind: str) -> None:
    assert bind_address(host, ["192.0.2.9"], not_asked) == bind


@pytest.mark.parametrize("host", ["192.0.2.9", "2001:db8::9"])
def test_an_address_of_this_machine_is_the_one_that_is_served(host: str) -> None:
    assert bind_address(host, [host], not_asked) == host


def test_a_name_of_this_machine_is_served_on_the_address_that_it_stands_for() -> None:
    assert bind_address("gpu7.example", ["198.51.100.3", "2001:db8::3"], lambda: FAR) == "198.51.100.3"
    assert bind_address("gpu7.example", ["127.0.1.1"], lambda: HERE) == "127.0.1.1"


def test_a_name_that_is_loopback_here_is_not_served_there_for_a_kernel_elsewhere() -> None:
    assert bind_address("gpu7.example", ["127.0.1.1"], lambda: FAR) == "192.0.2.44"
    assert bind_address("gpu7.example", ["127.0.1.1", "198.51.100.3"], lambda: FAR) == "198.51.100.3"


@pytest.mark.parametrize("host", ["proxy.example", "203.0.113.80"])
@pytest.mark.parametrize("way", [FAR, HERE])
def test_a_host_that_leads_elsewhere_is_served_on_the_way_to_the_kernel(host: str, way: Way) -> None:
    assert bind_address(host, [], lambda: way) == way.own


@pytest.mark.parametrize(
    ("host", "addresses"),
    [("127.0.0.3", ["127.0.0.3"]), ("203.0.113.80", []), ("nowhere.invalid", []), ("a" * 70 + ".example", [])],
)
def test_local_are_the_addresses_that_this_machine_has(host: str, addresses: list[str]) -> None:
    assert local_addresses(host) == addresses


def test_the_way_to_a_kernel_on_this_machine_is_local() -> None:
    assert way_to("http://127.0.0.1:9/") == Way("127.0.0.1", local=True)
    assert way_to("http://localhost/").local
    with pytest.raises(OSError, match=r".+"):
        way_to("http://nowhere.invalid:9000/")


def test_an_address_is_written_as_urls_write_it() -> None:
    assert Address("127.0.0.1", 4001, "http").origin == "http://127.0.0.1:4001"
    assert Address("fd00::5", 4001, "https").origin == "https://[fd00::5]:4001"


def test_an_executor_keeps_its_id_when_it_comes_back_to_its_address() -> None:
    assert executor_id("http://a:1") == executor_id("http://a:1") != executor_id("http://a:2")
