"""A model that sees, through the kernel: what it says of an image is what its own library makes it say, wherever the
image comes from; and what may not be fetched is not."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from calls import Answer, post_json
from processes import Executor, Kernel, Stage
from tiny_models import make_folder

torch.set_num_threads(1)
COLOURS = ("red", "blue", "white", "black")
ASKED = "Which of the <image> ships <|im_end|> is this?"
NEW = 16


def png(colour: str) -> bytes:
    made = BytesIO()
    Image.new("RGB", (50, 40), colour).save(made, "PNG")
    return made.getvalue()


def data_uri(colour: str) -> str:
    return "data:image/png;base64," + base64.b64encode(png(colour)).decode()


@dataclass
class Site:
    """A web server with images, which counts what it is asked."""

    url: str = ""
    asked: list[str] = field(default_factory=list[str])


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    served = Site()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
            pass

        def do_GET(self) -> None:
            served.asked.append(self.path)
            kind, _, name = self.path.strip("/").partition("/")
            if kind == "to":
                self.send_response(302)
                self.send_header("location", "/to/again" if name == "again" else f"/{name}")
                self.send_header("content-length", "0")
                self.end_headers()
                return
            body = png(kind) if kind in COLOURS else b"x" * (21 << 20) if kind == "large" else b"no image"
            self.send_response(200 if kind != "missing" else 404)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            try:
                self.wfile.write(body)
            except OSError:  # it has had enough
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder("tiny-llava", tmp_path_factory.mktemp("models") / "tiny-llava")


@pytest.fixture(scope="module")
def kernel(shared_stage: Stage, shared_kernel: Kernel, folder: Path) -> Kernel:
    argv = ["--model_path", str(folder), "--max_new_tokens", str(NEW)]
    shared_stage.executor("huggingface", *argv, "--image_urls", "any", kernel=shared_kernel, access_code="sees")
    shared_stage.executor("huggingface", *argv, kernel=shared_kernel, access_code="sees-public")
    return shared_kernel


def ask(kernel: Kernel, url: str, code: str = "sees") -> Answer:
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": ASKED}]
    body = {"model": code, "messages": [{"role": "user", "content": content}]}
    return post_json(kernel.url + "/v1/chat/completions", body)


def said(answer: Answer) -> str:
    assert answer.status == 200, answer
    return answer.json()["choices"][0]["message"]["content"]


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, str]:
    """What the library itself makes of each colour."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor: Any = AutoProcessor.from_pretrained(folder)
    model: Any = AutoModelForImageTextToText.from_pretrained(folder).eval()
    texts: dict[str, str] = {}
    for colour in COLOURS:
        content = [{"type": "image", "image": Image.new("RGB", (50, 40), colour)}, {"type": "text", "text": ASKED}]
        made = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            sanitize_control_tokens=True,
            add_generation_prompt=True,
        )
        out = model.generate(**made, max_new_tokens=NEW, do_sample=False)
        texts[colour] = processor.tokenizer.decode(out[0, made["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def test_an_image_inside_the_request_is_seen_as_the_models_own_library_shows_it(
    kernel: Kernel, expected: dict[str, str]
) -> None:
    with ThreadPoolExecutor(len(COLOURS)) as pool:
        texts = list(pool.map(lambda colour: said(ask(kernel, data_uri(colour))), COLOURS))
    # A broken character at the very end is held back.
    assert [text.rstrip("\ufffd") for text in texts] == [expected[colour].rstrip("\ufffd") for colour in COLOURS]
    assert len(set(texts)) == len(COLOURS)


def test_an_image_on_the_web_is_fetched_where_that_is_allowed(
    kernel: Kernel, site: Site, expected: dict[str, str]
) -> None:
    assert said(ask(kernel, site.url + "/red")).rstrip("\ufffd") == expected["red"].rstrip("\ufffd")
    assert said(ask(kernel, site.url + "/to/blue")).rstrip("\ufffd") == expected["blue"].rstrip("\ufffd")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/nothing", "no image of the kinds"),
        ("/missing", "status 404"),
        ("/large", "larger than 20 MiB"),
        ("/to/again", "redirected more than 3 times"),
    ],
)
def test_what_the_web_gives_instead_of_an_image_is_said(kernel: Kernel, site: Site, path: str, reason: str) -> None:
    refused = ask(kernel, site.url + path)
    assert refused.status == 400
    assert reason in refused.error["message"]
    assert refused.error["param"] == "messages[0].content[0]"


def test_by_default_nothing_is_asked_of_a_private_address(kernel: Kernel, site: Site) -> None:
    before = len(site.asked)
    refused = ask(kernel, site.url + "/red", code="sees-public")
    assert refused.status == 400
    assert "not on the public internet" in refused.error["message"]
    assert len(site.asked) == before


def test_a_model_without_eyes_says_so(kernel: Kernel, shared_stage: Stage, tmp_path: Path) -> None:
    blind: Executor = shared_stage.executor(
        *("huggingface", "--model_path", str(make_folder("tiny-llama", tmp_path / "blind"))),
        *("--max_new_tokens", "4"),
        kernel=kernel,
    )
    refused = ask(kernel, data_uri("red"), code=blind.access_code)
    assert refused.status == 400
    assert (refused.error["code"], refused.error["message"]) == (
        "unsupported",
        "The model 'huggingface' cannot take images.",
    )
