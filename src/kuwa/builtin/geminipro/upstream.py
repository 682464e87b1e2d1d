"""The call to Gemini through Google's SDK, and what its exceptions are to the client.

`GeminiProExecutor` makes one `Upstream` when it starts. Leaving the iterator of an answer, however that comes about,
closes its connection, so that Google stops computing. The SDK is told its key with each request and reads none.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any, cast

from kuwa.executor.provider import failures
from kuwa.executor.provider.connections import Connections
from kuwa.executor.provider.failures import Origin
from kuwa.executor.provider.proxy import Proxy
from kuwa.wire.errors import BadUpstream, InvalidRequest, KuwaError, NoReplica
from kuwa.wire.json import BadJson, Fields, decode, is_object

if TYPE_CHECKING:
    from google.genai.types import ContentEmbedding, GenerateContentResponse


class Upstream:
    """A connection pool to Gemini. Made and used on the server's event loop."""

    def __init__(self, base_url: str, timeout_s: float, proxy: Proxy | None = None) -> None:
        import httpx2
        from google import genai
        from google.genai import types

        from kuwa.builtin.geminipro.transport import Transport

        self._connections = Connections(timeout_s, proxy)
        self._http = httpx2.AsyncClient(transport=Transport(self._connections))
        self._client = genai.Client(
            api_key="unset",  # each request brings its own; without one the SDK would look for it itself
            vertexai=False,
            http_options=types.HttpOptions(base_url=base_url, httpx_async_client=self._http),
        )
        self._types = types
        # The signatures name types of packages that need not be installed.
        self._models = cast("Any", self._client.aio.models)

    async def close(self) -> None:
        await self._http.aclose()
        self._client.close()
        self._connections.close()

    async def answer(
        self, contents: list[Fields], config: Fields, origin: Origin
    ) -> AsyncGenerator[GenerateContentResponse]:
        """The responses of one streamed answer. Raises the KuwaError that a failure is for the client."""
        with _told(origin):
            stream = await self._models.generate_content_stream(
                model=origin.model,
                contents=[self._types.Content.model_validate(turn) for turn in contents],
                config=self._types.GenerateContentConfig.model_validate(_with_key(config, origin)),
            )
            async with aclosing(cast("AsyncGenerator[GenerateContentResponse]", stream)) as responses:
                async for response in responses:
                    yield response

    async def count_tokens(self, contents: list[Fields], origin: Origin) -> int:
        """How many tokens Gemini counts."""
        with _told(origin):
            counted = await self._models.count_tokens(
                model=origin.model,
                contents=[self._types.Content.model_validate(turn) for turn in contents],
                config=_with_key({}, origin),
            )
            return int(counted.total_tokens or 0)

    async def embed(self, texts: list[str], dimensions: int | None, origin: Origin) -> list[list[float]]:
        """One vector per text."""
        config: Fields = {} if dimensions is None else {"output_dimensionality": dimensions}
        with _told(origin):
            found = await self._models.embed_content(
                model=origin.model, contents=texts, config=_with_key(config, origin)
            )
        vectors = [list(embedding.values or ()) for embedding in cast("list[ContentEmbedding]", found.embeddings or [])]
        if len(vectors) != len(texts):
            raise BadUpstream(f"{origin.base_url} sent {len(vectors)} embeddings for {len(texts)} texts.")
        return vectors


def _with_key(config: Fields, origin: Origin) -> Fields:
    return {**config, "http_options": {"headers": {"x-goog-api-key": origin.key}}}


@contextmanager
def _told(origin: Origin) -> Generator[None]:
    """Exceptions of the SDK and of our connections under it leave as the KuwaError they are for the client."""
    import pydantic
    from google.genai import errors

    try:
        yield
    except errors.APIError as error:
        raise _refusal(error, origin) from None
    except NoReplica as error:
        raise failures.unreachable(error.message, origin) from error
    except errors.UnknownApiResponseError as error:
        raise failures.not_an_answer(origin) from error
    except pydantic.ValidationError as error:
        raise InvalidRequest(f"The request has no meaning for Gemini: {_first(error)}.") from error


def _refusal(error: Any, origin: Origin) -> KuwaError:
    headers: Mapping[str, str] = getattr(error.response, "headers", None) or {}
    if not isinstance(error.code, int) or error.code < 300:
        # An error inside a stream that had begun well.
        return failures.broken_event(error.details, origin)
    return failures.refusal(error.code, headers, _body(error.details), origin)


def _body(details: object) -> object:
    """The refusal's decoded JSON, else its text, which the SDK wraps into an object."""
    if not is_object(details) or "error" in details:
        return details
    message: object = details.get("message")
    try:
        return decode(message) if isinstance(message, str) else details
    except BadJson:
        return message


def _first(error: Any) -> str:
    """Where pydantic found the first fault, and which; never the value, which may be anything."""
    first = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
