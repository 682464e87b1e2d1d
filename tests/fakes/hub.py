"""A Hugging Face hub on a loopback port, for `HF_ENDPOINT`: files with ranges, and everything that can go wrong.

A real HTTP server in a thread of the test's own process; the test changes its knobs while it runs.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """`files` of the one repository `owner/repo`. `cuts`: after how many bytes each coming download is cut off.

    `ranges` is what each download asked for, `fetched` which file. All `revisions` hold the same files. `claimed_size`
    is announced instead of the true one, `damaged` files are sent with their first byte changed.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.cuts: list[int] = []
        self.ranges: list[str] = []
        self.claimed_size = 0
        self.damaged: set[str] = set()
        self.knows_ranges = True
        self.revisions = {"main"}
        self.fetched: list[str] = []
        self.pause = threading.Event()
        self.pause.set()
        self.url = ""


@contextmanager
def hub(files: dict[str, bytes]) -> Generator[Hub]:
    """A hub that serves until the end of the block."""
    served = Hub(files)

    class Handler(_Handler):
        hub = served

    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield served
    finally:
        served.pause.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = urlsplit(self.path).path
        tree, files = "/api/models/owner/repo/tree/", "/owner/repo/resolve/"
        prefix = next((known for known in (tree, files) if path.startswith(known)), None)
        if prefix is None:
            self._refuse("RepoNotFound")
            return
        revision, _, name = path.removeprefix(prefix).partition("/")
        if revision not in self.hub.revisions:
            self._refuse("RevisionNotFound")
        elif prefix == tree:
            self._json([_entry(*file) for file in self.hub.files.items()])
        elif name not in self.hub.files:
            self._refuse("EntryNotFound")
        else:
            self._file(name, self.hub.files[name], with_body=with_body)

    def _json(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, code: str) -> None:
        self.send_response(404)
        self.send_header("x-error-code", code)
        self.send_header("x-error-message", "not here")
        self.send_header("content-length", "0")
        self.end_headers()

    def _file(self, name: str, data: bytes, *, with_body: bool) -> None:
        asked = self.headers.get("range", "")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.hub.knows_ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("x-repo-commit", COMMIT)
        self.send_header("etag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("content-length", str(self.hub.claimed_size or len(data) - start))
        self.end_headers()
        if not with_body:
            return
        self.hub.ranges.append(asked)
        self.hub.fetched.append(name)
        if name in self.hub.damaged:
            data = bytes([data[0] ^ 1]) + data[1:]
        end = start + self.hub.cuts.pop(0) if self.hub.cuts else len(data)
        middle = (start + end) // 2
        self.wfile.write(data[start:middle])
        self.hub.pause.wait(30)
        self.wfile.write(data[middle:end])
        self.close_connection = True


def _entry(name: str, data: bytes) -> dict[str, Any]:
    stored = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return {"type": "file", "path": name, "oid": COMMIT, "size": len(data), "lfs": stored}
