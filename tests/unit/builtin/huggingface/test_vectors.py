"""Embeddings and scores: whatever is computed together, each text gets what it gets alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification, BertModel

from kuwa.builtin.huggingface.vectors import (
    BATCH_TOKENS,
    Recipe,
    UnknownRecipe,
    Vectors,
    batches,
    pooled_states,
    recipe_of,
)
from kuwa.wire.errors import ContextLengthExceeded, InvalidRequest
from tiny_models import make_tokenizer

torch.set_num_threads(1)
SENTENCES = ["The ship", "海上的燈塔", "waves and waves and waves of them, with no end", "a"]


def bert(kind: type[Any], **more: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return kind(BertConfig(vocab_size=1000, max_position_embeddings=64, initializer_range=0.2, **sizes, **more)).eval()


@pytest.mark.parametrize("pooling", ["first", "last", "mean", "max"])
def test_a_vector_does_not_depend_on_what_is_computed_beside_it(pooling: str) -> None:
    vectors = Vectors(bert(BertModel), make_tokenizer(64), length=64, recipe=Recipe(pooling))
    together, tokens = vectors.embed(SENTENCES)
    for sentence, vector in zip(SENTENCES, together, strict=True):
        (alone,), _ = vectors.embed([sentence])
        assert vector == pytest.approx(alone, abs=1e-5)
        assert sum(x * x for x in vector) == pytest.approx(1.0, abs=1e-5)
    assert tokens == sum(len(make_tokenizer(64)(s)["input_ids"]) for s in SENTENCES)


def test_token_ids_stand_for_their_text() -> None:
    tokenizer = make_tokenizer(64)
    vectors = Vectors(bert(BertModel), tokenizer, length=64)
    by_ids, _ = vectors.embed([tokenizer("The ship")["input_ids"]])
    assert by_ids[0] == pytest.approx(vectors.embed(["The ship"])[0][0])


def test_a_score_does_not_depend_on_the_other_documents() -> None:
    model = bert(BertForSequenceClassification, num_labels=1)
    vectors = Vectors(model, make_tokenizer(64), length=64)
    together, _ = vectors.score("sea", SENTENCES)
    assert all(0 < score < 1 for score in together)
    for sentence, score in zip(SENTENCES, together, strict=True):
        assert vectors.score("sea", [sentence])[0][0] == pytest.approx(score, abs=1e-5)


def test_what_cannot_be_read_is_refused() -> None:
    vectors = Vectors(bert(BertModel), make_tokenizer(64), length=4)
    with pytest.raises(ContextLengthExceeded, match=r"input\[1\] has"):
        vectors.embed(["a", SENTENCES[2]])
    for wrong in ([], [1000], [-1]):
        with pytest.raises(InvalidRequest):
            vectors.embed([wrong])


@given(st.lists(st.integers(1, BATCH_TOKENS), max_size=40))
def test_batches_hold_every_row_once_and_are_bounded(lengths: list[int]) -> None:
    found = list(batches(lengths))
    assert sorted(row for batch in found for row in batch) == list(range(len(lengths)))
    assert all(len(batch) * max(lengths[row] for row in batch) <= BATCH_TOKENS for batch in found)


def test_padding_counts_for_no_kind_of_pooling() -> None:
    states = torch.tensor([[[1.0], [3.0], [99.0]]])
    mask = torch.tensor([[1, 1, 0]])
    kinds = ("first", "last", "mean", "max", "root", "weighted")
    found = {kind: float(pooled_states(states, mask, kind)) for kind in kinds}
    assert found == pytest.approx(
        {"first": 1.0, "last": 3.0, "mean": 2.0, "max": 3.0, "root": 4 / 2**0.5, "weighted": 7 / 3}
    )


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        (None, "mean"),
        ('{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}', "first"),
        ('{"pooling_mode_lasttoken": true}', "last"),
        ('{"pooling_mode": "cls"}', "first"),
        ('{"pooling_mode": "mean"}', "mean"),
    ],
)
def test_the_folder_says_how_token_vectors_become_one(tmp_path: Path, config: str | None, pooling: str) -> None:
    if config is not None:
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(config)
    assert recipe_of(tmp_path) == Recipe(pooling)


@pytest.mark.parametrize(("kinds", "normalise"), [(["Normalize"], True), ([], False)])
def test_the_folder_says_whether_vectors_have_length_one(tmp_path: Path, kinds: list[str], normalise: bool) -> None:
    named = [{"path": f"{n}_{kind}", "type": f"x.{kind}"} for n, kind in enumerate(["Transformer", "Pooling", *kinds])]
    (tmp_path / "modules.json").write_text(json.dumps(named))
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    assert recipe_of(tmp_path) == Recipe("mean", normalise, 32)
    vectors = Vectors(bert(BertModel), make_tokenizer(64), length=64, recipe=recipe_of(tmp_path))
    length = sum(x * x for x in vectors.embed(["The ship"])[0][0])
    assert (length == pytest.approx(1.0, abs=1e-5)) == normalise


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("modules.json", '[{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]', "names Dense"),
        ("modules.json", "[", "modules.json is damaged"),
        ("1_Pooling/config.json", '{"pooling_mode_cls_token": true, "pooling_mode_max_tokens": true}', "cls_token and"),
        ("1_Pooling/config.json", '{"pooling_mode": "majority"}', "its pooling majority"),
    ],
)
def test_a_folder_that_wants_more_is_refused(tmp_path: Path, file: str, text: str, said: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    with pytest.raises(UnknownRecipe, match=said):
        recipe_of(tmp_path)
