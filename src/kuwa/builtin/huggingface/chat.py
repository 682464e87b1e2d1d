"""Models that make text, on `kuwa.engine`: how a request becomes generations, and their tokens an answer.

Imported by `setup` once torch is known to be there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import torch

from kuwa.builtin.huggingface.answer import ChoiceAnswer
from kuwa.builtin.huggingface.constraints import Grammars, form_of
from kuwa.builtin.huggingface.fingerprint import fingerprint
from kuwa.builtin.huggingface.loading import Loaded
from kuwa.builtin.huggingface.parts import CALL, THINK, PartReader
from kuwa.builtin.huggingface.pictures import placed
from kuwa.builtin.huggingface.prompting import BadTemplate, Prompter
from kuwa.builtin.huggingface.sampling import options_of, own_options, samplings, stop_tokens
from kuwa.builtin.huggingface.serving import Asked
from kuwa.engine.loop import Door, Working
from kuwa.engine.probe import CannotServe, backend_for, engine_of
from kuwa.engine.request import Drawn, End, EndReason, Generation
from kuwa.engine.sizing import DoesNotFit
from kuwa.executor import Embeddings, EmbedRequest, Ranking, Request, RerankRequest, SetupFailed
from kuwa.executor.chunks import Chunk, Progress, Usage
from kuwa.executor.media import fetch_images
from kuwa.executor.renderer import Job, Renderer
from kuwa.wire.errors import InvalidRequest, ResumeMismatch, Unsupported
from kuwa.wire.json import is_object

CAPABILITIES = ("tools", "logprobs", "n", "response_format", "resume")
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


class ChatServing:
    """A model that makes text, batched with others' requests by an engine."""

    serves: tuple[str, ...] = ("chat", "completions")
    engine: Door
    _renderer: Renderer

    def __init__(self, asked: Asked, loaded: Loaded) -> None:
        """Try the chat template, choose and size the engine. Raises SetupFailed, UsageError."""
        args = asked.args
        self._args = args
        self._loaded = loaded
        self._options = asked.options(own_options(loaded.generation_config))
        budget = None if args.kv_cache_gb is None else int(args.kv_cache_gb * GIB)
        # What is packed into one sequence has no room for images.
        sees = loaded.processor is not None and args.engine != "slot"
        self.capabilities: tuple[str, ...] = (*CAPABILITIES, "images") if sees else CAPABILITIES
        try:
            backend = backend_for(
                loaded.model,
                "interleave" if sees and args.engine == "auto" else args.engine,
                slots=asked.concurrency,
                context=loaded.context_length,
                step_tokens=args.max_batch_tokens,
                budget=budget,
            )
        except (CannotServe, DoesNotFit) as error:
            raise SetupFailed(str(error)) from error
        self._backend = backend
        self.context_length = backend.limits.length
        self._vocabulary = int(loaded.config.get_text_config().vocab_size)
        limit = min(args.limit, self.context_length - 1)
        try:
            self._prompter = Prompter(
                loaded.tokenizer,
                template=asked.template,
                system_prompt=asked.system_prompt,
                limit=limit,
                vocabulary=self._vocabulary,
                processor=loaded.processor,
            )
        except BadTemplate as error:
            raise SetupFailed(f"{error}; give another --override_chat_template") from error
        self._decode = _decoder(loaded.tokenizer)
        self._grammars = Grammars(loaded.tokenizer, self._decode, vocabulary=self._vocabulary, stops=loaded.stops)
        answers_by = (
            asked.template,
            asked.system_prompt,
            limit,
            self.context_length,
            sorted(loaded.stops),
            backend.name,
        )
        self.fingerprint = fingerprint(
            loaded.model,
            loaded.tokenizer,
            (sorted(self._options.items()), *answers_by, backend.limits.step_tokens),
        )
        self.seed: int | None = self._options.get("seed") if self.fingerprint else None

    async def start(self, give_up: Callable[[str], None]) -> None:
        self._renderer = Renderer()
        self.engine = engine_of(self._backend, give_up)
        self.engine.start()

    async def close(self) -> None:
        await self._renderer.stop()
        await self.engine.close()

    def healthy(self) -> str:
        return self.engine.trouble

    async def embed(self, request: EmbedRequest) -> Embeddings:
        raise Unsupported(f"The model {request.access_code!r} makes no embeddings.", param="model")

    async def rerank(self, request: RerankRequest) -> Ranking:
        raise Unsupported(f"The model {request.access_code!r} cannot rerank documents.", param="model")

    async def compute(self, request: Request) -> AsyncGenerator[Chunk]:
        rendered = await self._rendered(request) if request.modelfile.template else None
        images = await fetch_images(request.messages, self._args.image_urls)
        # In a thread: rendering and tokenizing a long conversation takes longer than others should wait.
        question = await asyncio.to_thread(self._question, request, images, rendered)
        tally = Tally(len(question.prompt))
        streams = [self._choice(g, a, tally) for g, a in zip(question.generations, question.answers, strict=True)]
        async with aclosing(streams[0] if len(streams) == 1 else merged(streams)) as chunks:
            async for chunk in chunks:
                yield chunk
        yield Usage(tally.prompt, tally.generated, tally.cached)

    async def _choice(self, generation: Generation, answer: ChoiceAnswer, tally: Tally) -> AsyncGenerator[Chunk]:
        for token in generation.done:
            tally.generated += 1
            for chunk in answer.take(Drawn(token)):
                yield chunk
        if (reason := ended_before(generation, answer)) is not None:
            for chunk in answer.finish(reason):
                yield chunk
            return
        async with aclosing(self.engine.generate(generation, patience_s=self._args.timeout)) as tokens:
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
    tags = {tokenizer.convert_tokens_to_ids(tag) for tag in (*THINK, *CALL)}
    hidden = frozenset(tokenizer.all_special_ids) - tags

    def decode(ids: Sequence[int]) -> str:
        shown = [i for i in ids if i not in hidden]
        return tokenizer.decode(shown, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    return decode
