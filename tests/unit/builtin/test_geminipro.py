"""`geminipro` before it serves: its whole command line, and what it says when it is started."""

from __future__ import annotations

import pytest

from kuwa.builtin.geminipro import PARAMETERS, SAFETY, GeminiProExecutor
from kuwa.executor import NotBuiltYet
from kuwa.executor.invocation import Invocation, invoked


def executor(*arguments: str) -> GeminiProExecutor:
    with invoked(Invocation("kuwa-executor geminipro", arguments, {}, "geminipro")):
        return GeminiProExecutor()


def test_the_default_access_code_is_gemini_pro() -> None:
    assert executor().access_codes == ("gemini-pro",)
    assert executor("--access_code", "g").access_codes == ("g",)


def test_the_defaults_are_the_documented_ones() -> None:
    args = executor().args
    assert (args.api_key, args.limit, args.system_prompt) == (None, 30720, None)
    assert (args.no_system_prompt, args.no_override_api_key, args.generation_config) == (False, False, None)
    assert args.model.endswith("-latest")


def test_help_shows_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        executor("--help")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    names = [option.name for option in (*PARAMETERS, *SAFETY)]
    for name in ["api_key", "model", "limit", "system_prompt", "no_system_prompt", "generation_config", *names]:
        assert f"--{name}" in shown


def test_a_safety_threshold_is_one_that_the_api_knows(capsys: pytest.CaptureFixture[str]) -> None:
    assert executor("--safety_harassment", "block_only_high").args.safety_harassment == "block_only_high"
    with pytest.raises(SystemExit):
        executor("--safety_harassment", "sometimes")
    assert "block_none" in capsys.readouterr().err


def test_starting_it_says_that_it_is_not_built_and_what_to_use_instead() -> None:
    with pytest.raises(NotBuiltYet, match="kuwa-executor chatgpt") as raised:
        executor("--api_key", "sk-canary").setup()
    assert "\n" not in str(raised.value)
    assert "sk-canary" not in str(raised.value)
