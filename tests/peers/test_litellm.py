"""LiteLLM's proxy as a provider of `chatgpt`. It lives in an environment of its own, which `make peers` installs."""

from __future__ import annotations

import pytest

from calls import chat, chat_text, fetch, stream_chat
from processes import REPOSITORY, Kernel, Stage, until
from providers import start_provider

LITELLM = REPOSITORY / ".venv-litellm" / "bin" / "litellm"
CHINESE = "請說一個關於海的故事🌊，謝謝👩‍👩‍👧！"
MASTER_KEY = "sk-" + "0123456789abcdef" * 4
CONFIG = """
model_list:
  - model_name: far
    litellm_params: {{model: openai/fake, api_base: "{base_url}", api_key: dummy}}
"""

pytestmark = [
    pytest.mark.skipif(not LITELLM.exists(), reason="LiteLLM is not installed: make peers"),
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def kernel(shared_stage: Stage, shared_kernel: Kernel) -> Kernel:
    base_url = start_provider(shared_stage, "openai_server").base_url
    config = shared_stage.folder / "litellm.yaml"
    config.write_text(CONFIG.format(base_url=base_url))
    port = shared_stage.port()
    argv = [str(LITELLM), "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
    # It refuses to start without a key, and otherwise asks the Internet for its price list first.
    env = shared_stage.environment(LITELLM_MASTER_KEY=MASTER_KEY, LITELLM_LOCAL_MODEL_COST_MAP="True")
    proxy = shared_stage.process(argv, name="litellm", tolerates_tracebacks=True, env=env)
    origin = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return fetch(origin + "/health/liveliness", timeout_s=5).status == 200
        except OSError:
            return False

    proxy.wait_for(answers, "LiteLLM answered", timeout_s=180)
    flags = ["--base_url", origin + "/v1", "--api_key", MASTER_KEY, "--model", "far"]
    shared_stage.executor("chatgpt", *flags, kernel=shared_kernel)
    return shared_kernel


def test_text_comes_back_byte_for_byte_streamed_or_not(kernel: Kernel) -> None:
    assert chat_text(kernel.url, "chatgpt", CHINESE) == CHINESE
    with stream_chat(kernel.url, "chatgpt", CHINESE) as stream:
        assert stream.text() == CHINESE


def test_usage_arrives(kernel: Kernel) -> None:
    usage = chat(kernel.url, "chatgpt", "one two three").json()["usage"]
    assert usage["completion_tokens"] > 0
    assert "estimated" not in usage


def test_a_client_that_goes_away_frees_the_slot(kernel: Kernel) -> None:
    with stream_chat(kernel.url, "chatgpt", "word " * 1000) as stream:
        stream.first_text()
    until(lambda: kernel.idle("chatgpt"), "the slot was freed")


def test_its_refusals_are_openais(kernel: Kernel) -> None:
    refused = chat(kernel.url, "chatgpt", "hi", temperature=1.5, fake={"status": 400})
    assert refused.status in (400, 502)
    assert refused.error["message"]
