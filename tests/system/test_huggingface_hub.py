"""`--model_path owner/repo`: a model of the hub is downloaded, served, and served again without the hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from calls import chat_text
from fakes.hub import Hub, hub
from processes import Executor, Stage, until
from tiny_models import make_folder

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A repository with what repositories hold beside the model."""
    folder = make_folder("tiny-llama", tmp_path_factory.mktemp("models") / "tiny-llama")
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    others = ["pytorch_model.bin", "onnx/model.onnx", "original/consolidated.00.pth", "modeling.py", "README.md"]
    return {**found, **dict.fromkeys(others, b"something else"), "model.fp16.safetensors": b"the same, smaller"}


@pytest.fixture
def served(files: dict[str, bytes]) -> Iterator[Hub]:
    with hub(files) as running:
        yield running


def start(stage: Stage, folder: Path, url: str, *more: str, wait: bool = True) -> Executor:
    argv = ("--model_path", "owner/repo", "--max_new_tokens", "8", *more)
    env = {"HF_HOME": str(folder), "HF_ENDPOINT": url, "HF_HUB_DISABLE_TELEMETRY": "1"}
    return stage.executor("huggingface", *argv, kernel=None, access_code="m", wait=wait, **env)


def refusal(stage: Stage, folder: Path, url: str, *more: str) -> str:
    executor = start(stage, folder, url, *more, wait=False)
    executor.process.wait(60)
    assert executor.process.exit_code == 4, executor.process.log
    return executor.process.log


def test_a_model_of_the_hub_is_served_and_later_without_it(stage: Stage, served: Hub, tmp_path: Path) -> None:
    wanted = {name for name in served.files if name.endswith((".json", ".jinja"))} | {WEIGHTS}
    before = sum(name < WEIGHTS for name in wanted)
    served.cuts = [*[10**9] * before, len(served.files[WEIGHTS]) // 3]
    first = start(stage, tmp_path, served.url)
    text = chat_text(first.url, "m", "hi")
    assert text
    assert set(served.fetched) == wanted
    assert any(asked.startswith("bytes=") for asked in served.ranges)
    assert f"{WEIGHTS}: " in first.process.log
    assert first.process.stop() == 0

    again = start(stage, tmp_path, "http://127.0.0.1:9")
    assert "The hub cannot be reached" in again.process.log
    assert chat_text(again.url, "m", "hi") == text
    assert again.process.stop() == 0

    fetched = len(served.fetched)
    offline = start(stage, tmp_path, served.url, "--offline")
    assert chat_text(offline.url, "m", "hi") == text
    assert len(served.fetched) == fetched


def test_a_branch_or_commit_is_asked_for_by_revision(stage: Stage, served: Hub, tmp_path: Path) -> None:
    assert "owner/repo has no revision 'v2'" in refusal(stage, tmp_path, served.url, "--revision", "v2")
    served.revisions = {"v2"}
    executor = start(stage, tmp_path, served.url, "--revision", "v2")
    assert chat_text(executor.url, "m", "hi")


def test_a_name_that_is_wrong_is_one_clear_line(stage: Stage, served: Hub, tmp_path: Path) -> None:
    said = refusal(stage, tmp_path, served.url, "--model_path", "owner/other")
    assert said.count("There is no repository owner/other on the hub") == 1
    assert "Traceback" not in said


def test_an_executor_that_is_told_to_end_while_it_downloads_ends_at_once(
    stage: Stage, served: Hub, tmp_path: Path
) -> None:
    served.pause.clear()
    executor = start(stage, tmp_path, served.url, wait=False)
    until(lambda: any(p.stat().st_size for p in tmp_path.rglob("*.kuwa-part")), "something had come", timeout_s=30)
    executor.process.stop()
    served.pause.set()
    assert "Traceback" not in executor.process.log
