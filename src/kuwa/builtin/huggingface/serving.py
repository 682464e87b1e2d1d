"""What each kind of model is to the executor: a `Serving`, and what the command line asks of any of them.

`chat.ChatServing`, `vectors.VectorServing` and `vllm.VllmServing` are the kinds. `setup` imports the one it needs.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from kuwa.builtin.huggingface.options import PARAMETERS
from kuwa.executor import Embeddings, EmbedRequest, Ranking, Request, RerankRequest
from kuwa.executor.chunks import Chunk
from kuwa.executor.options import collect


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line. `template` overrides the model's own chat template where it is not empty; `given` and `file`
    are the generation options of the command line and of the file that it names."""

    args: argparse.Namespace
    environment: Mapping[str, str]
    concurrency: int
    template: str
    given: Mapping[str, Any]
    file: Mapping[str, Any]

    @property
    def system_prompt(self) -> str:
        return "" if self.args.no_system_prompt else self.args.system_prompt or ""

    def options(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """The generation options, with the model's `own` below those of the operator. Raises UsageError."""
        return collect(argparse.Namespace(**self.given), PARAMETERS, {**own, **self.file})


class Serving(Protocol):
    """One model, loaded. Making it may take minutes and raises SetupFailed.

    `serves`, `capabilities` and `context_length` are those of `LLMExecutor`, as the loaded model has them;
    `fingerprint` is empty and `seed` None where answers cannot be repeated.
    """

    serves: tuple[str, ...]
    capabilities: tuple[str, ...]
    context_length: int
    fingerprint: str
    seed: int | None

    async def start(self, give_up: Callable[[str], None]) -> None:
        """Called on the server's event loop before the first request; `give_up` ends the executor with a reason."""
        ...

    async def close(self) -> None: ...
    def healthy(self) -> str: ...
    def compute(self, request: Request) -> AsyncGenerator[Chunk]: ...
    async def embed(self, request: EmbedRequest) -> Embeddings: ...
    async def rerank(self, request: RerankRequest) -> Ranking: ...
