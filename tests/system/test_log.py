"""What replicas and users have sent, in the logs of both programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from calls import chat, old_chat
from processes import Executor, Kernel, Stage

USERS_KEY = "users-own/Canary_55-tzQ"
FORGED = "2031-01-01 00:00:00,000 ERROR kuwa: forged"

PARROT = """
from kuwa.executor import LLMExecutor
from kuwa.wire.errors import BadUpstream

class Parrot(LLMExecutor):
    async def llm_compute(self, request):
        key = request.provider_key
        said = f"no such key: {key}\\r\\nFORGED\\x1b[2J\\u202e"
        raise BadUpstream(said) if "typed" in request.messages[-1]["content"] else ValueError(said)
        yield ""

if __name__ == "__main__":
    Parrot().run()
"""


@pytest.fixture
def kernel(stage: Stage) -> Kernel:
    return stage.kernel()


@pytest.fixture
def parrot(stage: Stage, kernel: Kernel, tmp_path: Path) -> Executor:
    script = tmp_path / "parrot.py"
    script.write_text(PARROT.replace("FORGED", FORGED))
    executor = stage.executor(str(script), kernel=kernel, access_code="parrot")
    executor.process.tolerates_tracebacks = True
    return executor


@pytest.mark.parametrize("how", ["typed", "as it comes"])
def test_no_log_or_page_shows_the_key_of_a_user_or_a_line_that_was_not_logged(
    kernel: Kernel, parrot: Executor, how: str
) -> None:
    assert chat(kernel.url, "parrot", how, {"x-kuwa-provider-key": USERS_KEY}).status >= 500
    with old_chat(kernel.url, "parrot", how, openai_token=USERS_KEY) as stream:
        stream.read()
    log = kernel.process.log if how == "typed" else parrot.process.log
    assert "no such key: ***" in log
    for shown in (kernel.process.log, parrot.process.log, kernel.get("/v1.0/worker/debug").text):
        assert USERS_KEY not in shown
        assert not {"\r", "\x1b", "\u202e"} & set(shown)
        assert not any(line.startswith(FORGED[:10]) for line in shown.splitlines())
