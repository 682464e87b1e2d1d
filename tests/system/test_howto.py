"""The commands of docs/howto, run by bash as they stand. Only scheme, host and port of an address are changed: to a
local server in the provider's place, whose path stays what the page says.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from calls import chat_text, old_abort, old_chat, stream_chat
from processes import REPOSITORY, Kernel, Process, Stage, until
from providers import start_provider

PAGES = REPOSITORY / "docs" / "howto"
CHINESE = "請說一個關於海的故事🌊，謝謝👩‍👩‍👧！"
TAIDE_PROMPT = "你是一個來自台灣的AI助理，你的名字是TAIDE，樂於以台灣人的立場幫助使用者，會用繁體中文回答問題。"
SLOW = {"fake": {"pieces": [f"{number} " for number in range(500)], "delay_s": 0.02}}

_BLOCK = re.compile(r"(<!-- not run: .+ -->\n)?```sh\n(.*?)```", re.DOTALL)
_ORIGIN = re.compile(r"https?://[^/\"]+")
_CODE = re.compile(r"--access_code (\S+)")
_MODEL = re.compile(r'--model "([^"]+)"')


@dataclass(frozen=True)
class Recipe:
    page: str
    command: str

    @property
    def codes(self) -> list[str]:
        default = "gemini-pro" if "geminipro" in self.command else "chatgpt"
        return _CODE.findall(self.command) or [default]

    @property
    def models(self) -> list[str]:
        return _MODEL.findall(self.command)

    def at(self, origin: str) -> str:
        """The command with its address at `origin`; where the page leaves the address open, it is added."""
        if "--base_url" not in self.command:
            return self.command.rstrip() + f' --base_url "{origin}"'
        return _ORIGIN.sub(origin, self.command)


def blocks(page: Path) -> list[tuple[bool, str]]:
    """Whether it is run, and the text, of each shell block of a page."""
    return [(not marked, text) for marked, text in _BLOCK.findall(page.read_text(encoding="utf-8"))]


RECIPES = [
    Recipe(page.stem, text)
    for page in sorted(PAGES.glob("*.md"))
    for runs, text in blocks(page)
    if runs and text.startswith("kuwa-executor")
]


def run_in_bash(stage: Stage, kernel: Kernel, command: str) -> Process:
    """Run a block from a file, as somebody does who pasted it; the environment names the kernel."""
    script = stage.folder / "block.sh"
    script.write_text(command, encoding="utf-8")
    commands = Path(sys.executable).parent
    env = stage.environment(PATH=f"{commands}:{os.environ['PATH']}", KUWA_KERNEL_URL=kernel.url + "/", LC_ALL="C.UTF-8")
    return stage.process(["bash", str(script)], name="block", env=env)


def end(shell: Process) -> None:
    """A terminal's Ctrl-C reaches the shell and its child, as this does."""
    os.killpg(shell.pid, signal.SIGINT)
    shell.wait()
    until(lambda: not shell.family(), "the executor ended with its shell")


@pytest.mark.parametrize("recipe", RECIPES, ids=[f"{r.page}-{r.codes[0].replace('/', '.')}" for r in RECIPES])
def test_a_recipe_registers_chats_and_aborts_as_it_stands(stage: Stage, recipe: Recipe) -> None:
    kernel = stage.kernel()
    gemini = "geminipro" in recipe.command
    models = [flag for model in recipe.models for flag in ("--model", model)]
    provider = start_provider(stage, "gemini_server" if gemini else "openai_server", *models)
    shell = run_in_bash(stage, kernel, recipe.at(provider.origin))
    for code, model in zip(recipe.codes, recipe.models or ["gemini-flash-latest"], strict=True):
        shell.wait_for(lambda code=code: kernel.ready(code), "the kernel saw the executor ready")
        assert chat_text(kernel.url, code, CHINESE) == CHINESE
        last = provider.last
        assert last["body"].get("model", model) == model
        slow = {"messages": [{"role": "user", "content": json.dumps(SLOW)}]} if gemini else SLOW
        with stream_chat(kernel.url, code, "count", **slow) as stream:
            stream.first_text()
        until(lambda: provider.last["outcome"] == "client_gone", "the provider saw the client go")
    end(shell)


def test_taides_system_prompt_arrives_byte_for_byte(stage: Stage) -> None:
    kernel = stage.kernel()
    (recipe,) = [each for each in RECIPES if each.page == "taide"]
    provider = start_provider(stage, "openai_server", "--delay", "0.02")
    shell = run_in_bash(stage, kernel, recipe.at(provider.origin))
    shell.wait_for(lambda: kernel.ready("taide-api"), "the kernel saw the executor ready")
    with old_chat(kernel.url, "taide-api", "字 " * 500, history_id="-31", user_id="9") as stream:
        assert next(stream.pieces())
        assert old_abort(kernel.url, -31, user_id="9").status == 200
        stream.read()
    last = provider.last
    assert last["path"] == "/api/v1/chat/completions"
    assert last["body"]["messages"][0] == {"role": "system", "content": TAIDE_PROMPT}
    until(lambda: provider.last["outcome"] == "client_gone", "the provider saw the client go")
    end(shell)


def test_every_page_has_its_commands_and_what_is_not_run_says_why() -> None:
    assert {recipe.page for recipe in RECIPES} == {
        "azure", "gemini", "groq", "llama-server", "ollama", "openrouter", "taide", "vllm",
    }  # fmt: skip
    not_run = [text for page in PAGES.glob("*.md") for runs, text in blocks(page) if not runs]
    assert len(not_run) == 1
    assert not_run[0].startswith("docker run")


# ---- real servers in the provider's place ---------------------------------------------------------------------


def recipe_for(access_code: str) -> Recipe:
    (found,) = [recipe for recipe in RECIPES if access_code in recipe.codes]
    return found


def test_another_kernel_is_a_provider(stage: Stage) -> None:
    far = stage.kernel()
    stage.executor("debug", "--delay", "0.001", kernel=far)
    near = stage.kernel()
    shell = run_in_bash(stage, near, recipe_for("far/debug").at(far.url))
    shell.wait_for(lambda: near.ready("far/debug"), "the kernel saw the executor ready")
    assert chat_text(near.url, "far/debug", CHINESE) == CHINESE
    with stream_chat(near.url, "far/debug", "word " * 2000) as stream:
        stream.first_text()
    until(lambda: near.idle("far/debug") and far.idle("debug"), "both kernels freed the slot")
    end(shell)


def test_llama_cpp_is_a_provider(stage: Stage) -> None:
    pytest.importorskip("xllamacpp")
    from kuwa.builtin.llamacpp.maker import make_scripted

    text = "海是藍色的。🌊 The waves come in; 船回家了 ⛵."
    model = stage.folder / "scripted.gguf"
    make_scripted(model, text)
    server = stage.executor("llamacpp", "--model_path", str(model), kernel=None, access_code="any")
    kernel = stage.kernel()
    shell = run_in_bash(stage, kernel, recipe_for("llama").at(server.url))
    shell.wait_for(lambda: kernel.ready("llama"), "the kernel saw the executor ready")
    assert text in chat_text(kernel.url, "llama", "?")
    with stream_chat(kernel.url, "llama", "?", stream_options={"include_usage": True}) as stream:
        *_, last = stream.events()
    assert last["usage"]["completion_tokens"] > 0
    end(shell)
