"""Where requests go on their replicas, and how each of their heads begins: made once for each replica and path."""

from __future__ import annotations

import msgspec

from kuwa.http.origin import Origin
from kuwa.wire import resume

MAX_ROUTES = 10_000

RouteKey = tuple[str, bytes, bytes, bool]
"""URL, content type, the Authorization header, and whether streams can be resumed."""


class Route(msgspec.Struct, frozen=True):
    """Where a request goes on its replica: the origin, and the request's head up to the request's id."""

    origin: Origin
    head: bytes


class Routes(dict[RouteKey, Route]):
    """The routes that are known; forgotten all at once when there are too many."""

    def new(self, key: RouteKey) -> Route:
        url, content_type, authorization, resumes = key
        origin = Origin.of(url)
        path = url.partition("://")[2].partition("/")[2]
        head = b"POST /%b HTTP/1.1\r\nhost: %b\r\ncontent-type: %b\r\n" % (
            path.encode(),
            origin.host_header,
            content_type,
        )
        if authorization:
            head += b"authorization: %b\r\n" % authorization
        if resumes:
            head += resume.HEADER + b": 1\r\n"
        if len(self) >= MAX_ROUTES:
            self.clear()
        route = self[key] = Route(origin, head + b"x-kuwa-request-id: ")
        return route
