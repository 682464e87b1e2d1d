"""The provider's side of a request: one streamed call through the OpenAI SDK, its events handed on as they are.

`ChatGPTExecutor` makes one `Upstream` when it starts and asks it for the events of each request. Leaving the
iterator, however that comes about, closes the provider's connection, so that it stops generating.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import msgspec

from kuwa.builtin.chatgpt import failures
from kuwa.builtin.chatgpt.failures import Origin
from kuwa.wire.errors import BadUpstream, UpstreamLost, UpstreamTimeout
from kuwa.wire.sse import DONE, EventTooLong, SseReader

if TYPE_CHECKING:
    from openai import AsyncOpenAI

Route = Literal["chat", "completion"]

CONNECT_TIMEOUT_S = 10.0
# Between two reads: a provider that thinks for long sends nothing meanwhile. The kernel has tighter deadlines.
IDLE_TIMEOUT_S = 600.0
READ_OUT_S = 0.25


class _Choice(msgspec.Struct, gc=False):
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    """What has to be known of an event; the rest of it passes unread."""

    choices: list[_Choice] | None = None
    error: Any = None


_decode_event = msgspec.json.Decoder(_Event).decode


class _Response(Protocol):
    @property
    def headers(self) -> Any: ...
    def iter_bytes(self) -> AsyncIterator[bytes]: ...


class EventStream:
    """Reads the body of a streamed answer, however it is cut, and watches that it is one. No I/O."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._reader = SseReader()
        self._finished = False
        self.done = False

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The data of the events that `piece` completes, up to `[DONE]`.

        Raises BadUpstream for what is no chunk of an answer and for an error that the provider sent as an event.
        """
        try:
            for event in self._reader.feed(piece):
                self.done = self.done or event.data == DONE
                if not self.done:
                    self._finished = self._finishes(event.data) or self._finished
                    yield event.data
        except EventTooLong as error:
            raise BadUpstream(f"{self._origin.base_url} sent no answer that can be read: {error}.") from error

    def end(self) -> None:
        """The body has ended. Without `[DONE]` that is an answer only if a choice has said that it finished."""
        if not (self.done or self._finished):
            raise UpstreamLost(f"{self._origin.base_url} ended its answer in the middle.")

    def _finishes(self, data: bytes) -> bool:
        try:
            event = _decode_event(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadUpstream(
                f"{self._origin.base_url} sent an event that is no chunk of an answer: {error}"
            ) from error
        if event.error:
            raise failures.broken_event(event.error, self._origin)
        return any(choice.finish_reason for choice in event.choices or ())


class Upstream:
    """A connection pool to one provider. Made and used on the server's event loop."""

    def __init__(self, base_url: str) -> None:
        import openai

        self._client: AsyncOpenAI = openai.AsyncOpenAI(
            base_url=base_url,
            # Each request names its key; the SDK refuses to exist without one and must not look for it itself.
            api_key="unset",
            timeout=openai.Timeout(IDLE_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            # Retries belong to the kernel, which knows other replicas and how long the client will wait; here
            # they would hide a Retry-After from it.
            max_retries=0,
        )

    async def close(self) -> None:
        await self._client.close()

    async def events(self, route: Route, body: dict[str, Any], origin: Origin) -> AsyncGenerator[bytes, None]:
        """The data of each event of the streamed answer to `body`, without the closing `[DONE]`.

        Raises the KuwaError that the failure is for the client: before the first event for a refusal, after it
        where the provider breaks off.
        """
        import httpx2
        import openai

        try:
            async with self._call(route, body, origin) as response:
                content_type: str = response.headers.get("content-type", "")
                if not content_type.startswith("text/event-stream"):
                    raise failures.not_a_stream(content_type, origin)
                stream = EventStream(origin)
                async with aclosing(cast("AsyncGenerator[bytes, None]", response.iter_bytes())) as pieces:
                    async for piece in pieces:
                        for data in stream.feed(piece):
                            yield data
                        if stream.done:
                            await _read_out(pieces)
                            return
                stream.end()
        except openai.APIStatusError as error:
            raise failures.refusal(error.status_code, error.response.headers, _body(error), origin) from None
        except (openai.APITimeoutError, httpx2.TimeoutException) as error:
            raise UpstreamTimeout(f"{origin.base_url} did not answer in time; is it overloaded?") from error
        except openai.APIConnectionError as error:
            raise failures.unreachable(str(error.__cause__ or error), origin) from error
        except httpx2.HTTPError as error:
            raise UpstreamLost(f"{origin.base_url} broke the connection off ({type(error).__name__}).") from error

    def _call(self, route: Route, body: dict[str, Any], origin: Origin) -> AbstractAsyncContextManager[_Response, None]:
        headers = {"Authorization": f"Bearer {origin.key}"}
        # The body goes as `extra_body` because the SDK passes that on untouched, fields it does not know included;
        # the arguments its signature insists on are overwritten by it.
        if route == "completion":
            return self._client.completions.with_streaming_response.create(
                model=origin.model, prompt="", stream=True, extra_body=body, extra_headers=headers
            )
        return self._client.chat.completions.with_streaming_response.create(
            model=origin.model, messages=[], stream=True, extra_body=body, extra_headers=headers
        )


async def _read_out(pieces: AsyncGenerator[bytes, None]) -> None:
    """Read the end of the body behind `[DONE]`, since a connection is only used again when its body was read."""
    with suppress(TimeoutError):
        async with asyncio.timeout(READ_OUT_S):
            async for _ in pieces:
                pass


def _body(error: Any) -> object:
    """The refusal's body: its JSON, else its text."""
    try:
        return msgspec.json.decode(error.response.content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return error.response.text
