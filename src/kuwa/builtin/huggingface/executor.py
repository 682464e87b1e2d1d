"""`huggingface` as an executor: its command line, its setup, and how a request becomes a generation of the engine."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kuwa.builtin.huggingface.options import PARAMETERS, add_arguments
from kuwa.executor import (
    Embeddings,
    EmbedRequest,
    LLMExecutor,
    Ranking,
    Request,
    RerankRequest,
    SetupFailed,
)
from kuwa.executor.chunks import Chunk, Progress, RawEvent, Usage
from kuwa.executor.media import fetch_images
from kuwa.executor.options import collect
from kuwa.executor.prompt import UnknownTemplate, resolve_template
from kuwa.wire.errors import InvalidRequest, ResumeMismatch, Unsupported
from kuwa.wire.json import is_object

if TYPE_CHECKING:
    from kuwa.builtin.huggingface.answer import ChoiceAnswer
    from kuwa.builtin.huggingface.loading import Source
    from kuwa.builtin.huggingface.vllm import Vllm
    from kuwa.engine.request import EndReason, Generation

log = logging.getLogger(__name__)

GIB = 1 << 30
MOST_TEMPLATE_KWARGS = 32
RESERVED_KWARGS = frozenset(
    (
        *("conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt"),
        *("continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors"),
        *("return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "sanitize_control_tokens"),
    )
)
"""What is not for clients to set."""
MOST_AHEAD = 256
"""Chunks of a request with several answers that wait for the client."""


class HuggingfaceExecutor(LLMExecutor):
    LLM_name = "huggingface"
    description = "[On-premises model] Download and run Huggingface model locally."
    concurrency = 16
    capabilities = ("tools", "logprobs", "n", "response_format", "resume")
    handles_stop = True
    _vllm: Vllm | None = None

    def extend_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_arguments(parser)

    # ---- start and end -------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Load the model, try its chat template, choose and size its engine. Raises SetupFailed, UsageError."""
        self._fingerprint = ""
        self._defaults_without_model()
        source = self._source()
        if self.args.engine == "vllm":
            self._prepare_vllm()
            return
        self._prepare_torch()
        from kuwa.builtin.huggingface.loading import LoadFailed, load

        try:
            self._loaded = load(source)
        except LoadFailed as error:
            raise SetupFailed(str(error)) from error
        if self._makes_text:
            self._prepare_chat()
        else:
            self._prepare_vectors()

    def _prepare_torch(self) -> None:
        """Set what torch reads from the environment when it is imported, which `load` does first of all."""
        environ = os.environ  # noqa: TID251 - set, not read
        if self.args.visible_gpu is not None:
            environ["CUDA_VISIBLE_DEVICES"] = self.args.visible_gpu
        # Threads that wait for one another by turning round take the cores from those they wait for, where anything
        # else runs on the machine: a step of a small model then costs ten times its own work.
        environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    def _defaults_without_model(self) -> None:
        """Everything about the command line that can be wrong, before minutes are spent on a model."""
        from kuwa.builtin.huggingface.sampling import decided, from_pairs
        from kuwa.executor.config_file import read_config

        for option in ("limit", "max_batch_tokens"):
            value = getattr(self.args, option)
            if value is not None and value < 1:
                raise SetupFailed(f"--{option} is {value}; it must be at least 1")
        if self.args.timeout <= 0 or (self.args.kv_cache_gb is not None and self.args.kv_cache_gb <= 0):
            raise SetupFailed("--timeout and --kv_cache_gb must be above 0")
        given = {**from_pairs(self.args.generation_kwargs or ()), **_given(self.args)}
        self._file = decided(read_config(self.args.generation_config))
        self._given = decided(given)
        collect(argparse.Namespace(**self._given), PARAMETERS, self._file)
        self._template = self._override()

    def _source(self) -> Source:
        from kuwa.builtin.huggingface.loading import Source

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
        from kuwa.builtin.huggingface.prompting import CHATML

        try:
            path = Path(given)
            text = path.read_text(encoding="utf-8") if len(given) < 4096 and path.is_file() else None
            template = resolve_template(given, text, ["chatml"])
        except UnknownTemplate as error:
            raise SetupFailed(str(error)) from error
        except (OSError, ValueError) as error:
            raise SetupFailed(f"the chat template {given!r} cannot be read: {error}") from error
        return CHATML if template == "chatml" else template

    def _prepare_vllm(self) -> None:
        from kuwa.builtin.huggingface.vllm import Vllm, arguments, find_vllm

        command = [find_vllm(self.environment), *arguments(self.args, self.concurrency, self._template)]
        options = collect(argparse.Namespace(**self._given), PARAMETERS, self._file)
        own = (name for name in type(self).capabilities if name != "resume")
        self.capabilities = (*own, "images", "echo")
        self._vllm = Vllm(command, self.args, options, self._system_prompt())

    def _system_prompt(self) -> str:
        return "" if self.args.no_system_prompt else self.args.system_prompt or ""

    def _prepare_chat(self) -> None:
        from kuwa.builtin.huggingface.constraints import Grammars
        from kuwa.builtin.huggingface.fingerprint import fingerprint
        from kuwa.builtin.huggingface.prompting import BadTemplate, Prompter
        from kuwa.builtin.huggingface.sampling import own_options
        from kuwa.engine.probe import CannotServe, backend_for
        from kuwa.engine.sizing import DoesNotFit

        loaded = self._loaded
        own = own_options(loaded.generation_config)
        self._options = collect(argparse.Namespace(**self._given), PARAMETERS, {**own, **self._file})
        budget = None if self.args.kv_cache_gb is None else int(self.args.kv_cache_gb * GIB)
        # What is packed into one sequence has no room for images.
        sees = loaded.processor is not None and self.args.engine != "slot"
        if sees:
            self.capabilities = (*type(self).capabilities, "images")
        try:
            backend = backend_for(
                loaded.model,
                "interleave" if sees and self.args.engine == "auto" else self.args.engine,
                slots=self.concurrency,
                context=loaded.context_length,
                step_tokens=self.args.max_batch_tokens,
                budget=budget,
            )
        except (CannotServe, DoesNotFit) as error:
            raise SetupFailed(str(error)) from error
        self._backend = backend
        self.context_length = backend.limits.length
        self._vocabulary = int(loaded.config.get_text_config().vocab_size)
        limit = min(self.args.limit, self.context_length - 1)
        try:
            self._prompter = Prompter(
                loaded.tokenizer,
                template=self._template,
                system_prompt=self._system_prompt(),
                limit=limit,
                vocabulary=self._vocabulary,
                processor=loaded.processor,
            )
        except BadTemplate as error:
            raise SetupFailed(f"{error}; give another --override_chat_template") from error
        self._decode = _decoder(loaded.tokenizer)
        self._grammars = Grammars(loaded.tokenizer, self._decode, vocabulary=self._vocabulary, stops=loaded.stops)
        answers_by = (
            self._template,
            self._system_prompt(),
            limit,
            self.context_length,
            sorted(loaded.stops),
            backend.name,
        )
        self._fingerprint = fingerprint(
            loaded.model,
            loaded.tokenizer,
            (sorted(self._options.items()), *answers_by, backend.limits.step_tokens),
        )

    def _prepare_vectors(self) -> None:
        from kuwa.builtin.huggingface.vectors import UnknownRecipe, Vectors, recipe_of

        loaded = self._loaded
        try:
            recipe = recipe_of(loaded.folder)
        except UnknownRecipe as error:
            raise SetupFailed(f"{self.args.model_path} cannot be served: {error}") from error
        longest = getattr(loaded.tokenizer, "model_max_length", loaded.context_length)
        self.context_length = min(loaded.context_length, int(longest), recipe.length or loaded.context_length)
        self._vectors = Vectors(loaded.model, loaded.tokenizer, length=self.context_length, recipe=recipe)
        self._turn = asyncio.Lock()

    async def serve_startup(self) -> None:
        if self._vllm is not None:
            await self._start_vllm(self._vllm)
        elif self._makes_text:
            from kuwa.engine.probe import engine_of
            from kuwa.executor.renderer import Renderer

            self._renderer = Renderer()
            self._engine = engine_of(self._backend, self.give_up)
            self._engine.start()

    async def _start_vllm(self, vllm: Vllm) -> None:
        from kuwa.executor.supervision import LoadFailed

        vllm.gave_up = self.give_up
        try:
            await vllm.start()
        except LoadFailed as error:
            raise SetupFailed(f"vLLM could not load {self.args.model_path}: {error}") from error
        self.context_length = await vllm.context_length()

    async def shutdown(self) -> None:
        if self._vllm is not None:
            await self._vllm.stop()
        elif self._makes_text:
            await self._renderer.stop()
            await self._engine.close()

    def healthy(self) -> str:
        if self._vllm is not None:
            return self._vllm.trouble
        return self._engine.trouble if self._makes_text else ""

    @property
    def _makes_text(self) -> bool:
        return self._loaded.kind in ("text", "images")

    def fingerprint(self) -> str:
        return self._fingerprint

    def own_seed(self) -> int | None:
        """The seed that the executor was started with."""
        return self._options.get("seed") if self._fingerprint else None

    # ---- requests ------------------------------------------------------------------------------------------

    async def llm_compute(self, request: Request) -> AsyncIterator[Chunk]:
        if self._vllm is not None:
            async with aclosing(self._vllm.answer(request)) as reads:
                async for datas in reads:
                    for data in datas:
                        yield RawEvent(data)
            return
        if not self._makes_text:
            raise Unsupported(f"The model {request.access_code!r} makes no text.", param="model")
        rendered = await self._rendered(request) if request.modelfile.template else None
        images = await fetch_images(request.messages, self.args.image_urls)
        # In a thread: rendering and tokenizing a long conversation takes longer than others should wait.
        question = await asyncio.to_thread(self._question, request, images, rendered)
        tally = Tally(len(question.prompt))
        streams = [self._choice(g, a, tally) for g, a in zip(question.generations, question.answers, strict=True)]
        async with aclosing(streams[0] if len(streams) == 1 else merged(streams)) as chunks:
            async for chunk in chunks:
                yield chunk
        yield Usage(tally.prompt, tally.generated, tally.cached)

    async def _choice(self, generation: Generation, answer: ChoiceAnswer, tally: Tally) -> AsyncGenerator[Chunk]:
        from kuwa.engine.loop import Working
        from kuwa.engine.request import Drawn, End

        for token in generation.done:
            tally.generated += 1
            for chunk in answer.take(Drawn(token)):
                yield chunk
        if (reason := ended_before(generation, answer)) is not None:
            for chunk in answer.finish(reason):
                yield chunk
            return
        async with aclosing(self._engine.generate(generation, patience_s=self.args.timeout)) as tokens:
            async for token in tokens:
                if isinstance(token, Working):
                    yield Progress()
                    continue
                if isinstance(token, End):
                    if generation.constraint is not None and generation.constraint.fault:
                        raise Unsupported(
                            f"The answer can no longer be kept to its form: {generation.constraint.fault}"
                        )
                    tally.cached = max(tally.cached, token.cached)
                    last = answer.finish(token.reason)
                else:
                    tally.generated += 1
                    last = answer.take(token)
                    if answer.stopped:
                        last += answer.finish("stop")
                for chunk in last:
                    yield chunk
                if answer.stopped:
                    return

    async def _rendered(self, request: Request) -> str:
        """The prompt by the template that the request brings along: a stranger's program, run in a sandbox."""
        from kuwa.executor.renderer import Job

        wants_format = (request.response_format or {}).get("type", "text") != "text"
        if (
            wants_format
            or request.tools
            or any(isinstance(message.get("content"), list) for message in request.messages)
        ):
            raise Unsupported(
                "A Modelfile's template goes with text alone: not with tools, images or a response format.",
                param="modelfile",
            )
        template, tokenizer = request.modelfile.template, self._loaded.tokenizer
        messages = await asyncio.to_thread(self._prompter.for_template, request)
        return await self._renderer.render(
            Job(template, messages, tokenizer.bos_token or "", tokenizer.eos_token or "")
        )

    def _question(self, request: Request, images: Sequence[bytes], rendered: str | None) -> Question:
        """What the engine is to compute for `request`. Raises what the client is to read."""
        from kuwa.builtin.huggingface.answer import ChoiceAnswer
        from kuwa.builtin.huggingface.constraints import form_of
        from kuwa.builtin.huggingface.parts import THINK, PartReader
        from kuwa.builtin.huggingface.pictures import placed
        from kuwa.builtin.huggingface.sampling import options_of, samplings, stop_tokens
        from kuwa.engine.request import Generation

        options = options_of(request, self._options)
        form = form_of(request, options)
        drawn_by = samplings(request, options, self._vocabulary)
        stops = self._loaded.stops | stop_tokens(request, self._vocabulary)
        if images:
            request.messages = placed(request.messages, images)
        prompter = self._prompter
        if rendered is not None:
            made = prompter.of_rendered(rendered)
        else:
            made = prompter.fitting(request, _template_kwargs(request))
        prompt, inputs = made.ids, self._inputs(made.inputs)
        most = min(options["max_new_tokens"], self.context_length - len(prompt))
        thinks = request.kind == "chat" and self._decode(prompt[-4:]).rstrip().endswith(THINK[0])
        question = Question(prompt, [], [])
        done = self._known(request, most)
        if done and images:
            raise ResumeMismatch("An answer about images is begun anew, not gone on with.")
        for index, sampling in enumerate(drawn_by):
            parts = PartReader(thinks=thinks, calls=bool(request.tools)) if request.kind == "chat" else None
            question.answers.append(
                ChoiceAnswer(
                    index,
                    self._decode,
                    kind=request.kind,
                    stops=options.get("stop") or (),
                    silent=stops,
                    parts=parts,
                    logprobs=sampling.logprobs is not None,
                )
            )
            constraint = None if form is None else self._grammars.constraint(form, thinks=thinks)
            question.generations.append(
                Generation(
                    prompt=prompt,
                    max_tokens=most,
                    sampling=sampling,
                    stops=stops,
                    inputs=inputs,
                    done=done,
                    constraint=constraint,
                )
            )
            if constraint is not None:
                for token in done:
                    constraint.accept(token)
        return question

    def _inputs(self, made: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """The numbers of images in the number format of the model."""
        import torch

        if made is None:
            return None
        dtype = self._loaded.model.dtype
        floats = {name for name, value in made.items() if torch.is_tensor(value) and value.is_floating_point()}
        return {name: value.to(dtype) if name in floats else value for name, value in made.items()}

    def _known(self, request: Request, most: int) -> list[int]:
        """The tokens of the answer that another executor has computed already. Raises ResumeMismatch."""
        known = request.resume.ids if request.resume is not None else []
        if len(known) > most or not all(0 <= token < self._vocabulary for token in known):
            raise ResumeMismatch("These are not the token ids of an answer of this model.")
        return known

    async def embed(self, request: EmbedRequest) -> Embeddings:
        if self._vllm is not None or self._loaded.kind != "embedding":
            raise Unsupported(f"The model {request.access_code!r} makes no embeddings.", param="model")
        if request.dimensions is not None:
            raise Unsupported("This model's vectors cannot be shortened.", param="dimensions")
        async with self._turn:
            return Embeddings(*await asyncio.to_thread(self._vectors.embed, request.inputs))

    async def rerank(self, request: RerankRequest) -> Ranking:
        if self._vllm is not None or self._loaded.kind != "ranking":
            raise Unsupported(f"The model {request.access_code!r} cannot rerank documents.", param="model")
        async with self._turn:
            return Ranking(*await asyncio.to_thread(self._vectors.score, request.query, request.documents))


def ended_before(generation: Generation, answer: ChoiceAnswer) -> EndReason | None:
    """Why there is nothing to generate behind the tokens that are known already; None where there is."""
    done = generation.done
    over = generation.constraint is not None and generation.constraint.ended()
    if done and (over or answer.stopped or done[-1] in generation.stops):
        return "stop"
    return "length" if len(done) >= generation.max_tokens else None


@dataclass(slots=True)
class Tally:
    """The token counts of one request, over all its choices."""

    prompt: int
    generated: int = 0
    cached: int = 0


@dataclass(frozen=True, slots=True)
class Question:
    """A request as the engine is asked it: one generation and one answer for each choice."""

    prompt: list[int]
    generations: list[Generation]
    answers: list[ChoiceAnswer]


async def merged(streams: Sequence[AsyncGenerator[Chunk]]) -> AsyncGenerator[Chunk]:
    """The chunks of all streams as they come. An error of one ends all; closing this closes them."""
    queue: asyncio.Queue[Chunk | Exception | None] = asyncio.Queue(MOST_AHEAD)

    async def forward(stream: AsyncGenerator[Chunk]) -> None:
        last: Exception | None = None
        async with aclosing(stream) as chunks:
            try:
                async for chunk in chunks:
                    await queue.put(chunk)
            except Exception as error:  # noqa: BLE001 - it is raised again below, in the request's task
                last = error
        await queue.put(last)

    tasks = [asyncio.create_task(forward(stream)) for stream in streams]
    left = len(tasks)
    try:
        while left:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The generation options of the command line."""
    return {option.name: getattr(args, option.name) for option in PARAMETERS if hasattr(args, option.name)}


def _template_kwargs(request: Request) -> dict[str, Any]:
    """What the client gives its chat template, such as `enable_thinking`."""
    given: object = request.body.get("chat_template_kwargs") or {}
    kwargs = dict(given) if is_object(given) else {"tokenize": True}
    if len(kwargs) > MOST_TEMPLATE_KWARGS or any(name in RESERVED_KWARGS for name in kwargs):
        raise InvalidRequest("chat_template_kwargs must be an object with a few options.", param="chat_template_kwargs")
    if request.body.get("continue_final_message"):
        kwargs["continue_final_message"] = True
    return kwargs


def _decoder(tokenizer: Any) -> Any:
    """The text of ids without the model's control tokens; those that frame reasoning and tool calls are kept."""
    from kuwa.builtin.huggingface.parts import CALL, THINK

    tags = {tokenizer.convert_tokens_to_ids(tag) for tag in (*THINK, *CALL)}
    hidden = frozenset(tokenizer.all_special_ids) - tags

    def decode(ids: Sequence[int]) -> str:
        shown = [i for i in ids if i not in hidden]
        return tokenizer.decode(shown, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    return decode
