"""A server that breaks the rules, on purpose and one at a time: what it answers to POST is said by its arguments.

    python hostile_upstream.py PORT KIND

A KIND that is a number is the status of an error in the OpenAI shape. `failing:MODEL` fails for that model, and answers
for every other one.

GET /v1/models is always answered well, so that the kernel takes it for alive. Standard library only.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import sys

EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"word "},"finish_reason":null}]}\n\n'
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


FIXED = {
    "garbage": b"\x00\x01\x02 this is no HTTP \xff\xfe\r\n\r\n",
    "bad_chunk": STREAM + chunk(EVENT) + b"zz\r\nbroken\r\n",
    "bad_first_chunk": STREAM + b"+5\r\nhello\r\n",
    "early_end": STREAM + chunk(EVENT),
    "clean_end_without_finish": STREAM + chunk(EVENT) + b"0\r\n\r\n",
    "html": b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 15\r\n\r\n<h1>Hello</h1>\n",
    "two_lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
    "failing": b"HTTP/1.1 500 Oh\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
    "error_event": STREAM + chunk(b'data: {"error":{"message":"no memory","code":"oom"}}\n\n') + b"0\r\n\r\n",
}


FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
WELL = STREAM + chunk(EVENT) + chunk(FINISH) + b"0\r\n\r\n"


async def _answer(kind: str, writer: asyncio.StreamWriter) -> None:
    if kind.isdigit():
        body = json.dumps({"error": {"message": f"refused with {kind}", "type": "odd", "code": None}}).encode()
        writer.write(b"HTTP/1.1 %s Odd\r\ncontent-length: %d\r\n\r\n%b" % (kind.encode(), len(body), body))
    elif kind in FIXED:
        writer.write(FIXED[kind])
    elif kind == "endless_line":
        writer.write(STREAM + chunk(EVENT))
        for _ in range(200):
            writer.write(chunk(b"data: " + b"x" * 65536))
            await writer.drain()
    elif kind == "endless_head":
        writer.write(b"HTTP/1.1 200 OK\r\n")
        for _ in range(64):
            writer.write(b"x-more: " + b"y" * 8192 + b"\r\n")
            await writer.drain()
    elif kind == "huge_event":
        writer.write(STREAM + chunk(EVENT))
        for _ in range(1024):
            writer.write(chunk(b"z" * 1_000_000))
            await writer.drain()
    elif kind == "reset":
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    elif kind == "vanish":
        writer.write(STREAM + chunk(EVENT))
        await writer.drain()
        _vanish(writer.get_extra_info("socket"))
        await asyncio.sleep(3600)
    await writer.drain()


def _vanish(connected: socket.socket) -> None:
    """From now on nothing that arrives at this socket is seen, not even acknowledged: a filter drops it all."""
    import ctypes

    code = struct.pack("HBBI", 6, 0, 0, 0)  # BPF: return 0
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("HP", 1, ctypes.addressof(buffer))
    connected.setsockopt(socket.SOL_SOCKET, 26, program)  # SO_ATTACH_FILTER


async def main() -> None:
    port, kind = int(sys.argv[1]), sys.argv[2]

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET"):
                    body = json.dumps({"object": "list", "data": []}).encode()
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
                    continue
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                body = json.loads(await reader.readexactly(int(length.partition(b":")[2])))
                sys.stdout.write("asked\n")
                sys.stdout.flush()
                if kind.startswith("failing:"):
                    writer.write(FIXED["failing"] if body["model"] == kind.partition(":")[2] else WELL)
                    await writer.drain()
                    continue
                await _answer(kind, writer)
                if kind != "failing":
                    break
        writer.transport.abort() if kind == "reset" else writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
