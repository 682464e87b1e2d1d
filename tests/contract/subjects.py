"""The executors that the contract is checked on, and how a test asks one of them.

`OURS` makes each of our own; `conftest.py` beside this makes a `Subject` of any other command line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from calls import Answer, Stream, chat, chat_text, old_chat, open_chat, stream_chat
from processes import REPOSITORY, Executor, Kernel, Stage
from providers import start_provider

QUESTION = "Tell me of the sea: the waves and the wind, the ships 與海上的燈塔, and of those who wait ashore."
SCRIPTED = "海是藍色的。🌊 The waves come in, the waves go out; 船回家了 ⛵, and somebody lit a lamp. 晚安。"


@dataclass(frozen=True)
class Subject:
    """An executor under test: what stands after `kuwa-executor`, and what has to run beside it."""

    name: str
    argv: Sequence[str]
    env: dict[str, str] = field(default_factory=dict)

    def start(self, stage: Stage, kernel: Kernel | None, access_code: str = "", wait: bool = True) -> Executor:
        code = access_code or f"contract/{self.name}"
        return stage.executor(self.argv[0], *self.argv[1:], kernel=kernel, access_code=code, wait=wait, **self.env)


@dataclass(frozen=True)
class House:
    """A kernel with one executor under test, ready to be asked."""

    kernel: Kernel
    executor: Executor

    @property
    def code(self) -> str:
        return self.executor.access_code

    @property
    def slots(self) -> int:
        (replica,) = self.kernel.replicas(self.code)
        return replica["slots"]

    @property
    def endpoint(self) -> str:
        """Its chat endpoint of the v1.0 wire."""
        return self.executor.url + "/chat"

    def chat(self, text: str = QUESTION, **parameters: object) -> Answer:
        return chat(self.kernel.url, self.code, text, **parameters)

    def text(self, text: str = QUESTION, **parameters: object) -> str:
        return chat_text(self.kernel.url, self.code, text, **parameters)

    def stream(self, text: str = QUESTION, **parameters: object) -> Stream:
        return stream_chat(self.kernel.url, self.code, text, **parameters)

    def open(self, text: str = QUESTION, **parameters: object) -> Stream:
        return open_chat(self.kernel.url, self.code, text, **parameters)

    def old(self, text: str = QUESTION, **fields: str) -> Stream:
        return old_chat(self.kernel.url, self.code, text, **fields)


def _debug(_: Stage) -> Subject:
    return Subject("debug", ["debug"])


def _dummy(_: Stage) -> Subject:
    return Subject("dummy", ["dummy", "--delay", "0.005"])


def _oracle(_: Stage) -> Subject:
    return Subject("oracle", [str(REPOSITORY / "tests" / "oracle.py")])


def _custom(_: Stage) -> Subject:
    return Subject("custom", [str(REPOSITORY / "examples" / "my_executor.py")])


def _may_2024(_: Stage) -> Subject:
    return Subject("may-2024", [str(REPOSITORY / "tests" / "fakes" / "may_2024_executor.py"), "--pause", "0.02"])


def _chatgpt(stage: Stage) -> Subject:
    base_url = start_provider(stage, "openai_server", "--delay", "0.01").base_url
    return Subject("chatgpt", ["chatgpt", "--base_url", base_url, "--api_key", "sk-test", "--model", "fake-1"])


def _geminipro(stage: Stage) -> Subject:
    base_url = start_provider(stage, "gemini_server", "--delay", "0.01").base_url
    return Subject("geminipro", ["geminipro", "--base_url", base_url, "--api_key", "test-key"])


def _llamacpp(stage: Stage) -> Subject:
    from kuwa.builtin.llamacpp.maker import make_scripted  # needs numpy and gguf, which the others do not

    model = stage.folder / "scripted.gguf"
    make_scripted(model, SCRIPTED)
    return Subject("llamacpp", ["llamacpp", "--model_path", str(model)])


def _huggingface(model: str) -> Callable[[Stage], Subject]:
    def subject(stage: Stage) -> Subject:
        from tiny_models import make_folder  # needs torch, which the others do not

        folder = make_folder(model, stage.folder / model)
        return Subject(model, ["huggingface", "--model_path", str(folder), "--max_new_tokens", "60"])

    return subject


ARCHITECTURES = ("llama", "qwen3", "gemma3", "mistral-swa", "gpt2", "moe", "hybrid", "llava")
"""Each kind of attention and state that the engine of `huggingface` treats in a way of its own."""
SAME_LIFE = frozenset(f"huggingface/{name}" for name in ARCHITECTURES[1:])
"""They start and end as the first of their kind does, and each start takes seconds; see `--every_life`."""

OURS: dict[str, Callable[[Stage], Subject]] = {
    "debug": _debug,
    "dummy": _dummy,
    "oracle": _oracle,
    "custom": _custom,
    "may-2024": _may_2024,
    "chatgpt": _chatgpt,
    "geminipro": _geminipro,
    "llamacpp": _llamacpp,
    **{f"huggingface/{name}": _huggingface(f"tiny-{name}") for name in ARCHITECTURES},
}
