"""What `setup` finds out of a model is what is told of it, and what it does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from kuwa.builtin.huggingface import HuggingfaceExecutor
from kuwa.executor.invocation import Invocation, invoked
from kuwa.executor.request import EmbedRequest, Request, RerankRequest
from kuwa.executor.server import ExecutorServer
from kuwa.wire.errors import KuwaError, Unsupported
from tiny_models import make_cross_encoder, make_folder, make_tokenizer

pytestmark = pytest.mark.anyio


def make_embedder(folder: Path) -> Path:
    tokenizer = make_tokenizer(64)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_reader(folder: Path) -> Path:
    return make_folder("tiny-llama", folder)


def make_seer(folder: Path) -> Path:
    return make_folder("tiny-llava", folder)


def prepared(folder: Path) -> HuggingfaceExecutor:
    with invoked(Invocation("kuwa-executor huggingface", ["--model_path", str(folder)], {}, "m")):
        executor = HuggingfaceExecutor()
    executor.setup()
    return executor


async def does(executor: HuggingfaceExecutor) -> set[str]:
    """What the executor does not refuse as unsupported."""

    async def chat() -> object:
        messages = [{"role": "user", "content": "Where does the ship lie?"}]
        asked = Request(id="r", access_code="m", messages=messages, parameters={"max_tokens": 2})
        return [chunk async for chunk in executor.llm_compute(asked)]

    async def embed() -> object:
        return await executor.embed(EmbedRequest(id="r", access_code="m", inputs=["the quay"]))

    async def rerank() -> object:
        asked = RerankRequest(id="r", access_code="m", query="sea", documents=["waves", "hills"], top_n=2)
        return await executor.rerank(asked)

    done: set[str] = set()
    await executor.serve_startup()
    try:
        for name, ask in (("chat", chat), ("embeddings", embed), ("rerank", rerank)):
            try:
                assert await ask()
            except Unsupported:
                continue
            done.add(name)
    finally:
        await executor.shutdown()
    return done


@pytest.mark.parametrize("make", [make_reader, make_seer, make_embedder, make_cross_encoder])
async def test_a_model_is_told_as_what_it_does(make: Callable[[Path], Path], tmp_path: Path) -> None:
    executor = prepared(make(tmp_path / "model"))
    server = ExecutorServer(executor)
    assert server.capabilities == []
    server.ready()
    told = set(server.capabilities)
    assert told & {"chat", "embeddings", "rerank"} == await does(executor)
    assert ("tools" in told) == ("resume" in told) == ("completions" in told) == ("chat" in told)
    assert ("images" in told) == (make is make_seer)
    assert executor.healthy() == ""


async def test_vectors_cannot_be_shortened(tmp_path: Path) -> None:
    executor = prepared(make_embedder(tmp_path / "model"))
    with pytest.raises(KuwaError, match="shortened"):
        await executor.embed(EmbedRequest(id="r", access_code="m", inputs=["a"], dimensions=3))
