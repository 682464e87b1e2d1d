"""The command line of `huggingface`, and what it says of one that cannot be followed."""

from __future__ import annotations

import pytest

from kuwa.builtin.huggingface import HuggingfaceExecutor
from kuwa.builtin.huggingface.options import PARAMETERS
from kuwa.executor import SetupFailed
from kuwa.executor.arguments import UsageError
from kuwa.executor.invocation import Invocation, invoked

DOCUMENTED = [
    "model_path",
    "visible_gpu",
    "system_prompt",
    "no_system_prompt",
    "limit",
    "override_chat_template",
    "stop",
    "timeout",
    "load_8bits",
    "load_4bits",
    "trust_remote_code",
    "tokenizer",
    "revision",
    "dtype",
    "engine",
    "max_batch_tokens",
    "kv_cache_gb",
    "image_urls",
    "lora",
    "offline",
    "generation_config",
    "generation_kwargs",
    "max_new_tokens",
    "do_sample",
    "temperature",
]


def executor(*arguments: str) -> HuggingfaceExecutor:
    with invoked(Invocation("kuwa-executor huggingface", arguments, {}, "huggingface")):
        return HuggingfaceExecutor()


def test_the_default_access_code_is_huggingface() -> None:
    assert executor().access_codes == ("huggingface",)
    assert executor("--access_code", "taide").access_codes == ("taide",)


def test_the_defaults_are_the_documented_ones() -> None:
    args = executor().args
    assert (args.limit, args.timeout, args.load_8bits, args.trust_remote_code) == (3072, 10.0, False, False)
    defaults = {option.name: option.default for option in PARAMETERS if option.default is not None}
    assert defaults == {"max_new_tokens": 4096, "do_sample": False}


def test_help_shows_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        executor("--help")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for name in {*DOCUMENTED, *(option.name for option in PARAMETERS)}:
        assert f"--{name}" in shown
    for default in ("(default: 3072)", "(default: 10.0)", "(default: 4096)", "(default: auto)"):
        assert default in " ".join(shown.split())


def test_the_missions_command_line_is_understood() -> None:
    args = executor("--model_path", "google/gemma-7b-it", "--visible_gpu", "0,1").args
    assert (args.model_path, args.visible_gpu) == ("google/gemma-7b-it", "0,1")


def test_options_that_take_several_values_are_repeated() -> None:
    args = executor("--stop", "a", "--stop=b", "--generation_kwargs", "k=1", "--generation_kwargs", "j=2").args
    assert (args.stop, args.generation_kwargs) == (["a", "b"], ["k=1", "j=2"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--model_path is missing"),
        (["--model_path", "x", "--load_8bits", "--load_4bits"], "not both"),
        (["--model_path", "x", "--limit", "0"], "--limit is 0"),
        (["--model_path", "x", "--kv_cache_gb", "0"], "--kv_cache_gb"),
        (["--model_path", "x", "--override_chat_template", "no such template"], "no such template"),
    ],
)
def test_what_cannot_be_meant_is_said_before_anything_is_loaded(arguments: list[str], said: str) -> None:
    with pytest.raises(SetupFailed, match=said) as raised:
        executor(*arguments).setup()
    assert "\n" not in str(raised.value)


def test_an_unknown_option_in_the_generation_kwargs_is_named() -> None:
    with pytest.raises(UsageError, match="temprature"):
        executor("--model_path", "x", "--generation_kwargs", "temprature=1").setup()
