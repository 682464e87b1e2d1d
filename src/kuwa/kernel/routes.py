"""Where requests go on a replica, and how each of their heads begins: made once for each replica and path."""

from __future__ import annotations

from kuwa.http.origin import Origin
from kuwa.kernel.replica import Replica, Route
from kuwa.kernel.wires import wire_of
from kuwa.wire import resume


def new_route(replica: Replica, path: str) -> Route:
    """The route of requests for `path`, kept with the replica's facts. Raises Unsupported."""
    facts = replica.facts
    url, content_type = wire_of(replica).target(replica, path)
    origin = Origin.of(url)
    head = b"POST /%b HTTP/1.1\r\nhost: %b\r\ncontent-type: %b\r\n" % (
        url.partition("://")[2].partition("/")[2].encode(),
        origin.host_header,
        content_type,
    )
    if facts.authorization:
        head += b"authorization: %b\r\n" % facts.authorization
    if facts.resumes:
        head += resume.HEADER + b": 1\r\n"
    wire = wire_of(replica)
    route = facts.routes[path] = Route(
        origin, head + b"x-kuwa-request-id: ", own=wire.is_own(replica), plain=wire.is_plain(replica)
    )
    return route
