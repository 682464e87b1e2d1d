"""Images and sounds in messages: only those that a request brings along, as `data:` URIs, reach llama.cpp.

llama.cpp's server would fetch an address or read a file that a message names, for whoever asks. Pure; the executor
calls it before a chat is sent.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable

from kuwa.executor.prompt import Message
from kuwa.wire.errors import InvalidRequest, Unsupported
from kuwa.wire.json import fields_in
from kuwa.wire.openai import parts_of, url_of

_DATA_URI = re.compile(r"data:image/[\w.+-]+;base64,", re.ASCII)
_SCHEME_SHOWN = 20


def check_media(messages: Iterable[Message]) -> None:
    """Raises Unsupported for an image that lies elsewhere, InvalidRequest for one (or a sound) that is none."""
    for index, message in enumerate(messages):
        for part_index, part in enumerate(parts_of(message.get("content"))):
            where = f"messages[{index}].content[{part_index}]"
            match part.get("type"):
                case "image_url":
                    _check_image(part, where)
                case "input_audio":
                    _check_sound(part, where)
                case _:
                    pass


def _check_image(part: Message, where: str) -> None:
    url = url_of(part, "image_url")
    if not isinstance(url, str):
        raise InvalidRequest(f"{where} is an image without a URL.", param=where)
    head = _DATA_URI.match(url)
    if head is None:
        raise Unsupported(
            f"{where} is at {url[:_SCHEME_SHOWN]!r}…; this model takes images inside the request alone, as "
            "data:image/png;base64,….",
            param=where,
        )
    _check_base64(url[head.end() :], where)


def _check_sound(part: Message, where: str) -> None:
    """Its data is base64 and nothing else: an address there would be fetched as that of an image."""
    data = fields_in(part.get("input_audio")).get("data")
    if not isinstance(data, str):
        raise InvalidRequest(f"{where} is a sound without data.", param=where)
    _check_base64(data, where)


def _check_base64(data: str, where: str) -> None:
    try:
        base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"{where} is no base64: {error}.", param=where) from error
