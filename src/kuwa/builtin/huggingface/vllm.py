"""`--engine vllm`: requests go to a vLLM server that this executor starts, watches and starts again.

The executor hands over whole requests; nothing of torch or transformers is loaded here. What vLLM is told stands in
pure functions. A request's images are fetched by us, since vLLM would ask any address for whoever names it.
"""

from __future__ import annotations

import argparse
import base64
import re
import secrets
import shutil
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec

from kuwa.builtin.huggingface.sampling import options_of
from kuwa.builtin.huggingface.serving import Asked
from kuwa.builtin.huggingface.vllm_child import VllmConfig
from kuwa.executor import Embeddings, EmbedRequest, Ranking, Request, RerankRequest, SetupFailed
from kuwa.executor.chunks import Chunk, RawEvent
from kuwa.executor.media import Web, fetch_images, image_parts
from kuwa.executor.prompt import SYSTEM_ROLES, Message, text_of, with_system_prompt
from kuwa.executor.supervision import Child, LoadFailed, Supervisor
from kuwa.http.client import fetch, open_stream
from kuwa.http.events import NoEnd, read_events
from kuwa.wire.errors import (
    BadUpstream,
    ContextLengthExceeded,
    EngineLost,
    InvalidRequest,
    KuwaError,
    NoReplica,
    QueueFull,
    Unsupported,
    UpstreamLost,
    UpstreamTimeout,
)
from kuwa.wire.json import BadJson, Fields, decode, fields_in, is_list, items_in
from kuwa.wire.openai import Error, count_of, parts_of

