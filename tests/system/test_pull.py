"""`kuwa pull` and `hf://` model paths, against a hub on a loopback port."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from calls import chat_text
from fakes.hub import Hub, hub
from kuwa.builtin.llamacpp.maker import make_scripted
from processes import Stage, until

ANSWER = "From the hub: 來自倉庫的模型。"
MODEL = "hf://owner/repo?models/poem.Q8_0.gguf"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("made") / "poem.gguf"
    make_scripted(path, ANSWER)
    return path.read_bytes()


@pytest.fixture
def served(model: bytes) -> Iterator[Hub]:
    with hub({"models/poem.Q8_0.gguf": model, "README.md": b"# words", "part-00001-of-00002.gguf": model}) as served:
        yield served


def environment(home: Path, url: str) -> dict[str, str]:
    return {"HF_HOME": str(home), "HF_ENDPOINT": url, "HF_HUB_DISABLE_TELEMETRY": "1"}


def kuwa(home: Path, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kuwa.cli", *arguments]
    env = {**os.environ, **environment(home, url)}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def pulled(home: Path, url: str, model: str = MODEL) -> Path:
    done = kuwa(home, url, "pull", model)
    assert done.returncode == 0, done
    return Path(done.stdout.strip())


def refusal(home: Path, url: str, model: str = MODEL) -> str:
    done = kuwa(home, url, "pull", model)
    assert done.returncode == 1, done
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("kuwa pull: ")]
    assert "Traceback" not in done.stderr
    return line


def test_a_file_is_pulled_once_and_checked_each_time(served: Hub, model: bytes, tmp_path: Path) -> None:
    path = pulled(tmp_path, served.url)
    assert path.read_bytes() == model
    assert path.name == "poem.Q8_0.gguf"
    assert pulled(tmp_path, served.url) == path
    assert served.ranges == [""]


def test_a_connection_that_breaks_is_taken_up_where_it_broke(served: Hub, model: bytes, tmp_path: Path) -> None:
    served.cuts = [300_000, 200_000]
    assert pulled(tmp_path, served.url).read_bytes() == model
    assert served.ranges == ["", "bytes=300000-", "bytes=500000-"]


def test_a_pull_that_was_killed_goes_on_where_it_was(served: Hub, model: bytes, tmp_path: Path) -> None:
    served.pause.clear()
    command = [sys.executable, "-m", "kuwa.cli", "pull", MODEL]
    with subprocess.Popen(command, env={**os.environ, **environment(tmp_path, served.url)}) as first:
        until(lambda: any(p.stat().st_size for p in tmp_path.rglob("*.kuwa-part")), "something had come", timeout_s=20)
        first.send_signal(signal.SIGKILL)
    served.pause.set()
    assert pulled(tmp_path, served.url).read_bytes() == model
    assert served.ranges[0] == ""
    assert served.ranges[1].startswith("bytes=")
    assert not list(tmp_path.rglob("*.kuwa-part"))


def test_a_server_without_ranges_is_read_from_the_beginning(served: Hub, model: bytes, tmp_path: Path) -> None:
    served.knows_ranges = False
    served.cuts = [300_000]
    assert pulled(tmp_path, served.url).read_bytes() == model


def test_a_download_that_never_gets_on_says_how_to_go_on(served: Hub, tmp_path: Path) -> None:
    served.cuts = [1000, *[0] * 20]
    line = refusal(tmp_path, served.url)
    assert "broke off after 1000 of" in line
    assert "same command again" in line


def test_a_damaged_file_is_deleted(served: Hub, tmp_path: Path) -> None:
    served.damaged = {"models/poem.Q8_0.gguf"}
    assert "arrived damaged" in refusal(tmp_path, served.url)
    served.damaged = set()
    pulled(tmp_path, served.url)


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(served: Hub, tmp_path: Path) -> None:
    served.claimed_size = 10**18
    line = refusal(tmp_path, served.url)
    assert "too little room: 1000000000.0 GB are to come" in line
    assert served.ranges == []


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("hf://owner/repo?models/poem.Q8.gguf", "Did you mean models/poem.Q8_0.gguf?"),
        ("hf://owner/repo", "It has models/poem.Q8_0.gguf, part-00001-of-00002.gguf."),
        ("hf://owner/repo?part-00001-of-00002.gguf", "no file part-00002-of-00002.gguf"),
        ("hf://owner/nothing?x.gguf", "There is no repository owner/nothing"),
        ("hf://repo?x.gguf", "it looks like hf://owner/repo?file.gguf"),
        ("hf://owner/repo?../../x.gguf", "names no file of a repository"),
    ],
)
def test_a_name_that_is_wrong_is_one_clear_line(served: Hub, tmp_path: Path, path: str, words: str) -> None:
    assert words in refusal(tmp_path, served.url, path)


def test_a_hub_that_cannot_be_reached_is_one_clear_line(stage: Stage, tmp_path: Path) -> None:
    line = refusal(tmp_path, f"http://127.0.0.1:{stage.port()}")
    assert "The hub cannot be reached" in line
    assert "HF_ENDPOINT" in line


def test_an_executor_serves_a_model_of_the_hub_and_later_without_it(stage: Stage, served: Hub, tmp_path: Path) -> None:
    env = environment(tmp_path, served.url)
    first = stage.executor("llamacpp", "--model_path", MODEL, kernel=None, access_code="m", **env)
    assert chat_text(first.url, "m", "hi") == ANSWER
    unreachable = environment(tmp_path, "http://127.0.0.1:9")
    again = stage.executor("llamacpp", "--model_path", MODEL, kernel=None, access_code="m", **unreachable)
    assert chat_text(again.url, "m", "hi") == ANSWER


def test_an_executor_whose_model_is_not_on_the_hub_ends_with_one_line(
    stage: Stage, served: Hub, tmp_path: Path
) -> None:
    env = environment(tmp_path, served.url)
    executor = stage.executor("llamacpp", "--model_path", "hf://owner/repo?x.gguf", kernel=None, wait=False, **env)
    executor.process.wait()
    assert executor.process.exit_code == 4
    assert executor.process.log.count("owner/repo has no file x.gguf") == 1


def test_an_executor_that_is_told_to_end_while_it_downloads_ends_at_once(
    stage: Stage, served: Hub, tmp_path: Path
) -> None:
    served.pause.clear()
    env = environment(tmp_path, served.url)
    executor = stage.executor("llamacpp", "--model_path", MODEL, kernel=None, wait=False, **env)
    until(lambda: any(p.stat().st_size for p in tmp_path.rglob("*.kuwa-part")), "something had come", timeout_s=20)
    executor.process.send(signal.SIGTERM)
    executor.process.wait(5)


def test_kuwa_up_serves_a_model_of_the_hub_under_its_files_name(stage: Stage, served: Hub, tmp_path: Path) -> None:
    port = stage.port()
    argv = [sys.executable, "-m", "kuwa.cli", "up", "--no_defaults", "--port", str(port), "--model", MODEL]
    up = stage.process(argv, name="up", env=stage.environment(**environment(tmp_path, served.url)))
    up.wait_for(lambda: "poem.Q8_0 is ready" in up.log, "the model was served")
    assert "are downloaded first" in up.log
    assert chat_text(f"http://127.0.0.1:{port}", "poem.Q8_0", "hi") == ANSWER


def test_models_on_disk_are_listed_with_what_their_headers_say(served: Hub, model: bytes, tmp_path: Path) -> None:
    pulled(tmp_path, served.url)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "copied.gguf").write_bytes(model)
    (tmp_path / "own" / "broken.gguf").write_bytes(model[:5000])
    done = kuwa(tmp_path, served.url, "models", "--json", str(tmp_path / "own"))
    listed = {entry["model"]: entry for entry in json.loads(done.stdout)}
    of_hub = listed[MODEL]
    assert of_hub["size"] == len(model)
    assert (of_hub["architecture"], of_hub["quantisation"], of_hub["context_length"]) == ("llama", "F32", 8192)
    assert listed[str(tmp_path / "own" / "copied.gguf")]["kind"] == "model"
    assert "cut off" in listed[str(tmp_path / "own" / "broken.gguf")]["fault"]
    shown = kuwa(tmp_path, served.url, "models", str(tmp_path / "own")).stdout
    assert MODEL in shown
    assert "LICENCE" in shown


def test_a_folder_without_models_says_how_to_get_one(tmp_path: Path) -> None:
    done = kuwa(tmp_path, "http://127.0.0.1:9", "models")
    assert done.returncode == 0
    assert "kuwa pull" in done.stdout
