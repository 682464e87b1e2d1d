"""What is told of a GGUF model: what it does, by its file and by `--pooling`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kuwa.builtin.llamacpp.executor import served
from kuwa.builtin.llamacpp.header import GgufHeader, read_header
from kuwa.builtin.llamacpp.maker import make_scripted

CHAT = ("chat", "completions")


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> GgufHeader:
    path = tmp_path_factory.mktemp("models") / "model.gguf"
    make_scripted(path, "Ahoy.")
    return read_header(path)


@pytest.mark.parametrize(
    ("pooled", "ranks", "pooling", "does"),
    [
        (False, False, None, CHAT),
        (False, False, "last", (*CHAT, "embeddings")),
        (False, False, "rank", (*CHAT, "rerank")),
        (True, False, None, ("embeddings",)),
        (True, False, "rank", ("rerank",)),
        (True, True, None, ("rerank",)),
        (True, True, "cls", ("embeddings",)),
    ],
)
def test_a_model_does_what_it_was_made_for_and_pools_as_it_is_told(
    header: GgufHeader, pooled: bool, ranks: bool, pooling: str | None, does: tuple[str, ...]
) -> None:
    assert served(replace(header, pooled=pooled, ranks=ranks), pooling=pooling) == does
