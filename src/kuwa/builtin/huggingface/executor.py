"""`huggingface` as an executor: its command line, and which kind of serving the model of it gets."""

from __future__ import annotations

import argparse
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from kuwa.builtin.huggingface.loading import LoadFailed, Source, load
from kuwa.builtin.huggingface.options import PARAMETERS, add_arguments
from kuwa.builtin.huggingface.prompting import CHATML
from kuwa.builtin.huggingface.sampling import decided, from_pairs
from kuwa.builtin.huggingface.serving import Asked, Serving
from kuwa.executor import Embeddings, EmbedRequest, LLMExecutor, Ranking, Request, RerankRequest, SetupFailed
from kuwa.executor.chunks import Chunk
from kuwa.executor.config_file import read_config
from kuwa.executor.prompt import UnknownTemplate, resolve_template


class HuggingfaceExecutor(LLMExecutor):
    LLM_name = "huggingface"
    description = "[On-premises model] Download and run Huggingface model locally."
    concurrency = 16
    handles_stop = True
    serving: Serving

    def extend_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_arguments(parser)

    # ---- start and end -------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Load the model and find out what it can do. Raises SetupFailed, UsageError."""
        serving = self._loaded(self._asked(), self._source())
        self.serves, self.capabilities = serving.serves, serving.capabilities
        self.context_length = serving.context_length
        self.serving = serving

    def _asked(self) -> Asked:
        """Everything about the command line that can be wrong, before minutes are spent on a model."""
        for option in ("limit", "max_batch_tokens"):
            value = getattr(self.args, option)
            if value is not None and value < 1:
                raise SetupFailed(f"--{option} is {value}; it must be at least 1")
        if self.args.timeout <= 0 or (self.args.kv_cache_gb is not None and self.args.kv_cache_gb <= 0):
            raise SetupFailed("--timeout and --kv_cache_gb must be above 0")
        given = {**from_pairs(self.args.generation_kwargs or ()), **_given(self.args)}
        asked = Asked(
            self.args,
            self.environment,
            self.concurrency,
            template=self._override(),
            given=decided(given),
            file=decided(read_config(self.args.generation_config)),
        )
        asked.options({})
        return asked

    def _source(self) -> Source:
        args = self.args
        if not args.model_path:
            raise SetupFailed("--model_path is missing: give a model's folder, or its name on the Hugging Face hub")
        if args.load_8bits and args.load_4bits:
            raise SetupFailed("give --load_8bits or --load_4bits, not both")
        return Source(
            path=args.model_path,
            tokenizer=args.tokenizer,
            revision=args.revision,
            lora=args.lora,
            dtype=args.dtype,
            bits=8 if args.load_8bits else 4 if args.load_4bits else 0,
            trust_remote_code=args.trust_remote_code,
            offline=args.offline,
        )

    def _override(self) -> str:
        given = self.args.override_chat_template
        if given is None:
            return ""
        try:
            path = Path(given)
            text = path.read_text(encoding="utf-8") if len(given) < 4096 and path.is_file() else None
            template = resolve_template(given, text, ["chatml"])
        except UnknownTemplate as error:
            raise SetupFailed(str(error)) from error
        except (OSError, ValueError) as error:
            raise SetupFailed(f"the chat template {given!r} cannot be read: {error}") from error
        return CHATML if template == "chatml" else template

    def _loaded(self, asked: Asked, source: Source) -> Serving:
        if asked.args.engine == "vllm":
            from kuwa.builtin.huggingface.vllm import VllmServing

            return VllmServing(asked)
        self._prepare_torch()
        try:
            loaded = load(source)
        except LoadFailed as error:
            raise SetupFailed(str(error)) from error
        # Both import torch, which must have been found and told of its environment.
        if loaded.kind in ("text", "images"):
            from kuwa.builtin.huggingface.chat import ChatServing

            return ChatServing(asked, loaded)
        from kuwa.builtin.huggingface.vectors import VectorServing

        return VectorServing(asked, loaded)

    def _prepare_torch(self) -> None:
        """Set what torch reads from the environment when it is imported, which `load` does first of all."""
        environ = os.environ  # noqa: TID251 - set, not read
        if self.args.visible_gpu is not None:
            environ["CUDA_VISIBLE_DEVICES"] = self.args.visible_gpu
        # Threads that wait for one another by turning round take the cores from those they wait for, where anything
        # else runs on the machine: a step of a small model then costs ten times its own work.
        environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    async def serve_startup(self) -> None:
        await self.serving.start(self.give_up)
        self.context_length = self.serving.context_length

    async def shutdown(self) -> None:
        await self.serving.close()

    def healthy(self) -> str:
        return self.serving.healthy()

    def fingerprint(self) -> str:
        return self.serving.fingerprint

    def own_seed(self) -> int | None:
        """The seed that the executor was started with."""
        return self.serving.seed

    # ---- requests ------------------------------------------------------------------------------------------

    def llm_compute(self, request: Request) -> AsyncIterator[Chunk]:
        return self.serving.compute(request)

    async def embed(self, request: EmbedRequest) -> Embeddings:
        return await self.serving.embed(request)

    async def rerank(self, request: RerankRequest) -> Ranking:
        return await self.serving.rerank(request)


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The generation options of the command line."""
    return {option.name: getattr(args, option.name) for option in PARAMETERS if hasattr(args, option.name)}
