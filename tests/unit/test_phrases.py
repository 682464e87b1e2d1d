"""The commands to paste and the durations that pages and terminals show."""

from __future__ import annotations

import json
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuwa.words.phrases import curl_command, duration, kernel_option


@given(message=st.text(st.characters(exclude_characters="\x00", codec="utf-8")))
def test_the_curl_command_is_one_shell_command_with_a_json_body(message: str) -> None:
    words = shlex.split(curl_command("http://127.0.0.1:9000", "welcome", message))
    assert words[:3] == ["curl", "-N", "http://127.0.0.1:9000/v1/chat/completions"]
    body = json.loads(words[words.index("-d") + 1])
    assert body == {"model": "welcome", "stream": True, "messages": [{"role": "user", "content": message}]}


def test_a_message_in_chinese_stays_readable() -> None:
    assert "你好！" in curl_command("http://127.0.0.1:9000", "welcome", "你好！")


@pytest.mark.parametrize(
    ("url", "option"),
    [
        ("http://127.0.0.1:9000", ""),
        ("http://127.0.0.1:9001", " --kernel_url http://127.0.0.1:9001/"),
        ("https://k.test", " --kernel_url https://k.test/"),
    ],
)
def test_a_kernel_at_the_default_address_needs_no_option(url: str, option: str) -> None:
    assert kernel_option(url) == option


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-3, "0 s"),
        (119.9, "119 s"),
        (120, "2 min"),
        (3599, "59 min"),
        (3900, "1 h 05 min"),
        (172_799, "47 h 59 min"),
        (273_600, "3 d 4 h"),
    ],
)
def test_a_duration_is_shown_in_its_two_largest_units(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
