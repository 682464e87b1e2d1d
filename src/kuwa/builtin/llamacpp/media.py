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
    """Raises Unsupported for an image that lies elsewhere, InvalidRequest for one that is none."""
    for index, message in enumerate(messages):
        content = message.get("content")
        if not isinstance(content, list):
            continue
        for part_index, part in enumerate(cast("list[Any]", content)):
            if isinstance(part, dict) and cast("Message", part).get("type") == "image_url":
                _check_image(cast("Message", part), f"messages[{index}].content[{part_index}]")


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
    try:
        base64.b64decode(url[head.end() :], validate=True)
    except binascii.Error as error:
        raise InvalidRequest(f"{where} is no base64: {error}.", param=where) from error
