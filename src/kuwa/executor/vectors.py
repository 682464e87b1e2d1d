"""The bodies of answers that are no text: embeddings and rankings. Pure; `server` sends them."""

from __future__ import annotations

import base64
import struct
from typing import Any

import msgspec

from kuwa.executor.request import Embeddings, Ranking, RerankRequest


def embeddings_body(model: str, found: Embeddings, as_base64: bool) -> bytes:
    data = [
        {"object": "embedding", "index": index, "embedding": _base64(vector) if as_base64 else vector}
        for index, vector in enumerate(found.vectors)
    ]
    usage = {"prompt_tokens": found.prompt_tokens, "total_tokens": found.prompt_tokens}
    return msgspec.json.encode({"object": "list", "data": data, "model": model, "usage": usage})


def _base64(vector: list[float]) -> str:
    """Little-endian 32-bit floats, as the OpenAI SDKs read them."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def ranking_body(request: RerankRequest, found: Ranking, with_documents: bool) -> bytes:
    order = sorted(range(len(found.scores)), key=lambda index: -found.scores[index])[: request.top_n]
    results: list[dict[str, Any]] = [{"index": i, "relevance_score": found.scores[i]} for i in order]
    if with_documents:
        for result in results:
            result["document"] = {"text": request.documents[result["index"]]}
    usage = {"prompt_tokens": found.prompt_tokens, "total_tokens": found.prompt_tokens}
    return msgspec.json.encode(
        {"id": f"rerank-{request.id}", "model": request.access_code, "results": results, "usage": usage}
    )
