"""Images as a model's processor takes them: opened, bounded, upright; and the messages with them in their places.

Called by the executor in a thread, with the bytes that `kuwa.executor.media` has fetched. Image files are a stranger's:
only a few formats are read, and how many pixels a file claims to have is looked at before it is unpacked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Any

from kuwa.executor.media import image_parts
from kuwa.executor.prompt import Message
from kuwa.wire.errors import InvalidRequest
from kuwa.wire.json import is_list
from kuwa.wire.openai import parts_of, text_of

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MOST_PIXELS = 64_000_000


def placed(messages: Sequence[Message], images: Sequence[bytes]) -> list[Message]:
    """The messages with each image opened where its URL stood. `images` are those of `image_parts`, in its order.

    Raises InvalidRequest naming the image that is none.
    """
    parts = image_parts(messages)
    opened = iter([opened_image(data, part.where) for data, part in zip(images, parts, strict=True)])
    return [_placed(message, opened) for message in messages]


def has_images(messages: Sequence[Message]) -> bool:
    return any(part.get("type") == "image" for message in messages for part in _parts(message))


def in_parts(message: Message) -> Message:
    """The message with its text as a part, as the templates of most models that see want it."""
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def opened_image(data: bytes, where: str) -> Any:
    """An RGB image of Pillow. Raises InvalidRequest."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                size = f"{image.width} x {image.height}"
                raise InvalidRequest(f"{where} has {size} pixels, which is too large.", param=where)
            return ImageOps.exif_transpose(image).convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InvalidRequest(f"{where} is no image of the kinds {', '.join(FORMATS)}.", param=where) from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise InvalidRequest(f"{where} is a damaged image: {error}.", param=where) from error


def _placed(message: Message, opened: Iterator[Any]) -> Message:
    if not isinstance(message.get("content"), list):
        return message
    parts: list[Message] = []
    for part in _parts(message):
        if part.get("type") == "image_url":
            parts.append({"type": "image", "image": next(opened)})
        else:
            parts.append({"type": "text", "text": text_of([part])})
    return {**message, "content": parts}


def _parts(message: Message) -> list[Message]:
    content: object = message.get("content")
    return parts_of(content) if is_list(content) else []
