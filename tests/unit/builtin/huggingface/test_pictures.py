"""Images are opened, bounded and put into their messages; what is none is refused by its place."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from kuwa.builtin.huggingface.pictures import has_images, in_parts, opened_image, placed
from kuwa.wire.errors import InvalidRequest


def encoded(kind: str = "PNG", size: tuple[int, int] = (3, 2), **more: Any) -> bytes:
    made = BytesIO()
    Image.new("RGB", size, "red").save(made, kind, **more)
    return made.getvalue()


def huge_png() -> bytes:
    """A file of a few bytes that claims to be nine thousand pixels wide and high."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 9_000, 9_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b""))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_the_usual_formats_are_opened_in_colour(kind: str) -> None:
    image = opened_image(encoded(kind), "here")
    assert (image.mode, image.size) == ("RGB", (3, 2))
    assert image.getpixel((0, 0))[0] > 200


def test_a_photograph_is_turned_upright() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    assert opened_image(encoded("JPEG", exif=turned), "here").size == (2, 3)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image"),
        (encoded("TIFF"), "no image"),
        (encoded(size=(60, 60))[:-40], "damaged"),
        (huge_png(), "too large"),
    ],
    ids=["nothing", "a drawing", "another format", "cut off", "huge"],
)
def test_what_is_no_image_is_refused_by_its_place(data: bytes, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as raised:
        opened_image(data, "messages[0].content[1]")
    assert raised.value.message.startswith("messages[0].content[1]")


def test_images_stand_where_their_urls_stood_and_nothing_else_is_handed_on() -> None:
    url = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}, "path": "/etc/passwd"}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Look."},
        {"role": "user", "content": [{"type": "text", "text": "this", "url": "x"}, url, url]},
    ]
    found = placed(messages, [encoded(size=(1, 1)), encoded(size=(2, 2))])
    text, first, second = found[1]["content"]
    assert found[0] == messages[0]
    assert text == {"type": "text", "text": "this"}
    assert (set(first), first["image"].size, second["image"].size) == ({"type", "image"}, (1, 1), (2, 2))
    assert (has_images(found), has_images(messages)) == (True, False)


def test_text_becomes_a_part_for_templates_that_read_nothing_else() -> None:
    assert in_parts({"role": "user", "content": "hi"})["content"] == [{"type": "text", "text": "hi"}]
    assert in_parts({"role": "assistant", "content": None}) == {"role": "assistant", "content": None}
