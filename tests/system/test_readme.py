"""The README's own code, run as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from calls import chat_text
from processes import Stage, environment

README = Path(__file__).resolve().parents[2] / "README.md"


def code(first_line: str) -> str:
    """The Python block of the README that begins with `first_line`."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return next(block for block in blocks if block.startswith(first_line))


def test_the_custom_executor_answers_with_its_own_option(stage: Stage, tmp_path: Path) -> None:
    kernel = stage.kernel()
    path = tmp_path / "my_executor.py"
    path.write_text(code("# my_executor.py"))
    argv = [sys.executable, str(path), "--access_code", "mine", "--shout", "--kernel_url", kernel.url + "/"]
    stage.process(argv, name="mine").wait_for(lambda: kernel.ready("mine"), "it was ready")
    assert chat_text(kernel.url, "mine", "hello").strip() == "YOU SAID: HELLO"


def test_the_openai_client_streams_an_answer(stage: Stage, tmp_path: Path) -> None:
    kernel = stage.kernel()
    stage.executor("debug", "--delay", "0", kernel=kernel, access_code="welcome")
    path = tmp_path / "client.py"
    path.write_text(code("from openai").replace("http://127.0.0.1:9000", kernel.url))
    done = subprocess.run(
        [sys.executable, str(path)], env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "Hello!"
