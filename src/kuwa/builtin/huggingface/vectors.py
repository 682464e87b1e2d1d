"""Models that make a vector of a text, or a score of a query and a document.

How token vectors become one is read from the model's folder as sentence-transformers writes it (`modules.json` and
what it names); of a folder without that, their mean is taken and given length 1.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kuwa.builtin.huggingface.loading import Loaded
from kuwa.builtin.huggingface.serving import Asked
from kuwa.executor import Embeddings, EmbedRequest, Ranking, Request, RerankRequest, SetupFailed
from kuwa.executor.chunks import Chunk
from kuwa.wire.errors import ContextLengthExceeded, InvalidRequest, Unsupported

BATCH_TOKENS = 8192
"""Texts of similar length are computed together, with their padding at most so many tokens."""

_MODES = {
    "cls_token": "first",
    "cls": "first",
    "lasttoken": "last",
    "max_tokens": "max",
    "max": "max",
    "mean_tokens": "mean",
    "mean": "mean",
    "mean_sqrt_len_tokens": "root",
    "mean_sqrt_len": "root",
    "weightedmean_tokens": "weighted",
    "weightedmean": "weighted",
}


class UnknownRecipe(Exception):
    """The folder wants vectors made in a way that is not known here; the message says which."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a text's vector is made: `pooling` of the token vectors, then perhaps length 1. `length` is the most tokens
    of a text, 0 where the folder does not say."""

    pooling: str = "mean"
    normalise: bool = True
    length: int = 0


def recipe_of(folder: Path) -> Recipe:
    """What the folder says. Raises UnknownRecipe."""
    modules: list[dict[str, Any]] = _read(folder / "modules.json") or []
    kinds = {str(module["type"]).rpartition(".")[2]: str(module.get("path") or "") for module in modules}
    if unknown := sorted(kinds.keys() - {"Transformer", "Pooling", "Normalize"}):
        raise UnknownRecipe(f"its modules.json names {', '.join(unknown)}, which is not known here")
    told: dict[str, Any] = _read(folder / "sentence_bert_config.json") or {}
    return Recipe(
        pooling=_pooling(_read(folder / kinds.get("Pooling", "1_Pooling") / "config.json") or {}),
        normalise="Normalize" in kinds or not kinds,
        length=int(told.get("max_seq_length") or 0),
    )


def _pooling(told: dict[str, Any]) -> str:
    named = [told["pooling_mode"]] if told.get("pooling_mode") else []
    wanted = named or [name.removeprefix("pooling_mode_") for name, is_so in told.items() if is_so is True]
    wanted = [str(name) for name in wanted if name != "include_prompt"]
    if not wanted:
        return "mean"
    if len(wanted) > 1 or wanted[0] not in _MODES:
        raise UnknownRecipe(f"its pooling {' and '.join(wanted)} is not known here")
    return _MODES[wanted[0]]


def _read(path: Path) -> Any:
    """The JSON of a file; None where there is none. Raises UnknownRecipe."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnknownRecipe(f"its {path.name} is damaged ({error})") from error


class VectorServing:
    """A model that makes embeddings or scores, one request at a time."""

    capabilities: tuple[str, ...] = ()
    fingerprint = ""
    seed: int | None = None

    def __init__(self, asked: Asked, loaded: Loaded) -> None:
        """Raises SetupFailed."""
        try:
            recipe = recipe_of(loaded.folder)
        except UnknownRecipe as error:
            raise SetupFailed(f"{asked.args.model_path} cannot be served: {error}") from error
        longest = getattr(loaded.tokenizer, "model_max_length", loaded.context_length)
        self.serves: tuple[str, ...] = ("embeddings",) if loaded.kind == "embedding" else ("rerank",)
        self.context_length = min(loaded.context_length, int(longest), recipe.length or loaded.context_length)
        self._vectors = Vectors(loaded.model, loaded.tokenizer, length=self.context_length, recipe=recipe)
        self._turn = asyncio.Lock()

    async def start(self, give_up: Callable[[str], None]) -> None:
        """The model is called in threads; nothing of it can be lost."""

    async def close(self) -> None:
        """Nothing runs between requests."""

    def healthy(self) -> str:
        return ""

    async def compute(self, request: Request) -> AsyncGenerator[Chunk]:
        raise Unsupported(f"The model {request.access_code!r} makes no text.", param="model")
        yield

    async def embed(self, request: EmbedRequest) -> Embeddings:
        if "embeddings" not in self.serves:
            raise Unsupported(f"The model {request.access_code!r} makes no embeddings.", param="model")
        if request.dimensions is not None:
            raise Unsupported("This model's vectors cannot be shortened.", param="dimensions")
        async with self._turn:
            return Embeddings(*await asyncio.to_thread(self._vectors.embed, request.inputs))

    async def rerank(self, request: RerankRequest) -> Ranking:
        if "rerank" not in self.serves:
            raise Unsupported(f"The model {request.access_code!r} cannot rerank documents.", param="model")
        async with self._turn:
            return Ranking(*await asyncio.to_thread(self._vectors.score, request.query, request.documents))


