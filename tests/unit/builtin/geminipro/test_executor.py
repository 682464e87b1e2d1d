"""The command line of `geminipro`, and its options beside those of Google's SDK."""

from __future__ import annotations

import pytest

from kuwa.builtin.geminipro import GeminiProExecutor
from kuwa.builtin.geminipro.parameters import CATEGORIES, PARAMETERS, SAFETY, TABLE, THINKING
from kuwa.executor.arguments import UsageError
from kuwa.executor.invocation import Invocation, invoked


def executor(*arguments: str, **environment: str) -> GeminiProExecutor:
    with invoked(Invocation("kuwa-executor geminipro", arguments, environment, "geminipro")):
        return GeminiProExecutor()


def test_the_default_access_code_is_gemini_pro() -> None:
    assert executor().access_codes == ("gemini-pro",)
    assert executor("--access_code", "g").access_codes == ("g",)


def test_the_defaults_are_the_documented_ones() -> None:
    args = executor().args
    assert (args.api_key, args.limit, args.system_prompt) == (None, 30720, None)
    assert (args.no_system_prompt, args.no_override_api_key, args.generation_config) == (False, False, None)
    assert args.model.endswith("-latest")
    assert args.base_url == "https://generativelanguage.googleapis.com"


def test_help_shows_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        executor("--help")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    names = ["api_key", "api_key_file", "base_url", "model", "limit", "system_prompt", "no_system_prompt"]
    for name in [*names, "generation_config", *(option.name for option in TABLE)]:
        assert f"--{name}" in shown


def test_a_safety_threshold_is_one_that_the_api_knows(capsys: pytest.CaptureFixture[str]) -> None:
    assert executor("--safety_harassment", "block_only_high").args.safety_harassment == "block_only_high"
    with pytest.raises(SystemExit):
        executor("--safety_harassment", "sometimes")
    assert "block_none" in capsys.readouterr().err


def test_the_options_are_those_of_the_installed_sdk() -> None:
    types = pytest.importorskip("google.genai.types")
    assert {option.name for option in PARAMETERS} <= set(types.GenerateContentConfig.model_fields)
    assert {option.name for option in THINKING} <= set(types.ThinkingConfig.model_fields)
    assert {f"HARM_CATEGORY_{name.upper()}" for name in CATEGORIES} <= {member.name for member in types.HarmCategory}
    thresholds = {member.name for member in types.HarmBlockThreshold}
    assert {str(choice).upper() for option in SAFETY for choice in option.choices or ()} <= thresholds
    levels = {member.name for member in types.ThinkingLevel}
    assert {str(c).upper() for option in THINKING for c in option.choices or ()} <= levels


@pytest.mark.parametrize("arguments", [("--limit", "0"), ("--timeout", "-1"), ("--base_url", "localhost")])
def test_an_option_that_makes_no_sense_is_refused_at_start(arguments: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match=arguments[0]):
        executor(*arguments).setup()
