"""The provider's side of a request: one call over pooled connections, its answer handed on as it is.

`ChatGPTExecutor` makes one `Upstream` when it starts and asks it for the answer to each request. Leaving the
answer's block before its end, however that comes about, cuts the provider's connection, so that it stops generating.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit, urlunsplit

import msgspec

from kuwa import __version__
from kuwa.executor.chunks import RawAnswer, RawStream
from kuwa.executor.provider import failures
from kuwa.executor.provider.connections import Call, Connections, Route
from kuwa.executor.provider.failures import Origin
from kuwa.executor.provider.proxy import Proxy
from kuwa.executor.request import Embeddings
from kuwa.http.client import StreamedResponse
from kuwa.http.events import EventStream
from kuwa.http.framing import HeaderPair
from kuwa.wire.errors import BadUpstream, KuwaError, NoReplica, UpstreamLost
from kuwa.wire.json import BadJson, Fields, decode
from kuwa.wire.openai import decode_outline, vectors_in
from kuwa.wire.sse import is_event_stream

ROUTES = {"chat": "chat/completions", "completion": "completions", "embedding": "embeddings"}

MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_REFUSAL_BYTES = 64 * 1024
READ_OUT_S = 0.25
# How ordinary events say that their choice goes on. Inside a text the quotes would be escaped.
_GOES_ON = (b'"finish_reason":null', b'"finish_reason": null')
_ERROR = b'"error"'

_HEADERS: tuple[HeaderPair, ...] = (
    (b"content-type", b"application/json"),
    (b"accept", b"text/event-stream, application/json"),
    (b"user-agent", b"kuwa/" + __version__.encode()),
)


_encode = msgspec.json.Encoder().encode


class ChunkStream(EventStream):
    """Watches that what it reads is an answer: chunks up to one that finishes, and no error among them."""

    def __init__(self, origin: Origin) -> None:
        super().__init__(origin.base_url)
        self._origin = origin
        self._finished = False

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that `piece` completes, up to `[DONE]`.

        What is not a chunk of an answer, and an error that the provider sent as an event, becomes `broken` and ends
        the list: what came before it is still the client's.
        """
        datas = super().feed(piece)
        for index, data in enumerate(datas):
            if _ERROR not in data and (_GOES_ON[0] in data or _GOES_ON[1] in data):
                continue
            try:
                self._finished = self._finishes(data) or self._finished
            except KuwaError as error:
                self.broken, self.done = error, False
                return datas[:index]
        return datas

    def end(self) -> None:
        """Without `[DONE]` the body is an answer only if a choice has said that it finished."""
        if self.broken is not None:
            raise self.broken
        if not (self.done or self._finished):
            raise UpstreamLost(f"{self._origin.base_url} ended its answer in the middle.")

    def _finishes(self, data: bytes) -> bool:
        try:
            event = decode_outline(data)
        except BadJson as error:
            raise BadUpstream(
                f"{self._origin.base_url} sent an event that is no chunk of an answer: {error}"
            ) from error
        if event.error:
            raise failures.broken_event(event.fault, self._origin)
        return event.finishes


class Upstream:
    """A connection pool to one provider. Made and used on the server's event loop."""

    def __init__(self, base_url: str, timeout_s: float, proxy: Proxy | None = None) -> None:
        self._routes = {kind: Route.of("POST", _join(base_url, route), _HEADERS) for kind, route in ROUTES.items()}
        self._connections = Connections(timeout_s, proxy)

    def close(self) -> None:
        self._connections.close()

    def call(self, kind: str, body: Fields, origin: Origin) -> ProviderCall:
        """A request: entering sends `body` and gives the response to it."""
        authorization = b"authorization: Bearer %b\r\n" % origin.key.encode("latin-1")
        return ProviderCall(self._connections.request(self._routes[kind], _encode(body), authorization), origin)

    async def answer(self, response: StreamedResponse, origin: Origin, *, streams: bool) -> RawAnswer | RawStream:
        """The answer that a response holds: a stream, or whole where that was asked for, or is all that the server
        can. `streams`: a stream was asked for, which tells where the server names no content type. Raises BadUpstream
        for what is no answer.
        """
        content_type = response.header(b"content-type")
        if content_type.lower().startswith(b"application/json") or not (content_type or streams):
            return RawAnswer(checked(await response.read(MAX_ANSWER_BYTES), origin))
        if is_event_stream(content_type):
            return ProviderStream(response, origin)
        raise failures.not_a_stream(content_type.decode("latin-1").lower(), origin)

    async def embeddings(self, body: Fields, origin: Origin) -> Embeddings:
        """The vectors for `body`. Raises as entering a call does, and BadUpstream."""
        async with self.call("embedding", body, origin) as response:
            return embeddings(await response.read(MAX_ANSWER_BYTES), origin)


