"""The oracle: an executor whose answers prove what became of a request. For tests alone; start it as any file:

    kuwa-executor tests/oracle.py --access_code oracle --concurrency 4

It answers with numbered tokens that carry a label, `label.0 label.1 …`, so that a client's ledger shows every gap,
repetition and mix-up. What it does is said by the request and by nothing else, in the body's field `oracle`:

    {"model": "oracle", "messages": […], "oracle": {"id": "r17", "tokens": 50, "delay": 0.01, "raise_after": 20}}

or, over the v1.0 wire, in the Modelfile (`parameter oracle_tokens 50`). The fields are those of `Script`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator

import msgspec

from kuwa.executor import (
    Chunk,
    Embeddings,
    EmbedRequest,
    Finish,
    LLMExecutor,
    Progress,
    Ranking,
    Request,
    RerankRequest,
    Usage,
)
from kuwa.executor.chunks import Text
from kuwa.executor.prompt import text_of
from kuwa.wire.errors import InvalidRequest

EXIT_CODE = 70


class Script(msgspec.Struct, forbid_unknown_fields=True):
    """What the oracle is to do. Times are seconds; `…_after: k` means after k tokens, before the next one."""

    id: str = ""  # the label; empty: a digest of the messages
    tokens: int = 20
    delay: float = 0.005  # before each token
    chunk: int = 1  # tokens in one chunk
    prefill: float = 0.0  # before the first token
    progress: bool = False  # meanwhile it says that it computes
    block: float = 0.0  # sleep before each token that blocks the event loop, as careless executors do
    raise_after: int | None = None
    exit_after: int | None = None  # the process ends at once
    hang_after: int | None = None  # nothing comes any more
    usage: bool = True
    seeded: bool = False  # each token carries a draw by the request's seed
    ids: bool = False  # tokens carry their ids, and those that come with the request are taken as computed
    wobble: bool = False  # each process answers otherwise, whatever the seed


class OracleExecutor(LLMExecutor):
    LLM_name = "oracle"
    description = "[Test] Numbered tokens on demand."
    concurrency = 64
    capabilities = ("resume",)

    def fingerprint(self) -> str:
        return "oracle"

    async def llm_compute(self, request: Request) -> AsyncIterator[Chunk]:
        script = read_script(request)
        label = script.id or digest(request)
        limit = request.parameters.get("max_tokens")
        count = script.tokens if limit is None else min(script.tokens, int(limit))
        begun = time.monotonic()
        while (left := begun + script.prefill - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.5) if script.progress else left)
            if script.progress:
                yield Progress()
        held: list[str] = []
        known = request.resume.ids if request.resume is not None else []
        check_ids(known)
        for number in range(count):
            if number >= len(known):
                await misbehave(script, number)
                if script.block:
                    time.sleep(script.block)  # noqa: ASYNC251 - what a careless executor does is what is asked for
                await asyncio.sleep(script.delay)
            held.append(f"{label}.{number}{draw(script, request, number)} ")
            full = len(held) >= script.chunk or number == count - 1
            if script.ids:
                yield Text("".join(held) if full else "", ids=(token_id(number),))
            elif full:
                yield "".join(held)
            if full:
                held.clear()
        await misbehave(script, count)
        if script.usage:
            yield Usage(prompt_tokens=prompt_tokens(request), completion_tokens=count)
        if count < script.tokens:
            yield Finish("length")

    async def embed(self, request: EmbedRequest) -> Embeddings:
        vectors = [[b / 255 for b in hashlib.sha256(str(text).encode()).digest()[:8]] for text in request.inputs]
        return Embeddings(vectors, prompt_tokens=len(request.inputs))

    async def rerank(self, request: RerankRequest) -> Ranking:
        wanted = set(request.query.lower().split())
        scores = [len(wanted & set(text.lower().split())) / max(1, len(wanted)) for text in request.documents]
        return Ranking(scores, prompt_tokens=len(request.documents))


def read_script(request: Request) -> Script:
    asked = request.body.get("oracle") or request.modelfile.parameters["oracle_"]
    try:
        return msgspec.convert(asked, Script)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"The field oracle is no script: {error}", param="oracle") from error


def draw(script: Script, request: Request, number: int) -> str:
    """What a sampler would add to the token: nothing, something by seed and position, or something of its own."""
    if script.wobble:
        return f"~{os.getpid()}"
    if not script.seeded:
        return ""
    seed = request.parameters.get("seed")
    return "~" + hashlib.sha256(f"{seed}/{number}".encode()).hexdigest()[:4]


def token_id(number: int) -> int:
    return number * 7 + 3


def check_ids(known: list[int]) -> None:
    if known != [token_id(number) for number in range(len(known))]:
        raise InvalidRequest(f"These are not the ids of this stream: {known[:20]}", param="kuwa_resume")


async def misbehave(script: Script, number: int) -> None:
    """Do what the script has in store at this token."""
    if script.raise_after == number:
        raise RuntimeError(f"the oracle was told to fail after {number} tokens")
    if script.exit_after == number:
        os._exit(EXIT_CODE)
    if script.hang_after == number:
        await asyncio.Event().wait()


def digest(request: Request) -> str:
    """A label that is the same whenever the same is asked."""
    said = "\n".join(f"{message['role']}: {text_of(message)}" for message in request.messages)
    return hashlib.sha256(said.encode()).hexdigest()[:8]


def prompt_tokens(request: Request) -> int:
    return max(1, sum(len(text_of(message).split()) for message in request.messages))


if __name__ == "__main__":
    OracleExecutor().run()
