"""Fetches the images that messages name, for executors whose model sees: from inside the request (`data:` URIs) and,
where that is allowed, from the web.

Whoever may chat may name any address, so an address is looked at before anything is sent to it. Its host is resolved
once and must be public, the connection goes to just that address, and a redirect is a new address. Sizes, time and
the number of images are bounded. Executors call `fetch_images` on their event loop.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any, Literal
from urllib.parse import urljoin, urlsplit

from kuwa.executor.prompt import Message
from kuwa.wire.errors import InvalidRequest, KuwaError, Unsupported
from kuwa.wire.openai import parts_of, url_of

MOST_IMAGES = 32
MOST_BYTES = 20 * 1024 * 1024
MOST_REDIRECTS = 3
TIMEOUT_S = 20.0
"""For all images of a request together."""

WEB_CHOICES = ("public", "any", "off")
Web = Literal["public", "any", "off"]
"""Which addresses images are fetched from: public ones, private and loopback ones too, or none."""

_DATA_URI = re.compile(r"data:image/[\w.+-]+;base64,", re.ASCII)
_REDIRECTS = (301, 302, 303, 307, 308)
_NAT64 = IPv6Network("64:ff9b::/96")
_HEADERS = ((b"user-agent", b"kuwa"), (b"accept", b"image/*"))

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class ImagePart:
    """Where an image stands in a request, such as `messages[0].content[1]`, and its URL."""

    where: str
    url: str


def image_parts(messages: Sequence[Message]) -> list[ImagePart]:
    """The images of a conversation, in their order. Raises InvalidRequest for one without a URL."""
    found: list[ImagePart] = []
    for index, message in enumerate(messages):
        for number, part in enumerate(parts_of(message.get("content"))):
            if part.get("type") == "image_url":
                found.append(_image_part(part, f"messages[{index}].content[{number}]"))
    if len(found) > MOST_IMAGES:
        raise InvalidRequest(f"The request has {len(found)} images; at most {MOST_IMAGES} are taken.", param="messages")
    return found


def _image_part(part: Message, where: str) -> ImagePart:
    url = url_of(part, "image_url")
    if not isinstance(url, str) or not url:
        raise InvalidRequest(f"{where} is an image without a URL.", param=where)
    return ImagePart(where, url)


async def fetch_images(messages: Sequence[Message], web: Web) -> list[bytes]:
    """The bytes of every image of a conversation. Raises InvalidRequest, or Unsupported, naming the image."""
    images: list[bytes] = []
    try:
        async with asyncio.timeout(TIMEOUT_S):
            for part in image_parts(messages):
                images.append(await _image(part, web))  # noqa: PERF401 - the part's place is in its errors
    except TimeoutError as error:
        raise InvalidRequest(f"The images could not be fetched within {TIMEOUT_S:g} s.", param="messages") from error
    return images


async def _image(part: ImagePart, web: Web) -> bytes:
    head = _DATA_URI.match(part.url)
    if head is not None:
        return _decoded(part, head.end())
    if web != "off" and part.url.lower().startswith(("http://", "https://")):
        return await _fetched(part, web)
    ways = "" if web == "off" else ", or as an http or https URL"
    raise Unsupported(
        f"{part.where} is at {part.url[:20]!r}…; this model takes images inside the request, as "
        f"data:image/png;base64,…{ways}.",
        param=part.where,
    )


def _decoded(part: ImagePart, start: int) -> bytes:
    if (len(part.url) - start) * 3 // 4 > MOST_BYTES:
        raise _too_large(part)
    try:
        return base64.b64decode(part.url[start:], validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"{part.where} is no base64: {error}.", param=part.where) from error


def _too_large(part: ImagePart) -> InvalidRequest:
    return InvalidRequest(f"{part.where} is larger than {MOST_BYTES >> 20} MiB.", param=part.where)


# ---- the web -----------------------------------------------------------------------------------------------


async def _fetched(part: ImagePart, web: Web) -> bytes:
    from kuwa.http.client import open_stream

    url = part.url
    for _ in range(MOST_REDIRECTS + 1):
        address = await _address(part, url, web)
        try:
            async with open_stream("GET", url, headers=_HEADERS, address=address) as response:
                if response.status in _REDIRECTS and (place := response.headers.get(b"location")):
                    url = urljoin(url, place.decode("latin-1"))
                    continue
                if response.status != 200:
                    raise _refused(part, f"its server answered with status {response.status}")
                return await _read(part, response)
        except InvalidRequest:
            raise
        except (KuwaError, ValueError) as error:
            said = error.message if isinstance(error, KuwaError) else str(error)
            raise _refused(part, f"it could not be fetched ({said.rstrip('.')})") from error
    raise _refused(part, f"it was redirected more than {MOST_REDIRECTS} times")


async def _read(part: ImagePart, response: Any) -> bytes:
    body = bytearray()
    async for piece in response:
        body += piece
        if len(body) > MOST_BYTES:
            raise _too_large(part)
    return bytes(body)


def _refused(part: ImagePart, why: str) -> InvalidRequest:
    return InvalidRequest(f"{part.where} cannot be used: {why}.", param=part.where)


async def _address(part: ImagePart, url: str, web: Web) -> str:
    """The address to connect to for `url`: of all that its host has, each must be allowed. Raises InvalidRequest."""
    host, port = _host(part, url)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _refused(part, f"its host {host!r} is not known") from error
    addresses = [str(entry[4][0]) for entry in found]
    if web == "public" and not all(is_public(address) for address in addresses):
        raise _refused(part, f"its host {host!r} is not on the public internet (see --image_urls)")
    return addresses[0]


def _host(part: ImagePart, url: str) -> tuple[str, int]:
    """Host and port of an http(s) URL that names nobody's password. Raises InvalidRequest."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise _refused(part, "its URL is none") from error
    plain = url.isascii() and not any(c.isspace() or not c.isprintable() for c in url)
    if parts.scheme not in ("http", "https") or not host or parts.username is not None or not plain:
        raise _refused(part, "its URL is no plain http or https URL")
    return host, port


def is_public(address: str) -> bool:
    """Whether `address` (numbers, perhaps with a zone) belongs to the public internet, however it is wrapped up."""
    try:
        found: Address = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if inner is None and found in _NAT64:
            inner = IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if found.teredo is not None or found.is_site_local:
            return False
    return found.is_global and not found.is_multicast and not found.is_reserved
