"""`llamacpp` as an executor: its command line, its setup, and how a request becomes a call of the engine.

The framework constructs it and awaits `setup` (checks the file, loads the model), then calls `llm_compute` per
request, each on a slot of llama.cpp's continuous batching.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kuwa.builtin.llamacpp.sampling import PARAMETERS
from kuwa.executor import LLMExecutor, Request, SetupFailed
from kuwa.executor.chunks import Chunk
from kuwa.executor.options import add_options, collect
from kuwa.executor.prompt import (
    Message,
    UnknownTemplate,
    resolve_template,
    text_of,
    with_system_prompt,
)
from kuwa.wire.errors import KuwaError, Unsupported

if TYPE_CHECKING:
    from kuwa.builtin.llamacpp.calls import Enforced

log = logging.getLogger(__name__)

DEFAULT_CONTEXT = 4096
PROMPT_SHARE = 0.75
"""The part of the context that a trimmed conversation may fill; the rest is for the answer."""
MAX_CACHE_MIB = 8192
PROBE = "kuwa-probe-7421"


class LlamaCppExecutor(LLMExecutor):
    LLM_name = "gguf"
    description = "[On-premises model] Run the GGUF model locally."
    concurrency = 4
    capabilities = ("tools", "response_format", "logprobs", "n", "suffix")
    handles_stop = True

    def extend_arguments(self, parser: argparse.ArgumentParser) -> None:
        model = parser.add_argument_group("Model Options")
        model.add_argument("--model_path", required=True, help="Path of the GGUF file, or hf://REPO?FILE")
        model.add_argument("--visible_gpu", default=None, help="The GPUs to use, as in CUDA_VISIBLE_DEVICES")
        model.add_argument("--ngl", type=int, default=0, help="Layers to put on the GPU; -1: all of them")
        model.add_argument("--threads", type=int, default=None, help="CPU threads; None: physical cores less one")
        model.add_argument("--system_prompt", default=None, help="The system prompt of conversations without one")
        model.add_argument("--no_system_prompt", action="store_true", help="Put no system prompt before the chat")
        model.add_argument(
            "--context_window",
            type=int,
            default=DEFAULT_CONTEXT,
            help="Tokens of one conversation with its answer, at most what the model was trained for",
        )
        model.add_argument(
            "--limit",
            type=int,
            default=None,
            help="Most tokens of a prompt; None: three quarters of the context for conversations that are trimmed "
            "to it, all of it for others",
        )
        model.add_argument(
            "--override_chat_template",
            default=None,
            help="A Jinja chat template, the path of a file with one, or a name such as chatml",
        )
        add_options(parser, PARAMETERS)

    async def setup(self) -> None:
        """Check the file, load the model, try its chat template. Raises SetupFailed, UsageError."""
        import asyncio

        # On the loop, not in a thread: the child dies with the thread that started it.
        self._path = await self._model_file()
        await asyncio.to_thread(self._prepare)
        self._engine.gave_up = self.give_up
        await self._load()

    async def _model_file(self) -> Path:
        """Where the model lies; one on the hub is downloaded first, by a program of its own."""
        given = self.args.model_path
        if not given.startswith("hf://"):
            return Path(given)
        if find_spec("huggingface_hub") is None:
            raise SetupFailed("a model on the hub needs huggingface_hub: pip install 'kuwa[llamacpp]'")
        from kuwa.builtin.llamacpp.pull import pulled

        outcome = await pulled(given)
        if outcome.error:
            raise SetupFailed(outcome.error)
        return Path(outcome.path)

    def _prepare(self) -> None:
        """Everything that can be checked without loading the model."""
        from kuwa.builtin.llamacpp.child import ChildConfig
        from kuwa.builtin.llamacpp.engine import Engine
        from kuwa.builtin.llamacpp.header import BadModelFile, read_header
        from kuwa.executor.config_file import read_config

        self._defaults = collect(self.args, PARAMETERS, read_config(self.args.generation_config))
        if find_spec("xllamacpp") is None:
            raise SetupFailed("llama.cpp is not installed here; install it with: pip install 'kuwa[llamacpp]'")
        try:
            self._path = self._path.expanduser()
            self._header = read_header(self._path)
            template = self._template()
        except (BadModelFile, UnknownTemplate) as error:
            raise SetupFailed(str(error)) from error
        config = ChildConfig(
            model_path=str(self._path),
            context=min(_positive("--context_window", self.args.context_window), self._header.context_length),
            slots=self.concurrency,
            threads=_positive("--threads", self.args.threads) or _threads(),
            gpu_layers=self.args.ngl,
            chat_template=template,
            cache_mib=_cache_mib(),
            environment={} if self.args.visible_gpu is None else {"CUDA_VISIBLE_DEVICES": self.args.visible_gpu},
        )
        self._limit = _positive("--limit", self.args.limit)
        self._engine = Engine(config)
        self._announce(config)

    async def _load(self) -> None:
        from kuwa.builtin.llamacpp.engine import LoadFailed

        try:
            await self._engine.start()
        except LoadFailed as error:
            raise SetupFailed(f"llama.cpp could not load {self._path}: {error}") from error
        try:
            self.context_length = (await self._engine.get("/props"))["default_generation_settings"]["n_ctx"]
            await self._try_template()
        except BaseException:
            await self._engine.stop()
            raise
        log.info("%s is loaded; %d tokens of context for each request", self._path.name, self.context_length)

    async def shutdown(self) -> None:
        await self._engine.stop()

    def healthy(self) -> str:
        return self._engine.trouble

    async def llm_compute(self, request: Request) -> AsyncIterator[Chunk]:
        from kuwa.builtin.llamacpp.answer import Answer
        from kuwa.builtin.llamacpp.calls import enforced

        parallel = request.body.get("parallel_tool_calls")
        calls = enforced(request.tools, request.tool_choice, parallel=bool(parallel))
        answer = Answer(calls, parallel_calls=parallel is not False)
        path, payload = await self._question(request, calls)
        async with aclosing(self._engine.events(path, payload)) as events:
            async for data in events:
                for chunk in answer.chunks(data):
                    yield chunk

    async def _question(self, request: Request, calls: Enforced | None) -> tuple[str, dict[str, Any]]:
        """The route of llama.cpp's server that answers `request`, and what to send there."""
        from kuwa.builtin.llamacpp.payload import chat_payload, completion_payload, infill_payload

        if request.modelfile.template:
            raise Unsupported(
                "llamacpp renders one chat template for all requests; start the executor with "
                "--override_chat_template instead of giving a template in the Modelfile.",
                param="modelfile",
            )
        if request.kind == "chat":
            messages = await self._fitting(request)
            return "/v1/chat/completions", chat_payload(request, self._defaults, messages, calls)
        if request.body.get("suffix"):
            return "/infill", infill_payload(request, self._defaults)
        return "/v1/completions", completion_payload(request, self._defaults, text_of(request.messages[0]))

    async def _fitting(self, request: Request) -> list[Message]:
        """The request's messages with the executor's system prompt, trimmed or refused where they are too long."""
        from kuwa.builtin.llamacpp.length import check_length, trim

        messages = request.messages
        if not self.args.no_system_prompt:
            messages = with_system_prompt(messages, self.args.system_prompt or "")
        if request.trim_history:
            limit = self._limit or int(self.context_length * PROMPT_SHARE)
            messages, request.trimmed_messages = await trim(self._engine, messages, request.tools, limit)
        elif self._limit:
            await check_length(self._engine, messages, request.tools, self._limit)
        return messages

    def _template(self) -> str:
        """The Jinja text of `--override_chat_template`; empty: the model's own. Raises UnknownTemplate."""
        from kuwa.builtin.llamacpp.templates import TEMPLATES

        given = self.args.override_chat_template
        if given is None:
            return ""
        try:
            path = Path(given)
            file_text = path.read_text(encoding="utf-8") if len(given) < 4096 and path.is_file() else None
        except (OSError, ValueError) as error:
            raise UnknownTemplate(f"the chat template {given!r} cannot be read: {error}") from error
        template = resolve_template(given, file_text, TEMPLATES)
        return TEMPLATES.get(template, template)

    async def _try_template(self) -> None:
        """Render one message: a template that loses it would make the model answer something else."""
        whose = "--override_chat_template" if self.args.override_chat_template else "the model's own chat template"
        try:
            rendered = await self._engine.call("/apply-template", {"messages": [{"role": "user", "content": PROBE}]})
        except KuwaError as error:
            raise SetupFailed(
                f"{whose} does not work: {error.message} Give another --override_chat_template."
            ) from error
        if PROBE not in rendered["prompt"]:
            raise SetupFailed(f"{whose} leaves out what the user says. Give another --override_chat_template.")

    def _announce(self, config: Any) -> None:
        header = self._header
        log.info(
            "loading %s: %s, %s, %.1f million parameters in %s, %.0f MB",
            self._path,
            header.name or "no name",
            header.architecture,
            header.parameters / 1e6,
            header.quantisation,
            header.size / 1e6,
        )
        log.info(
            "%d requests at once, %d tokens of context each; %d CPU threads; %s layers on the GPU",
            config.slots,
            config.context,
            config.threads,
            "all" if config.gpu_layers < 0 else config.gpu_layers,
        )
        if config.context < self.args.context_window:
            log.info("the context is cut to the %d tokens that the model was trained for", config.context)
        if not header.chat_template and not config.chat_template:
            log.warning("the model brings no chat template, ChatML is used; see --override_chat_template")
        if self.args.visible_gpu is not None and config.gpu_layers == 0:
            log.warning("--visible_gpu was given, but no layer is put on a GPU; give --ngl -1 for all")


def _positive(option: str, value: int | None) -> int:
    """`value`, 0 for None. Raises SetupFailed for a number that cannot be meant."""
    if value is not None and value < 1:
        raise SetupFailed(f"{option} is {value}; it must be at least 1")
    return value or 0


def _threads() -> int:
    """Physical cores less one: with every core busy, llama.cpp's threads wait for each other while spinning."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or 1, allowed) - 1)


def _cache_mib() -> int:
    """Memory for prompts that were read before: an eighth of the machine's, instead of always 8 GiB."""
    import psutil

    return min(MAX_CACHE_MIB, psutil.virtual_memory().total // 8 // 2**20)
