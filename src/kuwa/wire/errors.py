"""The one error tree. Every failure a client can see is one of these, and becomes HTTP in one place.

The kernel and the executors raise them; `KuwaError.body` is the OpenAI shape that every route answers with.
`retryable` says whether the same request may succeed on another replica or a moment later.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import msgspec


class KuwaError(Exception):
    """An error for the person who reads it: what happened, which part, what to do next."""

    status: int = 500
    type: str = "server_error"
    code: str = "internal_error"
    retryable: ClassVar[bool] = False
    retry_after_s: int | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def payload(self) -> dict[str, Any]:
        """The OpenAI error object: `{"error": {message, type, param, code}}`."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}

    def reword(self, hide: Callable[[str], str]) -> None:
        """Have `hide` take out of every part what a client is not to read. Words of ours stay: they tell nothing."""
        self.message = hide(self.message)
        self.args = (self.message,)
        self.param = hide(self.param) if self.param else self.param
        ours = _words_of(KuwaError)
        self.type = self.type if self.type in ours else hide(self.type)
        self.code = self.code if self.code in ours else hide(self.code)

    def body(self) -> bytes:
        """`payload` as JSON."""
        return msgspec.json.encode(self.payload())

    def event(self) -> bytes:
        """The closing events of a broken stream.

        The leading blank line ends an event that was cut in the middle, so that no parser folds the error into it.
        """
        return b"\n\ndata: " + self.body() + b"\n\ndata: [DONE]\n\n"


class ErrorShape(Protocol):
    """How a client protocol words an error."""

    def refusal(self, error: KuwaError) -> tuple[int, bytes, bytes]:
        """The status, Content-Type and body of an answer that is an error."""
        ...

    def closing(self, error: KuwaError) -> bytes:
        """What ends a streamed answer that has begun and cannot be completed."""
        ...


class PlainErrors:
    """Errors as plain text, where no protocol is known."""

    def refusal(self, error: KuwaError) -> tuple[int, bytes, bytes]:
        return error.status, b"text/plain; charset=utf-8", error.message.encode("utf-8", "replace")

    def closing(self, error: KuwaError) -> bytes:
        return error.message.encode("utf-8", "replace")


class OpenAIErrors:
    """Errors in the OpenAI shape."""

    def refusal(self, error: KuwaError) -> tuple[int, bytes, bytes]:
        return error.status, b"application/json", error.body()

    def closing(self, error: KuwaError) -> bytes:
        return error.event()


PLAIN: ErrorShape = PlainErrors()
OPENAI: ErrorShape = OpenAIErrors()


def _words_of(kind: type[KuwaError]) -> set[str]:
    """The types and codes of an error and of all that are derived from it."""
    return {kind.type, kind.code}.union(*map(_words_of, kind.__subclasses__()))


class InternalError(KuwaError):
    """A fault of ours. The message says where the log has the details, never what they are."""


class InvalidRequest(KuwaError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_request_error"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class ContentFiltered(InvalidRequest):
    """The provider behind an executor refused the request for what it says."""

    code = "content_filter"


class Unsupported(InvalidRequest):
    """The request is sound, but this executor or this wire cannot do it."""

    code = "unsupported"


class MissingApiKey(KuwaError):
    status = 401
    type = "authentication_error"
    code = "missing_api_key"


class InvalidApiKey(KuwaError):
    """The provider behind an executor refused the key that it was given."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class PermissionDenied(KuwaError):
    """The provider behind an executor knows the key, but not for this."""

    status = 403
    type = "permission_error"
    code = "permission_denied"


class ForbiddenHost(KuwaError):
    status = 403
    type = "permission_error"
    code = "forbidden_host"


class ForbiddenOrigin(KuwaError):
    status = 403
    type = "permission_error"
    code = "forbidden_origin"


class ForbiddenEndpoint(KuwaError):
    """A registration for an address that is neither loopback nor the registrant's own."""

    status = 403
    type = "permission_error"
    code = "forbidden_endpoint"


class ModelNotFound(KuwaError):
    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class NotFound(KuwaError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class MethodNotAllowed(KuwaError):
    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class RequestCancelled(KuwaError):
    """Its own principal ended the request."""

    status = 400
    type = "invalid_request_error"
    code = "request_cancelled"


class ResumeMismatch(KuwaError):
    """This executor cannot go on with a stream that another one began. Between kernel and executors only."""

    status = 409
    type = "invalid_request_error"
    code = "resume_mismatch"


class RequestTimeout(KuwaError):
    """The client took too long to send its request."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class RequestTooLarge(KuwaError):
    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class RequestQuarantined(KuwaError):
    status = 422
    type = "invalid_request_error"
    code = "request_quarantined"


class QueueFull(KuwaError):
    status = 429
    type = "rate_limit_error"
    code = "queue_full"
    retryable = True
    retry_after_s = 1


class RateLimited(KuwaError):
    """The provider behind an executor asks for fewer requests; `retry_after_s` is what it said, if anything."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    retryable = True
    retry_after_s = 1

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class HeadersTooLarge(KuwaError):
    status = 431
    type = "invalid_request_error"
    code = "headers_too_large"


class BadUpstream(KuwaError):
    """A replica answered with something that is no valid answer."""

    status = 502
    type = "upstream_error"
    code = "bad_upstream"
    retryable = True


class UnreadableAnswer(BadUpstream):
    """The model wrote what its engine cannot read, a tool call in no known form say. The replica itself is well."""

    code = "unreadable_answer"


class UpstreamLost(BadUpstream):
    """The replica's connection ended before its answer did."""

    code = "upstream_lost"


class EngineLost(BadUpstream):
    """The engine behind an executor died."""

    code = "engine_lost"


class NoReplica(KuwaError):
    status = 503
    type = "overloaded_error"
    code = "no_replica"
    retryable = True
    retry_after_s = 2


class Draining(NoReplica):
    code = "draining"


class TooManyConnections(NoReplica):
    code = "too_many_connections"
    retry_after_s = 1


class UpstreamTimeout(KuwaError):
    status = 504
    type = "upstream_error"
    code = "upstream_timeout"
    retryable = True


class ClientGone(Exception):
    """The client closed its connection. Never answered: there is nobody to answer."""


def _codes(kind: type[KuwaError]) -> frozenset[str]:
    return frozenset((kind.code,)).union(*map(_codes, kind.__subclasses__()))


CODES = _codes(KuwaError)
"""Every code of an error of ours."""
