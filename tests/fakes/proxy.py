"""An HTTP proxy that opens tunnels, run as a process of its own, with a provider at https behind it.

    python tests/fakes/proxy.py --target PORT --certificate PEM [--user NAME:PASSWORD]

prints the proxy's port as one line, then each line it is asked with. Wherever a tunnel should lead, it leads to a TLS
server with that certificate, which passes everything on to 127.0.0.1:PORT. Standard library only.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import ssl
import sys


async def splice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    """Pass bytes both ways until either side ends."""
    far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()

    ways = [asyncio.ensure_future(pump(reader, far_writer)), asyncio.ensure_future(pump(far_reader, writer))]
    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    for each in (writer, far_writer):
        each.close()
    await asyncio.wait(ways)


async def serve(target: int, certificate: str, user: str) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    credentials = b"proxy-authorization: basic " + base64.b64encode(user.encode()).lower()

    async def secured(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await splice(reader, writer, target)

    async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        sys.stdout.write(head.partition(b"\r\n")[0].decode() + "\n")
        sys.stdout.flush()
        if user and credentials not in head.lower():
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
        elif head.startswith(b"CONNECT "):
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await splice(reader, writer, front.sockets[0].getsockname()[1])
        else:
            writer.write(b"HTTP/1.1 405 Method Not Allowed\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    front = await asyncio.start_server(secured, "127.0.0.1", 0, ssl=context)
    proxy = await asyncio.start_server(asked, "127.0.0.1", 0)
    sys.stdout.write(f"{proxy.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await proxy.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description="An HTTP proxy for tests.")
    parser.add_argument("--target", type=int, required=True)
    parser.add_argument("--certificate", required=True)
    parser.add_argument("--user", default="")
    args = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(args.target, args.certificate, args.user))


if __name__ == "__main__":
    main()
