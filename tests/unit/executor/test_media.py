"""Images inside a request, and which addresses count as the public internet. Nothing here is sent anywhere."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from kuwa.executor.media import MOST_BYTES, MOST_IMAGES, fetch_images, image_parts, is_public
from kuwa.wire.errors import InvalidRequest, Unsupported

pytestmark = pytest.mark.anyio
DATA = "data:image/png;base64," + base64.b64encode(b"pixels").decode()


def asked(*urls: Any) -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": url if url is None else {"url": url}} for url in urls]
    return [{"role": "user", "content": "before"}, {"role": "user", "content": [{"type": "text"}, *parts]}]


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.255.0.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254"),  # noqa: S104
        *("100.64.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1"),
        *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fec0::1", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b::a00:1"),
        *("2001:0:4136:e378:8000:63bf:3fff:fdd2", "localhost", "127.1", ""),
    ],
)
def test_an_address_that_is_not_of_the_public_internet_is_known_as_such(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
)
def test_a_public_address_is_one_however_it_is_wrapped_up(address: str) -> None:
    assert is_public(address)


async def test_images_inside_the_request_are_read_in_their_order() -> None:
    other = "data:image/jpeg;base64," + base64.b64encode(b"more").decode()
    assert await fetch_images(asked(DATA, other), "off") == [b"pixels", b"more"]
    assert [part.where for part in image_parts(asked(DATA, other))] == [
        "messages[1].content[1]",
        "messages[1].content[2]",
    ]


@pytest.mark.parametrize(
    ("url", "error", "said"),
    [
        (None, InvalidRequest, "without a URL"),
        ("", InvalidRequest, "without a URL"),
        ("data:image/png;base64,%%%", InvalidRequest, "no base64"),
        ("data:image/png;base64,é", InvalidRequest, "no base64"),
        ("data:image/png;base64," + "A" * (MOST_BYTES * 4 // 3 + 8), InvalidRequest, "larger than 20 MiB"),
        ("data:text/html;base64,AAAA", Unsupported, "inside the request"),
        ("file:///etc/passwd", Unsupported, "inside the request"),
        ("/etc/passwd", Unsupported, "inside the request"),
        ("ftp://example.org/a.png", Unsupported, "inside the request"),
    ],
)
async def test_what_is_no_image_is_refused_by_its_place(url: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said) as raised:
        await fetch_images(asked(url), "public")
    assert "messages[1].content[1]" in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://127.0.0.1/a.png",
            "http://localhost:9000/a",
            "https://[::1]/",
            "http://2130706433/",
            "http://0x7f.1/",
        ),
        *("http://127.1/", "http://169.254.169.254/latest/meta-data", "http://[::ffff:10.0.0.1]/", "HTTP://10.0.0.1/"),
    ],
)
async def test_nothing_is_asked_of_a_private_address(url: str) -> None:
    with pytest.raises(InvalidRequest, match="not on the public internet") as raised:
        await fetch_images(asked(url), "public")
    assert "messages[1].content[1]" in str(raised.value)


@pytest.mark.parametrize(
    "url", ["http://user:pw@127.0.0.1/", "http://127.0.0.1:99999/", "http://127.0.0.1/a b", "http://"]
)
async def test_a_url_that_is_none_is_refused_even_where_all_are_allowed(url: str) -> None:
    with pytest.raises(InvalidRequest, match="URL is no"):
        await fetch_images(asked(url), "any")


async def test_where_the_web_is_off_no_address_is_taken() -> None:
    with pytest.raises(Unsupported, match=r"data:image/png;base64,…\."):
        await fetch_images(asked("https://example.org/a.png"), "off")


async def test_too_many_images_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="at most 32"):
        await fetch_images(asked(*[DATA] * (MOST_IMAGES + 1)), "public")