class Vectors:
    """One model and its tokenizer; `length` is the most tokens of a text. Called in a thread."""

    def __init__(self, model: Any, tokenizer: Any, *, length: int, recipe: Recipe | None = None) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._length = length
        self._recipe = recipe or Recipe()

    def embed(self, inputs: Sequence[str | list[int]]) -> tuple[list[list[float]], int]:
        """A vector for each text (or its token ids), and how many tokens were read."""
        ids = [list(i) if isinstance(i, list) else self._ids(i) for i in inputs]
        self._check(ids)
        vectors: list[list[float]] = [[] for _ in ids]
        for rows in batches([len(i) for i in ids]):
            encoded, mask = self._padded([ids[row] for row in rows])
            with torch.inference_mode():
                states = self._model(input_ids=encoded, attention_mask=mask).last_hidden_state
            pooled = pooled_states(states.float(), mask, self._recipe.pooling)
            if self._recipe.normalise:
                pooled = torch.nn.functional.normalize(pooled, dim=-1)
            for row, vector in zip(rows, pooled, strict=True):
                vectors[row] = [float(number) for number in vector]
        return vectors, sum(map(len, ids))

    def score(self, query: str, documents: Sequence[str]) -> tuple[list[float], int]:
        """How well each document answers the query, from 0 to 1, and how many tokens were read."""
        encoded: Any = self._tokenizer([query] * len(documents), list(documents))
        ids, kinds = encoded["input_ids"], encoded.get("token_type_ids")
        self._check(ids)
        scores = [0.0] * len(documents)
        for rows in batches([len(i) for i in ids]):
            padded, mask = self._padded([ids[row] for row in rows])
            more = {} if kinds is None else {"token_type_ids": self._padded([kinds[row] for row in rows], 0)[0]}
            with torch.inference_mode():
                logits = self._model(input_ids=padded, attention_mask=mask, **more).logits.float()
            # One output: a logit. Two or more: the last class is the one that fits.
            chances = logits[:, 0].sigmoid() if logits.shape[1] == 1 else logits.softmax(-1)[:, -1]
            for row, chance in zip(rows, chances, strict=True):
                scores[row] = float(chance)
        return scores, sum(map(len, ids))

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text)["input_ids"])

    def _check(self, ids: Sequence[Sequence[int]]) -> None:
        size = int(self._model.config.vocab_size)
        for index, row in enumerate(ids):
            if not row or not all(0 <= token < size for token in row):
                raise InvalidRequest(f"input[{index}] is empty or holds ids that are no tokens.", param="input")
            if len(row) > self._length:
                raise ContextLengthExceeded(
                    f"input[{index}] has {len(row)} tokens, and this model reads {self._length}.", param="input"
                )

    def _padded(self, rows: Sequence[Sequence[int]], filler: int | None = None) -> tuple[Tensor, Tensor]:
        """The rows side by side, padded at their ends, and which of it is theirs."""
        pad: int = (self._tokenizer.pad_token_id or 0) if filler is None else filler
        longest = max(map(len, rows))
        device = self._model.device
        ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
        return ids, mask


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The rows to compute together, by their index; neighbours in length, so that little is padded."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if batch and lengths[row] * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def pooled_states(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """One vector per row of `[rows, tokens, width]`."""
    weights = mask.unsqueeze(-1).to(states.dtype)
    if pooling == "first":
        return states[:, 0]
    if pooling == "last":
        return states[torch.arange(states.shape[0], device=states.device), mask.sum(1) - 1]
    if pooling == "max":
        return states.masked_fill(weights == 0, float("-inf")).amax(1)
    if pooling == "weighted":
        weights = weights * torch.arange(1, states.shape[1] + 1, device=states.device).view(1, -1, 1)
    total, count = (states * weights).sum(1), weights.sum(1)
    return total / (count.sqrt() if pooling == "root" else count)
