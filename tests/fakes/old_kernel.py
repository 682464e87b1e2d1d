"""A kernel of the old v1.0 wire, small and faithful: what our executors may meet in the field.

`python tests/fakes/old_kernel.py [--port N]` prints its URL as one line once it listens, then one line per
call. Every reply is an HTTP 200, even a failure; a name with the same endpoint is registered once and refused
(`Failed`) after that; an endpoint serves one request at a time; an abort is a GET of `<endpoint>/abort`. It
knows nothing of leases, of health or of the form field `kuwa`, and expires nothing. The one thing it does not
copy is the `eval`.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
import threading
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit


@dataclass
class Worker:
    """One endpoint under one name: free, or held by the request of one history and user."""

    endpoint: str
    history_id: str = "-1"
    user_id: str = "-1"
    busy: bool = False

    def hold(self, history_id: str, user_id: str) -> None:
        self.busy, self.history_id, self.user_id = True, history_id, user_id

    def free(self) -> None:
        self.busy, self.history_id, self.user_id = False, "-1", "-1"


class Registry:
    """name → workers. Its own lock: every call comes in a thread."""

    def __init__(self) -> None:
        self.workers: dict[str, list[Worker]] = {}
        self._lock = threading.Lock()

    def register(self, name: str, endpoint: str) -> bool:
        endpoint = endpoint.removesuffix("/")
        with self._lock:
            known = self.workers.setdefault(name, [])
            if any(worker.endpoint == endpoint for worker in known):
                return False
            known.append(Worker(endpoint))
            return True

    def unregister(self, name: str, endpoint: str) -> bool:
        with self._lock:
            known = self.workers.get(name, [])
            kept = [worker for worker in known if _origin(worker.endpoint) != _origin(endpoint)]
            if len(kept) == len(known):
                return False
            self.workers[name] = kept
            if not kept:
                del self.workers[name]
            return True

    def schedule(self, name: str, history_id: str, user_id: str) -> str:
        with self._lock:
            known = self.workers.get(name, [])
            if not known:
                return "NOMACHINE"
            for worker in known:
                if not worker.busy:
                    worker.hold(history_id, user_id)
                    return "READY"
            return "BUSY"

    def take(self, name: str, history_id: str, user_id: str) -> Worker | None:
        """The worker that was reserved for this history and user, else a free one, which is held then."""
        with self._lock:
            known = self.workers.get(name, [])
            for worker in known:
                if worker.busy and (worker.history_id, worker.user_id) == (history_id, user_id):
                    return worker
            for worker in known:
                if not worker.busy:
                    worker.hold(history_id, user_id)
                    return worker
            return None

    def held_by(self, history_ids: list[int], user_id: str) -> list[str]:
        """The endpoints that work for one of these histories of this user."""
        wanted = {str(history_id) for history_id in history_ids}
        with self._lock:
            return [
                worker.endpoint
                for workers in self.workers.values()
                for worker in workers
                if worker.busy and worker.history_id in wanted and worker.user_id == user_id
            ]

    def page(self) -> dict[str, list[list[object]]]:
        with self._lock:
            return {
                name: [[w.endpoint, "BUSY" if w.busy else "READY", int(w.history_id), int(w.user_id)] for w in workers]
                for name, workers in self.workers.items()
            }


def _origin(endpoint: str) -> tuple[str, str]:
    parts = urlsplit(endpoint)
    return parts.scheme, parts.netloc


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: Registry

    def do_GET(self) -> None:
        if self.path == "/v1.0/worker/list":
            self._text(json.dumps(list(self.registry.workers)), kind="application/json")
        elif self.path == "/v1.0/worker/debug":
            self._text(f"<html><textarea>{json.dumps(self.registry.page())}</textarea></html>", kind="text/html")
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        form = {name: values[-1] for name, values in parse_qs(self.rfile.read(length).decode()).items()}
        route = {
            "/v1.0/worker/register": self._register,
            "/v1.0/worker/unregister": self._unregister,
            "/v1.0/worker/schedule": self._schedule,
            "/v1.0/chat/completions": self._chat,
            "/v1.0/chat/abort": self._abort,
        }.get(self.path)
        if route is None:
            self.send_error(404)
            return
        route(form)

    def _register(self, form: dict[str, str]) -> None:
        name, endpoint = form.get("name"), form.get("endpoint")
        done = bool(name and endpoint and self.registry.register(name, endpoint))
        self._say("register", name, endpoint, done)
        self._text("Success" if done else "Failed")

    def _unregister(self, form: dict[str, str]) -> None:
        name, endpoint = form.get("name"), form.get("endpoint")
        done = bool(name and endpoint and self.registry.unregister(name, endpoint))
        self._say("unregister", name, endpoint, done)
        self._text("Success" if done else "Failed")

    def _schedule(self, form: dict[str, str]) -> None:
        self._text(self.registry.schedule(form["name"], form["history_id"], form["user_id"]))

    def _chat(self, form: dict[str, str]) -> None:
        worker = self.registry.take(form.get("name", ""), form.get("history_id", ""), form.get("user_id", ""))
        if worker is None:
            self._say("chat", form.get("name"), "no machine")
            self._text("")
            return
        try:
            self._relay(worker.endpoint, form)
        finally:
            worker.free()

    def _relay(self, endpoint: str, form: dict[str, str]) -> None:
        parts = urlsplit(endpoint)
        upstream = HTTPConnection(parts.netloc, timeout=60)
        try:
            headers = {"content-type": "application/x-www-form-urlencoded"}
            upstream.request("POST", parts.path, urlencode(form), headers)
            response = upstream.getresponse()
            self._say("chat", form.get("name"), endpoint, response.status)
            if response.status != 200:
                self._text("")
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            while piece := response.read1(65536):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
        except OSError as error:
            self._say("chat", form.get("name"), endpoint, type(error).__name__)
            self._text("")
        finally:
            upstream.close()

    def _abort(self, form: dict[str, str]) -> None:
        for endpoint in self.registry.held_by(ast.literal_eval(form["history_id"]), form["user_id"]):
            parts = urlsplit(endpoint)
            worker = HTTPConnection(parts.netloc, timeout=10)
            try:
                worker.request("GET", parts.path + "/abort")
                self._say("abort", endpoint, worker.getresponse().read().decode())
            finally:
                worker.close()
        self._text("Success")

    def _text(self, text: str, kind: str = "text/plain") -> None:
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _say(self, *words: object) -> None:
        sys.stdout.write(" ".join(map(str, words)) + "\n")
        sys.stdout.flush()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """The lines of `_say` are the log."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is no fault of the server's: no traceback in the log."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    port = parser.parse_args().port
    handler = type("BoundHandler", (Handler,), {"registry": Registry()})
    with Server(("127.0.0.1", port), handler) as server:
        sys.stdout.write(f"http://127.0.0.1:{server.server_port}\n")
        sys.stdout.flush()
        server.serve_forever()


if __name__ == "__main__":
    main()
