"""Streams that another executor can go on with: what this one announces, and what it is asked to repeat. Pure.

A stream can be computed again if its model, its request and its seed are the same. The model is named by
`LLMExecutor.fingerprint`, the request by a hash, and the seed is drawn here where the request brings none.
"""

from __future__ import annotations

import hashlib
import os
import re

import msgspec

from kuwa.executor.request import Request
from kuwa.wire.errors import ResumeMismatch
from kuwa.wire.resume import Announcement

SEED_BITS = 31
_WORD = re.compile(r"[!-~]{1,128}").fullmatch


def announcement(request: Request, fingerprint: str, seed: int | None) -> Announcement | None:
    """By what the stream of `request` is computed, with the seed set among its parameters; None where it cannot be
    computed twice. `seed` is the executor's own, None where one is drawn for each request.

    Raises ResumeMismatch where another executor's stream is asked for that this one would not compute alike.
    """
    parameters = request.parameters
    several = int(parameters.get("n") or 1) > 1 or bool(parameters.get("logprobs"))
    resumable = request.stream and not several and _WORD(fingerprint) is not None
    resume = request.resume
    if resume is None:
        if not resumable:
            return None
        given = parameters.get("seed")
        if not isinstance(given, int) or given < 0:  # none, or the engine's own word for "any"
            parameters["seed"] = given = _drawn() if seed is None else seed
        return Announcement(fingerprint, _hash(request), 0, given)
    if not resumable or resume.fingerprint != fingerprint:
        raise ResumeMismatch("This executor's model is not the one that began the stream.")
    if resume.prompt_hash != _hash(request):
        raise ResumeMismatch("This executor reads the request otherwise than the one that began the stream.")
    parameters["seed"] = resume.seed
    return Announcement(fingerprint, resume.prompt_hash, 0, resume.seed)


def _drawn() -> int:
    return int.from_bytes(os.urandom(4), "big") >> (32 - SEED_BITS)


def _hash(request: Request) -> str:
    """What the answer depends on, apart from the model and the seed."""
    parameters = sorted((name, value) for name, value in request.parameters.items() if name != "seed")
    asked = (request.kind, request.messages, request.tools, request.tool_choice, request.response_format, parameters)
    return hashlib.blake2b(msgspec.json.encode(asked), digest_size=12).hexdigest()
