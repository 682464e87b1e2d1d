"""What a conversation or a session is known by when its next request comes: a trail of marks. Pure.

The dialects (`kernel/api`) lay the trail of a request whose access code has the policy `prefix` or `session`; the
policy remembers the marks and looks for them. A mark is a hash of all that stands before a point of the request,
so equal marks mean equal beginnings. Marks hold within one process only: nobody outside can foresee or forge them.
"""

from __future__ import annotations

from itertools import accumulate

import msgspec

from kuwa.kernel.policy import Trail
from kuwa.wire.json import BadJson, decoder

MAX_MARKS = 64
MAX_BODY_BYTES = 4 * 1024 * 1024  # looking into a larger body would hold up everybody's streams
BLOCK_CHARACTERS = 1024  # of a plain prompt, which has no messages to be cut by

_ABSENT = msgspec.Raw()


class _Prompt(msgspec.Struct):
    """What an engine computes first, in this order; untouched otherwise."""

    tools: msgspec.Raw = _ABSENT
    messages: list[msgspec.Raw] = []
    prompt: str | list[msgspec.Raw] | None = None


class _Session(msgspec.Struct):
    prompt_cache_key: str | None = None
    user: str | None = None


_decode_prompt = decoder(_Prompt)
_decode_session = decoder(_Session)


def of_conversation(body: bytes, before: str = "") -> Trail:
    """The trail of an OpenAI body: a mark after each message, or after each block of a plain prompt.

    `before` stands in front of them all where the body does not hold it (a Modelfile). A body that cannot be read
    so has no trail: the executor will say what is wrong with it.
    """
    if len(body) > MAX_BODY_BYTES:
        return ()
    try:
        prompt = _decode_prompt(body)
    except BadJson:
        return ()
    pieces = [bytes(message) for message in prompt.messages] or _blocks(prompt.prompt)
    first = hash((before, bytes(prompt.tools)))
    return tuple(accumulate(pieces, lambda mark, piece: hash((mark, piece)), initial=first))[1:][-MAX_MARKS:]


def of_session(name: str | None) -> Trail:
    """The trail of a session: one mark, or none where the client names no session."""
    return (hash(name),) if name else ()


def session_in(body: bytes) -> str | None:
    """The session that an OpenAI body names: its `prompt_cache_key`, else its `user`."""
    try:
        session = _decode_session(body)
    except BadJson:
        return None
    return session.prompt_cache_key or session.user


def _blocks(prompt: str | list[msgspec.Raw] | None) -> list[bytes]:
    """The whole blocks of one plain prompt. Several prompts at once, or token ids, have no trail."""
    if not isinstance(prompt, str):
        return []
    whole = len(prompt) - len(prompt) % BLOCK_CHARACTERS
    return [
        prompt[at : at + BLOCK_CHARACTERS].encode("utf-8", "surrogatepass") for at in range(0, whole, BLOCK_CHARACTERS)
    ]
