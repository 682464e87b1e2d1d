"""The model maker: the cutting of scripts, the vocabulary, and the files it writes."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st

from kuwa.builtin.llamacpp.header import read_header
from kuwa.builtin.llamacpp.maker import (
    GUIDE_FILE,
    SPECIAL,
    Shape,
    cut_pieces,
    main,
    make_random,
    make_scripted,
    make_welcome,
    spell,
    train_vocabulary,
)

TAKEN = frozenset(train_vocabulary("the quick brown fox and the lazy dog. " * 20, 60).tokens)


@settings(deadline=None)
@given(st.binary(min_size=2, max_size=300))
def test_the_pieces_of_a_script_spell_it_and_are_distinct(data: bytes) -> None:
    pieces = cut_pieces(data, frozenset(spell(bytes([byte])) for byte in range(256)))
    assert "".join(pieces) == spell(data)
    assert len(set(pieces)) == len(pieces)
    assert all(len(piece) > 1 for piece in pieces)


def test_a_script_of_one_repeated_character_can_be_cut() -> None:
    pieces = cut_pieces(b"a" * 1000, TAKEN)
    assert "".join(pieces) == "a" * 1000
    assert len(set(pieces)) == len(pieces)


def test_no_piece_is_a_token_that_a_prompt_can_hold() -> None:
    assert not TAKEN & set(cut_pieces(b"the quick brown fox jumps over the lazy dog, and the dog sleeps", TAKEN))


@pytest.mark.parametrize("text", [b"", b"x"])
def test_a_script_that_is_too_short_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"text"):
        cut_pieces(text, TAKEN)


def test_a_vocabulary_holds_every_byte_and_one_token_per_merge() -> None:
    vocabulary = train_vocabulary("hello hello hello world", 5)
    assert len(set(vocabulary.tokens)) == len(vocabulary.tokens) == 256 + 5
    assert all("".join(merge.split(" ")) in vocabulary.tokens for merge in vocabulary.merges)


def test_the_welcome_model_is_made_quickly_and_speaks_both_languages(tmp_path: Path) -> None:
    started = time.process_time()
    make_welcome(tmp_path / "cache" / "welcome.gguf")
    assert time.process_time() - started < 5
    assert read_header(tmp_path / "cache" / "welcome.gguf").name == "kuwa-welcome"
    guide = GUIDE_FILE.read_text(encoding="utf-8")
    assert "歡迎使用" in guide
    assert guide.count("kuwa-executor llamacpp --model_path") == 2
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["welcome.gguf"]


def test_the_table_of_a_script_leads_through_it_to_the_end(tmp_path: Path) -> None:
    text = "台灣 🇹🇼 says hello, and \u0000 goodbye."
    make_scripted(tmp_path / "s.gguf", text)
    reader = GGUFReader(tmp_path / "s.gguf")
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    weights = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    logits = weights["token_embd.weight"] @ weights["output.weight"].T
    said, token = "", tokens.index("Ċ")
    while (token := int(logits[token].argmax())) != len(tokens) - 1:
        said += tokens[token]
    assert said == spell(text.encode())
    assert tokens[-len(SPECIAL) :] == list(SPECIAL)


def test_a_random_model_has_the_shape_it_was_asked_for(tmp_path: Path) -> None:
    shape = Shape("shaped", "qwen2", 64, 3, 128, 4, 2, 256, vocabulary=1000, quantisation="Q8_0")
    make_random(tmp_path / "r.gguf", shape)
    header = read_header(tmp_path / "r.gguf")
    assert (header.architecture, header.block_count, header.quantisation) == ("qwen2", 3, "Q8_0")
    assert header.context_length == 256


def test_a_model_that_cannot_be_made_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="too short"):
        make_scripted(path, "x")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_maker_is_a_program(tmp_path: Path) -> None:
    main(["script", str(tmp_path / "s.gguf"), "something to say"])
    main(["tiny", str(tmp_path / "t.gguf")])
    assert read_header(tmp_path / "s.gguf").name == "kuwa-script"
    assert read_header(tmp_path / "t.gguf").name == "kuwa-tiny"
