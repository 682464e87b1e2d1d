"""The templates that are known by name, rendered."""

from __future__ import annotations

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from kuwa.builtin.llamacpp.templates import TEMPLATES

CONVERSATION = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "first question"},
    {"role": "assistant", "content": "first answer"},
    {"role": "user", "content": "second question"},
]


def render(name: str, messages: list[dict[str, str]]) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATES[name]).render(messages=messages, add_generation_prompt=True)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_holds_each_turn_once_and_in_order(name: str) -> None:
    prompt = render(name, CONVERSATION)
    places = [prompt.index(message["content"]) for message in CONVERSATION]
    assert places == sorted(places)
    assert all(prompt.count(message["content"]) == 1 for message in CONVERSATION)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_needs_no_system_prompt(name: str) -> None:
    prompt = render(name, CONVERSATION[1:])
    assert "be brief" not in prompt
    assert "None" not in prompt
    assert "first question" in prompt
