"""Images and sounds in messages: only those that a request brings along, as `data:` URIs, reach llama.cpp.

llama.cpp's server would fetch an address or read a file that a message names, for whoever asks. Pure; the executor
calls it before a chat is sent.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from typing import Any, cast

from kuwa.executor.prompt import Message
from kuwa.wire.errors import InvalidRequest, Unsupported

_DATA_URI = re.compile(r"data:image/[\w.+-]+;base64,", re.ASCII)
_SCHEME_SHOWN = 20


def check_media(messages: Iterable[Message]) -> None:
    """Raises Unsupported for an image that lies elsewhere, InvalidRequest for one (or a sound) that is none."""
    for index, message in enumerate(messages):
        content = message.get("content")
        if not isinstance(content, list):
            continue
        for part_index, part in enumerate(cast("list[Any]", content)):
            if not isinstance(part, dict):
                continue
            where = f"messages[{index}].content[{part_index}]"
            match cast("Message", part).get("type"):
                case "image_url":
                    _check_image(cast("Message", part), where)
                case "input_audio":
                    _check_sound(cast("Message", part), where)
                case _:
                    pass


def _check_image(part: Message, where: str) -> None:
    image = part.get("image_url")
    url = cast("Message", image).get("url") if isinstance(image, dict) else image
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
    sound = part.get("input_audio")
    data = cast("Message", sound).get("data") if isinstance(sound, dict) else None
    if not isinstance(data, str):
        raise InvalidRequest(f"{where} is a sound without data.", param=where)
    _check_base64(data, where)


def _check_base64(data: str, where: str) -> None:
    try:
        base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"{where} is no base64: {error}.", param=where) from error
