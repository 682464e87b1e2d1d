"""Exact counts with a tokenizer made here: one token per word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kuwa.builtin.chatgpt.tokenizer import LocalTokenizer
from kuwa.executor.arguments import UsageError
from kuwa.executor.prompt import Message
from kuwa.executor.provider.context import TOKENS_PER_MEDIUM, TOKENS_PER_MESSAGE

tokenizers = pytest.importorskip("tokenizers")

TALK: list[Message] = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": [{"type": "text", "text": "one two three"}]},
]
TEMPLATE = "{{ bos_token }}{% for m in messages %} {{ m.role }} {{ m.content }} end{% endfor %} answer"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_text_is_counted_exactly(folder: Path) -> None:
    for path in (folder, folder / "tokenizer.json"):
        assert LocalTokenizer(path).text_tokens("one two  three") == 3


def test_without_a_template_each_message_has_a_flat_cost_beside_its_text(folder: Path) -> None:
    assert LocalTokenizer(folder).count(TALK) == 2 + 3 + 2 * TOKENS_PER_MESSAGE


def test_with_a_template_a_conversation_is_counted_as_the_model_reads_it(folder: Path) -> None:
    config = {"chat_template": TEMPLATE, "bos_token": {"content": "<s> "}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert LocalTokenizer(folder).count(TALK) == 1 + (1 + 2 + 1) + (1 + 3 + 1) + 1


def test_a_template_that_refuses_a_conversation_leaves_the_flat_cost(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no system prompts') }}")
    assert LocalTokenizer(folder).count(TALK) == 2 + 3 + 2 * TOKENS_PER_MESSAGE


def test_a_template_cannot_reach_out(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    assert LocalTokenizer(folder).count(TALK) == 2 + 3 + 2 * TOKENS_PER_MESSAGE


def test_an_image_costs_what_it_is_estimated_to(folder: Path) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,x"}}
    assert (
        LocalTokenizer(folder).count([{"role": "user", "content": [image]}]) == TOKENS_PER_MEDIUM + TOKENS_PER_MESSAGE
    )


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_tokenizer_that_is_none_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UsageError, match="--tokenizer"):
        LocalTokenizer(tmp_path)