MODEL = "model"
"""What vLLM calls the model; the server gives clients the access code."""
TIMEOUT_S = 30.0
PASSED_ON = (
    *("n", "logprobs", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls", "response_format"),
    *("chat_template_kwargs", "continue_final_message", "stop_token_ids", "echo", "min_tokens", "ignore_eos"),
)
"""Fields that are no generation options and mean the same to vLLM."""
SAMPLING = (
    *("top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("logit_bias", "seed", "stop"),
)
FORMS = {"json_schema": "json", "regex": "regex", "grammar": "grammar"}
"""Options that say what form an answer has, and what vLLM calls them."""
_CAUSE = re.compile(r"(?:\([^)]*\) *)?(?:ERROR [^\]]*\] )?(?=\w*(?:Error|Exception): )|vllm: error: ")
"""What the line of vLLM's log begins with that says why a model could not be loaded."""


def find_vllm(environment: Mapping[str, str]) -> str:
    """The command of the vLLM that is installed: beside this Python, else on the PATH. Raises SetupFailed."""
    beside = Path(sys.executable).parent / "vllm"
    found = str(beside) if beside.is_file() else shutil.which("vllm", path=environment.get("PATH"))
    if found is None:
        raise SetupFailed(
            "--engine vllm: vLLM is not installed here; install it with: pip install vllm (it wants a GPU), or leave "
            "out --engine"
        )
    return found


def arguments(args: argparse.Namespace, concurrency: int, template: str) -> list[str]:
    """The command line of `vllm serve` that does what ours says. Raises SetupFailed for what vLLM has not."""
    if args.load_8bits:
        raise SetupFailed("--engine vllm loads no weights in 8 bits; give --load_4bits or another --engine")
    gpus = len([gpu for gpu in (args.visible_gpu or "").split(",") if gpu.strip()])
    found = ["serve", args.model_path, "--served-model-name", MODEL, "--max-num-seqs", str(concurrency)]
    found += ["--dtype", args.dtype]
    for option, value in (
        ("--tokenizer", args.tokenizer),
        ("--revision", args.revision),
        ("--max-num-batched-tokens", args.max_batch_tokens),
        ("--kv-cache-memory-bytes", None if args.kv_cache_gb is None else int(args.kv_cache_gb * (1 << 30))),
        ("--tensor-parallel-size", gpus if gpus > 1 else None),
        ("--quantization", "bitsandbytes" if args.load_4bits else None),
        ("--chat-template", template or None),
    ):
        if value is not None:
            found += [option, str(value)]
    if args.trust_remote_code:
        found.append("--trust-remote-code")
    if args.lora:
        found += ["--enable-lora", "--lora-modules", f"{MODEL}-lora={args.lora}"]
    return found


def environment(args: argparse.Namespace, api_key: str) -> dict[str, str]:
    """What vLLM reads of its environment."""
    found = {"VLLM_API_KEY": api_key, "VLLM_NO_USAGE_STATS": "1"}
    if args.visible_gpu is not None:
        found["CUDA_VISIBLE_DEVICES"] = args.visible_gpu
    if args.offline:
        found["HF_HUB_OFFLINE"] = "1"
    return found


def body_of(request: Request, options: Mapping[str, Any], messages: Sequence[Message], model: str) -> Fields:
    """What vLLM is asked. Only known fields are passed on. Raises Unsupported for what it cannot do."""
    if options.get("typical_p") not in (None, 1.0):
        raise Unsupported("vLLM knows no typical_p.", param="typical_p")
    body: Fields = {name: request.body[name] for name in PASSED_ON if request.body.get(name) is not None}
    body |= {name: options[name] for name in SAMPLING if options.get(name) is not None}
    if form := {theirs: options[name] for name, theirs in FORMS.items() if options.get(name)}:
        body["structured_outputs"] = form
    body["temperature"] = float(options.get("temperature", 1.0)) if options["do_sample"] else 0.0
    if "max_tokens" in request.parameters or request.kind == "completion":
        body["max_tokens"] = options["max_new_tokens"]  # else vLLM takes what the context leaves
    body |= {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    if request.kind == "completion":
        return {**body, "prompt": text_of(request.messages[0])}
    return {**body, "messages": list(messages)}


def with_data(messages: Sequence[Message], images: Sequence[bytes]) -> list[Message]:
    """The messages with every image inside them. `images` are those of `image_parts`, in its order."""
    if not images:
        return list(messages)
    waiting = iter(images)

    def inside(part: Message) -> Message:
        if part.get("type") != "image_url":
            return part
        data = base64.b64encode(next(waiting)).decode()
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}

    return [
        {**message, "content": [inside(part) for part in parts_of(message["content"])]}
        if is_list(message.get("content"))
        else message
        for message in messages
    ]


def without_oldest(messages: Sequence[Message]) -> list[Message] | None:
    """The messages without their oldest turn; None where only the last one is left."""
    turns = [i for i, m in enumerate(messages) if m.get("role") == "user"]
    if len(turns) < 2:
        return None
    return [m for i, m in enumerate(messages) if i >= turns[1] or m.get("role") in SYSTEM_ROLES]


def refusal(status: int, body: bytes) -> KuwaError:
    """What vLLM answered with an error status, as an error of ours."""
    try:
        whole = decode(body, Fields)
        error = Error.of(whole.get("error")) or Error.of(whole)  # older versions say it at the top
    except BadJson:
        error = None
    said = (error.message if error is not None else "") or f"vLLM answered with status {status}."
    if status in (400, 404, 413, 422):
        too_long = "context length" in said or "max_model_len" in said
        return ContextLengthExceeded(said, param="messages") if too_long else InvalidRequest(said)
    if status == 429:
        return QueueFull(said)
    if status in (401, 503):
        return EngineLost(f"The vLLM engine is not ready: {said}")
    return BadUpstream(f"The vLLM engine failed: {said}")


class Vllm(Supervisor):
    """vLLM with one model. `options` are the generation options set when the executor was started."""

    def __init__(
        self, command: Sequence[str], args: argparse.Namespace, options: Mapping[str, Any], system_prompt: str
    ) -> None:
        super().__init__("vLLM", args.model_path, self._started)
        self._command = list(command)
        self._args = args
        self._options = options
        self._system_prompt = system_prompt
        self._model = f"{MODEL}-lora" if args.lora else MODEL
        self._web: Web = args.image_urls

    async def _started(self) -> Child:
        key = secrets.token_urlsafe(32)
        told = VllmConfig(command=self._command, environment=environment(self._args, key))
        module = "kuwa.builtin.huggingface.vllm_child"
        return await Child.start(module, told, name="vLLM", api_key=key, cause=_CAUSE)

    async def context_length(self) -> int:
        """The most tokens of a prompt and its answer; 0 where vLLM does not say."""
        child = self.child()
        answer = await fetch("GET", child.url + "/v1/models", headers=(child.authorization,), timeout_s=TIMEOUT_S)
        try:
            models = items_in(decode(answer.body, Fields).get("data"))
        except BadJson:
            return 0
        return (count_of(fields_in(models[0]).get("max_model_len")) or 0) if models else 0

    async def answer(self, request: Request) -> AsyncGenerator[list[bytes]]:
        """The data of the answer's events as they come, read by read. Close it to cancel the request."""
        if request.modelfile.template:
            raise Unsupported(
                "With --engine vllm a Modelfile's template is not rendered; start the executor with "
                "--override_chat_template.",
                param="modelfile",
            )
        messages = with_system_prompt(request.messages, self._system_prompt)
        if image_parts(messages):
            messages = with_data(messages, await fetch_images(messages, self._web))
        path = "/v1/chat/completions" if request.kind == "chat" else "/v1/completions"
        options = options_of(request, self._options)
        while True:
            try:
                async with aclosing(self._events(path, body_of(request, options, messages, self._model))) as events:
                    async for datas in events:
                        yield datas
                return
            except ContextLengthExceeded:
                # Always before the first event: an answer that has begun fitted.
                shorter = without_oldest(messages) if request.trim_history else None
                if shorter is None:
                    raise
                request.trimmed_messages += len(messages) - len(shorter)
                messages = shorter

    async def _events(self, path: str, body: Fields) -> AsyncGenerator[list[bytes]]:
        child = self.child()
        headers = (child.authorization, (b"content-type", b"application/json"))
        try:
            async with open_stream(
                "POST", child.url + path, headers=headers, body=msgspec.json.encode(body)
            ) as response:
                if response.status != 200:
                    raise refusal(response.status, await response.read())
                async with aclosing(read_events(response, "The vLLM engine")) as events:
                    async for datas in events:
                        child.answered = True
                        yield datas
        except NoEnd as error:
            raise EngineLost("The vLLM engine ended its answer without an end.") from error
        except (UpstreamLost, NoReplica, UpstreamTimeout) as error:
            raise EngineLost("The vLLM engine died while it was answering; it is being started again.") from error


class VllmServing:
    """A model in a vLLM server that this executor starts."""

    serves: tuple[str, ...] = ("chat", "completions")
    capabilities: tuple[str, ...] = ("tools", "logprobs", "n", "response_format", "images", "echo")
    fingerprint = ""
    seed: int | None = None
    context_length = 0

    def __init__(self, asked: Asked) -> None:
        """Raises SetupFailed, UsageError."""
        command = [find_vllm(asked.environment), *arguments(asked.args, asked.concurrency, asked.template)]
        self._path = asked.args.model_path
        self._vllm = Vllm(command, asked.args, asked.options({}), asked.system_prompt)

    async def start(self, give_up: Callable[[str], None]) -> None:
        """Have vLLM load the model. Raises SetupFailed."""
        self._vllm.gave_up = give_up
        try:
            await self._vllm.start()
        except LoadFailed as error:
            raise SetupFailed(f"vLLM could not load {self._path}: {error}") from error
        self.context_length = await self._vllm.context_length()

    async def close(self) -> None:
        await self._vllm.stop()

    def healthy(self) -> str:
        return self._vllm.trouble

    async def compute(self, request: Request) -> AsyncGenerator[Chunk]:
        async with aclosing(self._vllm.answer(request)) as reads:
            async for datas in reads:
                for data in datas:
                    yield RawEvent(data)

    async def embed(self, request: EmbedRequest) -> Embeddings:
        raise Unsupported(f"The model {request.access_code!r} makes no embeddings.", param="model")

    async def rerank(self, request: RerankRequest) -> Ranking:
        raise Unsupported(f"The model {request.access_code!r} cannot rerank documents.", param="model")
