"""Every command of the README and the tutorial, run in order as a newcomer would, with the marks that stand above them.

A mark is an HTML comment, which a reader does not see:

    <!-- test: serves A B -->          it keeps running; wait until the kernel serves A and B
    <!-- test: serves A; alone -->     the same, after everything started before has been ended
    <!-- test: says TEXT -->           it ends well, and TEXT is in its output
    <!-- test: at a terminal -->       it is run in a terminal: something is said, the answer awaited, Ctrl-D pressed
    <!-- test: not run here: WHY -->   it is not run; it has to stand in NOT_RUN below as well

A block without a mark has to end well. Only what differs from machine to machine is replaced: the ports, which may be
taken here, and the path of the model.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from calls import fetch
from kuwa.builtin.llamacpp.maker import make_scripted
from processes import REPOSITORY, Process, Stage
from terminal import CTRL_D, Terminal
from tiny_models import make_folder

DOCUMENTS = ("README.md", "README.zh-TW.md", "docs/tutorial.md")
NOT_RUN = {
    "README.md": [
        "pip install -r requirements.txt",
        "kuwa-executor huggingface --model_path google/",
        "kuwa pull 'hf://",
        "make test",
    ],
    "README.zh-TW.md": [
        "pip install -r requirements.txt",
        "kuwa-executor chatgpt --api_key YOUR_API_KEY --model gpt-4",
        "kuwa-executor chatgpt --access_code taide-api",
    ],
    "docs/tutorial.md": [
        ". .venv/bin/activate",
        "kuwa-executor huggingface",
        "kuwa-executor huggingface --model_path google/",
        "kuwa-executor geminipro",
        "kuwa-executor chatgpt --api_key YOUR_API_KEY --model gpt-4",
        "docker run",
        "kuwa-executor chatgpt --access_code taide-api",
    ],
}
BLOCK = re.compile(r"(?:<!-- test: (?P<mark>[^\n]*?) -->\n)?```(?P<kind>sh|python)\n(?P<text>.*?)```", re.DOTALL)
NOT_HERE = "not run here: "
ANSWER_TIMEOUT_S = 60


@dataclass(frozen=True)
class Block:
    kind: str
    mark: str
    text: str


def blocks(document: str) -> list[Block]:
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    assert text.count("```sh\n") + text.count("```python\n") == len(BLOCK.findall(text)), document
    return [Block(found["kind"], found["mark"] or "", found["text"]) for found in BLOCK.finditer(text)]


class Newcomer:
    """Types the commands of one document, with a home, a port and a folder of their own."""

    def __init__(self, stage: Stage, folder: Path, far_end: str) -> None:
        self._stage = stage
        self._folder = folder
        self._running: list[Process] = []
        model = folder / "model.gguf"
        make_scripted(model, "A text of its own.")
        port = stage.port()
        self._url = f"http://127.0.0.1:{port}"
        self._replaced = {
            "127.0.0.1:9000": f"127.0.0.1:{port}",
            "localhost:8000": far_end,
            "/path/to/model.gguf": str(model),
            "/path/to/model-folder": str(folder / "tiny-llama"),
        }
        self._env = stage.environment(
            # What `make run`, `kuwa up` and `kuwa-kernel` listen on, and where everybody else looks for it.
            PORT=str(port),
            KUWA_PORT=str(port),
            KUWA_KERNEL_URL=self._url + "/",
            PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            LC_ALL="C.UTF-8",
        )

    def follow(self, block: Block) -> None:
        text = block.text
        for written, here in self._replaced.items():
            text = text.replace(written, here)
        if block.kind == "python":
            name = re.match(r"# (\w+\.py)\n", text)
            if name is not None:
                (self._folder / name.group(1)).write_text(text, encoding="utf-8")
        elif block.mark.startswith("serves"):
            codes, _, alone = block.mark.removeprefix("serves").partition(";")
            self._serve(text, codes.split(), alone=bool(alone))
        elif block.mark == "at a terminal":
            self._talk(text)
        else:
            assert not block.mark or block.mark.startswith("says "), block.mark
            self._run(text, block.mark.removeprefix("says "))

    def _serve(self, text: str, codes: list[str], *, alone: bool) -> None:
        if alone:
            for process in reversed(self._running):
                process.stop()
            self._running.clear()
        process = self._stage.process(
            ["sh", "-ec", f"exec {text}"], name="document", env=self._env, cwd=self._cwd(text)
        )
        self._running.append(process)
        process.wait_for(lambda: set(codes) <= self._served(), f"it served {codes}: {text}", timeout_s=90)

    def _served(self) -> set[str]:
        try:
            return {model["id"] for model in fetch(self._url + "/v1/models").json()["data"]}
        except OSError:
            return set()

    def _run(self, text: str, says: str) -> None:
        done = subprocess.run(
            ["sh", "-ec", text],
            env=self._env,
            cwd=self._cwd(text),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ANSWER_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, (text, done)
        assert says in done.stdout, (text, done)

    def _talk(self, text: str) -> None:
        with Terminal(["/bin/sh", "-ec", text], self._env) as terminal:
            terminal.see("› ")
            terminal.say("Hello!")
            terminal.see("tokens · ", timeout_s=ANSWER_TIMEOUT_S)
            terminal.see("› ")
            terminal.press(CTRL_D)
            assert terminal.wait() == 0

    def _cwd(self, text: str) -> Path:
        return REPOSITORY if text.startswith("make ") else self._folder


@pytest.mark.timeout(240)
@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("make")), reason="curl or make is not installed here")
@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_does_what_the_document_says(document: str, stage: Stage, tmp_path: Path) -> None:
    fake = [sys.executable, str(REPOSITORY / "tests" / "fakes" / "openai_server.py"), "--model", "google/gemma-7b-it"]
    far_end = stage.process(fake, name="openai_server")
    url = far_end.wait_for(lambda: re.search(r"http://([\d.:]+)/v1", far_end.log), "it listened")
    newcomer = Newcomer(stage, tmp_path, url.group(1))
    to_follow = [block for block in blocks(document) if not block.mark.startswith(NOT_HERE)]
    if any("/path/to/model-folder" in block.text for block in to_follow):
        make_folder("tiny-llama", tmp_path / "tiny-llama")
    for block in to_follow:
        newcomer.follow(block)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_is_not_run_is_known_by_name(document: str) -> None:
    left_out = [block.text for block in blocks(document) if block.mark.startswith(NOT_HERE)]
    assert len(left_out) == len(NOT_RUN[document])
    for text, known in zip(left_out, NOT_RUN[document], strict=True):
        assert text.startswith(known)


def test_every_document_with_commands_for_users_is_tested() -> None:
    found = {str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("README*.md")}
    found |= {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "docs").glob("*.md")}
    assert {name for name in found if blocks(name)} == set(DOCUMENTS)
