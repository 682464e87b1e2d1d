"""Coverage-guided fuzzing of what reads bytes: the server connection, the chunk decoder, the event reader.

    pip install atheris
    PYTHONPATH=src:tests python tests/fuzz/connection.py tests/fuzz/corpus -max_total_time=600

Not part of any other run; what it finds becomes a unit test. The first byte says how the rest is split.
"""

from __future__ import annotations

import contextlib
import sys

import atheris  # pyright: ignore[reportMissingImports] - installed by hand, see above

with atheris.instrument_imports(include=["kuwa"]):
    from kuwa.http.connection import ServerConnection
    from kuwa.http.exchange import Exchange
    from kuwa.http.framing import BadFraming, ChunkDecoder, parse_head, unframe, whole_chunks
    from kuwa.http.server import Server
    from kuwa.wire.sse import EventTooLong, SseReader

from unit.http.transport import Transport


def echo(exchange: Exchange) -> None:
    exchange.respond(200, exchange.body)


def one_input(data: bytes) -> None:
    step = (data[0] if data else 0) or 4096
    pieces = [data[start : start + step] for start in range(1, len(data), step)]
    connection = ServerConnection(Server(hot={"/hot": echo}))
    connection.connection_made(Transport())
    for piece in pieces:
        connection.data_received(piece)
    connection.check(1e9)
    connection.connection_lost(None)
    decoder, reader = ChunkDecoder(), SseReader(max_event_bytes=4096)
    with contextlib.suppress(BadFraming, EventTooLong):
        for piece in pieces:
            list(reader.feed(decoder.feed(piece)))
    if whole_chunks(data[1:]):
        unframe(data[1:])
    with contextlib.suppress(BadFraming):
        parse_head(data[1:])


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
