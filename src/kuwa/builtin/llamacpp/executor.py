"""`llamacpp` as an executor: its command line, its setup, and how a request becomes a call of the engine.

The framework constructs it and awaits `setup` (checks the file, loads the model), then calls `llm_compute` per
request, each on a slot of llama.cpp's continuous batching.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

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
from kuwa.executor.request import Embeddings, EmbedRequest, Ranking, RerankRequest
from kuwa.wire.errors import BadUpstream, KuwaError, Unsupported
from kuwa.wire.openai import scores_in, vectors_in

if TYPE_CHECKING:
    from kuwa.builtin.llamacpp.calls import Enforced
    from kuwa.builtin.llamacpp.child import ChildConfig
    from kuwa.builtin.llamacpp.header import GgufHeader, Kind
    from kuwa.builtin.llamacpp.launch import Files

log = logging.getLogger(__name__)

PROMPT_SHARE = 0.75
"""The part of the context that a trimmed conversation may fill; the rest is for the answer."""
EMBED_TIMEOUT_S = 600.0
PROBE = "kuwa-probe-7421"


class LlamaCppExecutor(LLMExecutor):
    LLM_name = "gguf"
    description = "[On-premises model] Run the GGUF model locally."
    concurrency = 4
    capabilities = ("tools", "response_format", "logprobs", "n", "suffix", "resume")
    handles_stop = True

    def extend_arguments(self, parser: argparse.ArgumentParser) -> None:
        from kuwa.builtin.llamacpp.launch import add_engine_options

        add_engine_options(parser)
        add_options(parser, PARAMETERS)

    async def setup(self) -> None:
        """Fetch and check the files, load the model, try its chat template. Raises SetupFailed, UsageError."""
        import asyncio

        # On the loop, not in a thread: the child dies with the thread that started it.
        files = await self._files()
        await asyncio.to_thread(self._prepare, files)
        self._engine.gave_up = self.give_up
        await self._load()

    async def _files(self) -> Files:
        """All files of this start; those on the hub are downloaded first."""
        from kuwa.builtin.llamacpp.launch import Files, adapter_of

        args = self.args
        adapters = [adapter_of(given) for given in args.lora or ()]
        return Files(
            model=await self._file(args.model_path),
            projector=await self._file(args.mmproj) if args.mmproj else None,
            draft=await self._file(args.draft_model) if args.draft_model else None,
            adapters=tuple([(await self._file(path), scale) for path, scale in adapters]),
        )

    async def _file(self, given: str) -> Path:
        """Where a file lies; one on the hub is downloaded, by a program of its own."""
        if not given.startswith("hf://"):
            return Path(given)
        if find_spec("huggingface_hub") is None:
            raise SetupFailed("a model on the hub needs huggingface_hub: pip install 'kuwa[llamacpp]'")
        from kuwa.builtin.llamacpp.pull import pulled

        outcome = await pulled(given)
        if outcome.error:
            raise SetupFailed(outcome.error)
        return Path(outcome.path)

    def _prepare(self, files: Files) -> None:
        """Everything that can be checked without loading the model."""
        from kuwa.builtin.llamacpp.engine import Engine
        from kuwa.builtin.llamacpp.fingerprint import fingerprint
        from kuwa.builtin.llamacpp.keeping import KeptSlots
        from kuwa.builtin.llamacpp.launch import child_config, positive
        from kuwa.executor.config_file import read_config
        from kuwa.executor.renderer import Renderer

        self._defaults = collect(self.args, PARAMETERS, read_config(self.args.generation_config))
        self._limit = positive("--limit", self.args.limit)
        files = self._check(files)
        config = child_config(
            self.args,
            files,
            self._header,
            slots=self.concurrency,
            chat_template=self._template(),
            environment=self.environment,
        )
        if not config.server and find_spec("xllamacpp") is None:
            raise SetupFailed("llama.cpp is not installed here; install it with: pip install 'kuwa[llamacpp]'")
        self._path = files.model
        self._scales = [scale for _, scale in files.adapters]
        self._embeds = config.embedding
        self._engine = Engine(config)
        self._kept = KeptSlots(self._engine, config) if config.slot_folder else None
        self._renderer = Renderer()
        beside = [path for path in (files.projector, files.draft, *(path for path, _ in files.adapters)) if path]
        same = msgspec.structs.replace(
            config, model_path="", cache_mib=0, slot_folder="", environment={}, verbose=False
        )
        # The number of slots and threads too: they decide in which order numbers are added up.
        started = (same, [path.stat().st_size for path in beside])
        asked = (self.args.system_prompt, self.args.no_system_prompt, self._limit, self._defaults)
        # Of a llama-server nobody knows the version: its answers are not computed again elsewhere.
        self._fingerprint = "" if config.server else fingerprint(self._path, (*started, *asked))
        self._announce(config)

    def _check(self, files: Files) -> Files:
        """Look at every file before llama.cpp does. Raises SetupFailed."""
        from dataclasses import replace

        from kuwa.builtin.llamacpp.header import BadModelFile, read_header

        files = replace(files, model=files.model.expanduser())
        others: list[tuple[Kind, Path | None]] = [("mmproj", files.projector), ("model", files.draft)]
        others.extend(("adapter", path) for path, _ in files.adapters)
        try:
            self._header = read_header(files.model)
            for kind, path in others:
                if path is not None:
                    read_header(path, (kind,))
        except BadModelFile as error:
            raise SetupFailed(str(error)) from error
        return files

    async def _load(self) -> None:
        from kuwa.executor.supervision import LoadFailed

        try:
            await self._engine.start()
        except LoadFailed as error:
            raise SetupFailed(f"llama.cpp could not load {self._path}: {error}") from error
        try:
            await self._learn()
            await self._try_template()
            if self._kept is not None:
                await self._kept.restore()
            self._hint_at_cpu()
        except BaseException:
            await self._engine.stop()
            raise
        log.info("%s is loaded; %d tokens of context for each request", self._path.name, self.context_length)

    async def _learn(self) -> None:
        """What the loaded model says of itself."""
        props = await self._engine.get("/props")
        self.context_length = props["default_generation_settings"]["n_ctx"]
        self._most_bytes = self.context_length * self._header.longest_token
        self._ends = (str(props.get("bos_token", "")), str(props.get("eos_token", "")))
        senses = props.get("modalities", {})
        seen = [name for name, sense in (("images", "vision"), ("audio", "audio")) if senses.get(sense)]
        self.serves = served(self._header, pooling=self.args.pooling)
        self.capabilities = (*type(self).capabilities, *seen) if "chat" in self.serves else ()

    async def shutdown(self) -> None:
        if self._kept is not None and not self._engine.trouble:
            await self._kept.save()
        await self._renderer.stop()
        await self._engine.stop()

    def healthy(self) -> str:
        return self._engine.trouble

    def fingerprint(self) -> str:
        return self._fingerprint

    def own_seed(self) -> int | None:
        seed = self._defaults.get("seed")
        return seed if isinstance(seed, int) and seed >= 0 else None

    async def llm_compute(self, request: Request) -> AsyncIterator[Chunk]:
        from kuwa.builtin.llamacpp.answer import Answer
        from kuwa.builtin.llamacpp.calls import enforced

        parallel = request.body.get("parallel_tool_calls")
        calls = enforced(request.tools, request.tool_choice, parallel=bool(parallel))
        path, payload = await self._question(request, calls)
        answer = Answer(
            calls,
            parallel_calls=parallel is not False,
            formatted="response_format" in payload,
            most_tokens=payload.get("max_tokens", -1),
        )
        async with aclosing(self._engine.events(path, payload)) as events:
            async for data in events:
                for chunk in answer.chunks(data):
                    yield chunk

    async def _question(self, request: Request, calls: Enforced | None) -> tuple[str, dict[str, Any]]:
        """The route of llama.cpp's server that answers `request`, and what to send there."""
        from kuwa.builtin.llamacpp import payload

        payload.check(request)
        scales = payload.adapter_scales(request.body.get("lora"), self._scales)
        context = self.context_length
        if request.kind == "chat":
            path, question = await self._chat_question(request, calls)
        elif suffix := request.body.get("suffix"):
            self._check_prompt((text_of(request.messages[0]), suffix), "prompt")
            path, question = "/infill", payload.infill_payload(request, self._defaults, context)
        else:
            prompt = text_of(request.messages[0])
            self._check_prompt((prompt,), "prompt")
            path, question = "/v1/completions", payload.completion_payload(request, self._defaults, prompt, context)
        return path, {**question, **scales}

    async def _chat_question(self, request: Request, calls: Enforced | None) -> tuple[str, dict[str, Any]]:
        """How a chat is asked; by a template of its own, it is a plain completion of the text that this makes."""
        from kuwa.builtin.llamacpp import payload
        from kuwa.builtin.llamacpp.media import check_media

        context = self.context_length
        messages = await self._fitting(request)
        check_media(messages)
        if request.modelfile.template:
            prompt = await self._rendered(request, messages)
            return "/v1/completions", payload.completion_payload(request, self._defaults, prompt, context)
        return "/v1/chat/completions", payload.chat_payload(request, self._defaults, messages, calls, context)

    def _check_prompt(self, texts: Iterable[str], param: str) -> None:
        from kuwa.builtin.llamacpp.bounds import check_prompt

        size = sum(len(text.encode("utf-8", "replace")) for text in texts)
        check_prompt(size, self._most_bytes, self.context_length, param)

    async def _rendered(self, request: Request, messages: list[Message]) -> str:
        """The prompt by the template that the request brings along. What it answers is plain text."""
        from kuwa.executor.renderer import Job

        wants_format = (request.response_format or {}).get("type", "text") != "text"
        if wants_format or request.tools or any(isinstance(message.get("content"), list) for message in messages):
            raise Unsupported(
                "A Modelfile's template goes with text alone: not with tools, images or a response format.",
                param="modelfile",
            )
        bos, eos = self._ends
        text = await self._renderer.render(Job(request.modelfile.template, messages, bos, eos))
        return text.removeprefix(bos) if bos else text  # llama.cpp puts it there as the model's file says

    async def embed(self, request: EmbedRequest) -> Embeddings:
        if not self._embeds:
            raise Unsupported("This model serves no embeddings; start it with --pooling mean (or cls, last).")
        if request.dimensions is not None:
            raise Unsupported("This model's embeddings have one size; leave out dimensions.", param="dimensions")
        for text in request.inputs:
            self._check_prompt((text,) if isinstance(text, str) else (), "input")
        asked = {"input": request.inputs}
        found = await self._engine.ask("/v1/embeddings", asked, vectors_in, timeout_s=EMBED_TIMEOUT_S)
        return Embeddings(*found)

    async def rerank(self, request: RerankRequest) -> Ranking:
        if not self._embeds:
            raise Unsupported("This model does not rerank; start it with --pooling rank.")
        asked = {"query": request.query, "documents": request.documents}
        scores, tokens = await self._engine.ask("/v1/rerank", asked, scores_in, timeout_s=EMBED_TIMEOUT_S)
        if len(scores) != len(request.documents):
            raise BadUpstream(f"The llama.cpp engine scored {len(scores)} of {len(request.documents)} documents.")
        return Ranking(scores, tokens)

    async def _fitting(self, request: Request) -> list[Message]:
        """The request's messages with the executor's system prompt, trimmed or refused where they are too long."""
        from kuwa.builtin.llamacpp.length import check_length, trim

        messages = request.messages
        if not self.args.no_system_prompt:
            messages = with_system_prompt(messages, self.args.system_prompt or "")
        if request.trim_history:
            limit = self._limit or int(self.context_length * PROMPT_SHARE)
            messages, request.trimmed_messages = await trim(
                self._engine, messages, request.tools, limit, self._most_bytes
            )
            return messages
        self._check_prompt(map(text_of, messages), "messages")
        if self._limit:
            await check_length(self._engine, messages, request.tools, self._limit)
        return messages

    def _template(self) -> str:
        """The Jinja text of `--override_chat_template`; empty: the model's own. Raises SetupFailed."""
        from kuwa.builtin.llamacpp.templates import TEMPLATES

        given = self.args.override_chat_template
        if given is None:
            return ""
        try:
            path = Path(given)
            file_text = path.read_text(encoding="utf-8") if len(given) < 4096 and path.is_file() else None
        except (OSError, ValueError) as error:
            raise SetupFailed(f"the chat template {given!r} cannot be read: {error}") from error
        try:
            template = resolve_template(given, file_text, TEMPLATES)
        except UnknownTemplate as error:
            raise SetupFailed(str(error)) from error
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

    def _announce(self, config: ChildConfig) -> None:
        from kuwa.builtin.llamacpp.launch import installed_server, shown_layers

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
            "%d requests at once, %d tokens of context each; %d CPU threads; batches of %d, %d at once; "
            "%s layers on the GPU",
            *(config.slots, config.context, config.threads, config.batch, config.ubatch),
            shown_layers(config.gpu_layers),
        )
        if config.server:
            log.info("llama.cpp is %s", config.server)
        elif found := installed_server(self.environment):
            log.info("there is a %s; --llama_server auto would use it instead of the one that comes along", found)
        if config.context < self.args.context_window:
            log.info("the context is cut to the %d tokens that the model was trained for", config.context)
        if not header.chat_template and not config.chat_template:
            log.warning("the model brings no chat template, ChatML is used; see --override_chat_template")
        if self.args.visible_gpu is not None and config.gpu_layers == 0:
            log.warning("--visible_gpu was given, but no layer is put on a GPU; give --ngl auto")

    def _hint_at_cpu(self) -> None:
        """Say so where this CPU could do more than the llama.cpp in use was built for."""
        from kuwa.builtin.llamacpp.machine import cpu_flags, unused

        idle = unused(cpu_flags(), self._engine.system) if self._engine.system else []
        if idle:
            log.info(
                "this CPU has %s, which the llama.cpp that comes along does not use; a llama-server built on this "
                "machine is faster: --llama_server PATH",
                " and ".join(idle),
            )


def served(header: GgufHeader, *, pooling: str | None) -> tuple[str, ...]:
    """What a model does: chat unless it was made for vectors, and vectors if its file or `--pooling` says how."""
    chats = () if header.pooled else ("chat", "completions")
    if pooling is None and not header.pooled:
        return chats
    ranks = pooling == "rank" or (pooling is None and header.ranks)
    return (*chats, "rerank" if ranks else "embeddings")
