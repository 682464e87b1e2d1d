"""The requests of `kuwa.client`, each on a connection of its own."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from kuwa.home import DEFAULT_KERNEL_URL
from kuwa.http.client import Response, fetch, open_stream
from kuwa.http.events import read_events
from kuwa.wire.errors import BadUpstream, KuwaError, NoReplica
from kuwa.wire.json import BadJson, decoder
from kuwa.wire.openai import Piece as Delta
from kuwa.wire.openai import decode_chunk, decode_whole
from kuwa.wire.report import Report, decode_report

TIMEOUT_S = 5.0
JSON_BODY = (b"content-type", b"application/json")
JSON_WANTED = (b"accept", b"application/json")

Message = Mapping[str, Any]


class NoKernel(KuwaError):
    """Nobody answers at the kernel's address."""

    status = 503
    code = "no_kernel"
    retryable = True


class Refused(KuwaError):
    """The kernel, or the executor behind it, answered with an error: its words, its code and its status."""

    def __init__(self, message: str, *, status: int, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


_models = decoder(_Models)


class Client:
    """A kernel at `kernel_url` (without `/v1`). Holds no connection; may be used from any number of tasks."""

    def __init__(self, kernel_url: str = DEFAULT_KERNEL_URL, *, tls: ssl.SSLContext | None = None) -> None:
        self.kernel_url = kernel_url.rstrip("/")
        self._tls = tls

    async def is_live(self) -> bool:
        """Whether a kernel answers there."""
        try:
            return (await self._get("/livez")).status == 200
        except KuwaError:
            return False

    async def models(self) -> list[str]:
        """The access codes that can be asked now, sorted."""
        try:
            return [model.id for model in _models((await self._get("/v1/models")).body).data]
        except BadJson as error:
            raise self._no_kuwa() from error

    async def report(self) -> Report:
        """What the kernel serves, where, and how busy it is."""
        try:
            return decode_report((await self._get("/v1.0/worker/debug")).body)
        except BadJson as error:
            raise self._no_kuwa() from error

    async def chat(self, model: str, messages: Sequence[Message], **parameters: Any) -> AsyncGenerator[Delta]:
        """Stream one answer. `parameters` are further fields of the OpenAI request (`temperature=0`).

        Close the iterator (`contextlib.aclosing`) to give the answer up: its slot is free at once.
        """
        request = {
            **parameters,
            "model": model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        try:
            async with open_stream(
                "POST",
                f"{self.kernel_url}/v1/chat/completions",
                headers=(JSON_BODY,),
                body=msgspec.json.encode(request),
                tls=self._tls,
            ) as response:
                if response.status != 200:
                    raise self._refused(response.status, await response.read())
                async with aclosing(read_events(response, self.kernel_url)) as events:
                    async for datas in events:
                        for data in datas:
                            for delta in _deltas(data):
                                yield delta
        except NoReplica as error:
            raise self._no_kernel(error) from error

    async def _get(self, path: str) -> Response:
        try:
            response = await fetch(
                "GET", self.kernel_url + path, headers=(JSON_WANTED,), timeout_s=TIMEOUT_S, tls=self._tls
            )
        except NoReplica as error:
            raise self._no_kernel(error) from error
        if response.status != 200:
            raise self._refused(response.status, response.body)
        return response

    def _refused(self, status: int, body: bytes) -> KuwaError:
        try:
            error = decode_whole(body).error
        except BadJson:
            error = None
        return self._no_kuwa() if error is None else Refused(error.message, status=status, code=error.code)

    def _no_kernel(self, error: KuwaError) -> NoKernel:
        return NoKernel(f"No kernel answers at {self.kernel_url}: {error.message}")

    def _no_kuwa(self) -> BadUpstream:
        return BadUpstream(f"What answers at {self.kernel_url} is no kernel of this Kuwa.")


def _deltas(data: bytes) -> list[Delta]:
    """What one event says. Raises Refused for an error event, BadUpstream for one that cannot be read."""
    try:
        chunk = decode_chunk(data)
    except BadJson as error:
        raise BadUpstream(f"The answer holds an event that cannot be read: {error}.") from error
    if (said := chunk.error) is not None:
        raise Refused(said.message, status=502, code=said.code)
    return chunk.pieces()
