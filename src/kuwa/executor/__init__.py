"""The executor framework: everything somebody needs who puts a model behind Kuwa, in one import.

    from kuwa.executor import LLMExecutor, Request

Names are loaded when first used, so that importing one part does not pay for the others.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kuwa.executor.base import LLMExecutor
    from kuwa.executor.chunks import (
        Chunk,
        Finish,
        Progress,
        RawAnswer,
        RawEvent,
        RawStream,
        Reasoning,
        Text,
        ToolCallDelta,
        Usage,
    )
    from kuwa.executor.failures import SetupFailed
    from kuwa.executor.modelfile import Modelfile
    from kuwa.executor.request import Embeddings, EmbedRequest, Ranking, Request, RerankRequest

__all__ = [
    "Chunk",
    "EmbedRequest",
    "Embeddings",
    "Finish",
    "LLMExecutor",
    "Modelfile",
    "Progress",
    "Ranking",
    "RawAnswer",
    "RawEvent",
    "RawStream",
    "Reasoning",
    "Request",
    "RerankRequest",
    "SetupFailed",
    "Text",
    "ToolCallDelta",
    "Usage",
]

_HOMES = {
    "base": ("LLMExecutor",),
    "chunks": (
        *("Chunk", "Finish", "Progress", "RawAnswer", "RawEvent", "RawStream"),
        *("Reasoning", "Text", "ToolCallDelta", "Usage"),
    ),
    "failures": ("SetupFailed",),
    "modelfile": ("Modelfile",),
    "request": ("EmbedRequest", "Embeddings", "Ranking", "Request", "RerankRequest"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"kuwa.executor.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
