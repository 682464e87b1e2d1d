"""`transformers serve` as a provider of `chatgpt`, from an environment of its own that `make peers` makes."""

from __future__ import annotations

import sys

import pytest

from calls import Stream, chat, fetch, old_abort, old_chat, stream_chat
from processes import REPOSITORY, Kernel, Process, Stage, until

TRANSFORMERS = REPOSITORY / ".venv-transformers" / "bin" / "transformers"

pytestmark = [
    pytest.mark.skipif(not TRANSFORMERS.exists(), reason="transformers serve is not installed: make peers"),
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def provider(shared_stage: Stage) -> tuple[Process, str, str]:
    """The server, its base URL, and the model it serves: a tiny llama made on the spot."""
    folder = shared_stage.folder / "models"
    maker = REPOSITORY / "tests" / "tiny_models.py"
    made = shared_stage.process([sys.executable, str(maker), str(folder), "tiny-llama"], name="tiny_models")
    assert made.wait(120) == 0, made.log
    model, port = str(folder / "tiny-llama"), shared_stage.port()
    argv = [str(TRANSFORMERS), "serve", model, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    env = shared_stage.environment(HF_HUB_OFFLINE="1", HF_HOME=str(shared_stage.folder), OMP_NUM_THREADS="1")
    server = shared_stage.process(argv, name="transformers", tolerates_tracebacks=True, env=env)
    origin = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return fetch(origin + "/health", timeout_s=5).status == 200
        except OSError:
            return False

    server.wait_for(answers, "transformers serve answered", timeout_s=180)
    return server, origin + "/v1", model


@pytest.fixture(scope="module")
def kernel(shared_stage: Stage, shared_kernel: Kernel, provider: tuple[Process, str, str]) -> Kernel:
    _, base_url, model = provider
    flags = ["--base_url", base_url, "--api_key", "dummy", "--model", model, "--log", "debug"]
    shared_stage.executor("chatgpt", *flags, kernel=shared_kernel)
    return shared_kernel


def streamed(kernel: Kernel, **fields: object) -> Stream:
    return stream_chat(kernel.url, "chatgpt", "燈塔🌊", temperature=0, **fields)


def test_a_stream_and_a_whole_answer_are_the_same_text(kernel: Kernel) -> None:
    whole = chat(kernel.url, "chatgpt", "燈塔🌊", temperature=0, max_tokens=24).json()
    text = whole["choices"][0]["message"]["content"]
    assert text
    assert whole["model"] == "chatgpt"
    assert whole["usage"]["completion_tokens"] > 0
    with streamed(kernel, max_tokens=24) as stream:
        assert stream.text() == text


def test_the_old_wire_gets_its_text(kernel: Kernel) -> None:
    with old_chat(kernel.url, "chatgpt", "harbour") as stream:
        assert next(stream.pieces())


def test_a_client_that_goes_away_frees_the_slot(kernel: Kernel) -> None:
    with streamed(kernel, max_tokens=900) as stream:
        stream.first_text()
    until(lambda: kernel.idle("chatgpt"), "the slot was freed")


def test_an_abort_of_the_old_wire_ends_the_answer(kernel: Kernel) -> None:
    with old_chat(kernel.url, "chatgpt", "count", history_id="-31", user_id="9") as stream:
        assert next(stream.pieces())
        assert old_abort(kernel.url, -31, user_id="9").status == 200
        stream.read()
    until(lambda: kernel.idle("chatgpt"), "the slot was given back")
