"""Secrets are blotted out of an argument list in either spelling, and nothing else is."""

from __future__ import annotations

import pytest

from kuwa.executor.process_title import blotted


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["--api_key", "sk-1", "--model", "m"], ["--api_key", "***", "--model", "m"]),
        (["--api_key=sk-1"], ["--api_key=***"]),
        (["--api_key", "--api_key", "--model"], ["--api_key", "***", "--model"]),
        (["--api_key_file", "k", "--model=--api_key"], ["--api_key_file", "k", "--model=--api_key"]),
        (["--api_key"], ["--api_key"]),
        ([], []),
    ],
)
def test_the_value_of_a_secret_option_is_blotted_out(given: list[str], shown: list[str]) -> None:
    assert blotted(given, ["--api_key"]) == shown