class ProviderCall:
    """One request to the provider. Entering raises the KuwaError that a refusal is for the client; leaving before the
    end of the answer cuts the connection.
    """

    def __init__(self, call: Call, origin: Origin) -> None:
        self._call = call
        self._origin = origin

    async def __aenter__(self) -> StreamedResponse:
        try:
            response = await self._call.__aenter__()
        except NoReplica as error:
            raise failures.unreachable(error.message, self._origin) from error
        if response.status == 200:
            return response
        try:
            said = _said(await response.read(MAX_REFUSAL_BYTES))
        finally:
            await self._call.__aexit__()
        raise failures.refusal(response.status, _texts(response.headers), said, self._origin)

    async def __aexit__(self, *_: object) -> None:
        await self._call.__aexit__()


class ProviderStream(RawStream):
    """The events of a streamed answer, handed over as they are read."""

    def __init__(self, response: StreamedResponse, origin: Origin) -> None:
        self._response = response
        self._origin = origin
        self.pause = response.pause
        self.resume = response.resume

    async def run(self, give: Callable[[list[bytes]], bool]) -> None:
        stream = ChunkStream(self._origin)
        enough = False

        def sink(piece: bytes) -> bool:
            nonlocal enough
            datas = stream.feed(piece)
            enough = bool(datas) and give(datas)
            return enough or stream.done or stream.broken is not None

        await self._response.push(sink)
        if stream.broken is not None:
            raise stream.broken
        if stream.done:
            await _read_out(self._response)
        elif not enough:
            stream.end()


async def _read_out(response: StreamedResponse) -> None:
    """Read the end of the body behind `[DONE]`, since a connection is only used again when its body was read."""
    try:
        async with asyncio.timeout(READ_OUT_S):
            await response.push(lambda _: False)
    except (TimeoutError, BadUpstream):
        return


def checked(answer: bytes, origin: Origin) -> bytes:
    """A whole answer, once it is known to be one. Raises BadUpstream."""
    try:
        whole = decode_outline(answer)
    except BadJson as error:
        raise BadUpstream(f"{origin.base_url} sent an answer that cannot be read: {error}.") from error
    if whole.error:
        raise failures.broken_event(whole.fault, origin)
    if not whole.choices:
        raise BadUpstream(f"{origin.base_url} sent an answer that cannot be read: it holds no choices.")
    return answer


def embeddings(answer: bytes, origin: Origin) -> Embeddings:
    """The vectors of an answer, in the order of their inputs. Raises BadUpstream."""
    try:
        return Embeddings(*vectors_in(answer))
    except BadJson as error:
        raise BadUpstream(
            f"{origin.base_url} sent embeddings that cannot be read: {origin.quote(str(error))}."
        ) from error


def _said(refusal: bytes) -> object:
    """The refusal's body: its JSON, else its text."""
    try:
        return decode(refusal)
    except BadJson:
        return refusal.decode("utf-8", "replace")


def _texts(headers: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()}


def _join(base_url: str, route: str) -> str:
    """The route's URL. A query of the base URL (`?api-version=…`) stays at the end."""
    parts = urlsplit(base_url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{route}", fragment=""))
