"""llamacpp's options seen from outside: which of several values counts, what the model is told, and what a kernel
makes of an executor that cannot start."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from calls import chat, chat_text, fetch
from kuwa.builtin.llamacpp.maker import make_scripted
from processes import Executor, Kernel, Stage, until

TEXT = "one two three four five six seven eight nine ten. " * 4
LOAD_FAILED = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "text.gguf"
    make_scripted(path, TEXT)
    return path


def start(stage: Stage, model: Path, *flags: str, kernel: Kernel | None = None) -> Executor:
    return stage.executor("llamacpp", "--model_path", str(model), *flags, kernel=kernel, access_code="m")


def tokens(url: str, **parameters: Any) -> int:
    return chat(url, "m", "hi", **parameters).json()["usage"]["completion_tokens"]


# Which value counts


def test_the_file_gives_way_to_the_command_line_and_that_to_the_request(
    stage: Stage, model: Path, tmp_path: Path
) -> None:
    config = tmp_path / "options.yaml"
    config.write_text("max_tokens: 3\ntemperature: 0\n")
    by_file = start(stage, model, "-c", str(config))
    assert tokens(by_file.url) == 3
    assert tokens(by_file.url, max_tokens=9) == 9
    by_line = start(stage, model, "-c", str(config), "--max_tokens", "6")
    assert tokens(by_line.url) == 6
    assert tokens(by_line.url, max_tokens=9) == 9
    assert tokens(by_line.url) == 6


def test_stop_texts_of_the_file_the_line_and_the_request_follow_the_same_order(
    stage: Stage, model: Path, tmp_path: Path
) -> None:
    config = tmp_path / "options.json"
    config.write_text(json.dumps({"stop": ["four"]}))
    assert chat_text(start(stage, model, "-c", str(config)).url, "m", "hi") == "one two three "
    by_line = start(stage, model, "-c", str(config), "--stop", "seven")
    assert chat_text(by_line.url, "m", "hi").endswith("six ")
    assert "nine" in chat_text(by_line.url, "m", "hi", stop=["ten"])


# What the model is told: seen by the prompt's length, since every byte of these signs is a token of its own


@pytest.mark.parametrize("how", ["text", "file"])
@pytest.mark.parametrize("flags", [["--system_prompt", "¶¶¶"], ["--system_prompt", "¶¶¶", "--no_system_prompt"]])
def test_system_prompt_and_jinja_template_are_in_the_prompt(
    stage: Stage, model: Path, tmp_path: Path, how: str, flags: list[str]
) -> None:
    template = "{% for m in messages %}{{ '§' if m.role == 'system' else '†' }}{{ m.content }}{% endfor %}"
    given = template
    if how == "file":
        given = str(tmp_path / "template.jinja")
        Path(given).write_text(template, encoding="utf-8")
    executor = start(stage, model, "--override_chat_template", given, *flags)
    prompt = "†÷÷" if "--no_system_prompt" in flags else "§¶¶¶†÷÷"
    usage = chat(executor.url, "m", "÷÷", max_tokens=1).json()["usage"]
    assert usage["prompt_tokens"] == len(prompt.encode())


# What cannot start


def random_bytes(path: Path) -> None:
    path.write_bytes(hashlib.shake_256(b"7").digest(20_000))


def random_behind_the_magic(path: Path) -> None:
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + hashlib.shake_256(b"8").digest(20_000))


def half_written(path: Path) -> None:
    data = path.with_name("text.gguf").read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) // 4))


@pytest.mark.parametrize("damage", [random_bytes, random_behind_the_magic, half_written], ids=lambda d: d.__name__)
def test_a_broken_file_ends_its_executor_and_leaves_the_kernel_untouched(
    shared_stage: Stage, shared_kernel: Kernel, model: Path, damage: Any
) -> None:
    path = model.with_name(f"{damage.__name__}.gguf")
    damage(path)
    broken = shared_stage.executor(
        "llamacpp", "--model_path", str(path), kernel=shared_kernel, access_code="broken", wait=False
    )
    assert broken.process.wait() == LOAD_FAILED, broken.process.log
    told = [line for line in broken.process.log.splitlines() if str(path) in line and "loading" not in line]
    assert len(told) == 1, broken.process.log
    until(lambda: not shared_kernel.replicas("broken"), "the kernel knew it was gone")
    assert shared_kernel.codes() == []
    assert fetch(shared_kernel.url + "/readyz").status == 200
