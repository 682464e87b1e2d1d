"""A server: listening sockets, the sweep that enforces deadlines, and the drain. Both programs stand on it."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from kuwa.http.asgi import AsgiApp, AsgiHandler
from kuwa.http.connection import Limits, ServerConnection
from kuwa.http.exchange import Handler, Head, unanswered
from kuwa.http.guard import HostGuard
from kuwa.http.heads import HeadMemo
from kuwa.wire.errors import PLAIN, ErrorShape

BACKLOG = 4096
SWEEP_S = 0.25
OWN_FILES = 96  # what a process needs beside its connections, those that it refuses included

T = TypeVar("T")


class CannotListen(Exception):
    """The address could not be taken; the message says which, why, and what to do."""


class Server:
    """Serves `hot` handlers (POST on exactly that path) and an ASGI `app` for everything else.

    A handler gets whole requests and must return at once; it answers through the exchange when it can. `errors` words
    the errors of requests, `errors_of` those for a path of their own.
    """

    def __init__(
        self,
        *,
        hot: Mapping[str, Handler],
        app: AsgiApp | None = None,
        errors: ErrorShape = PLAIN,
        errors_of: Mapping[str, ErrorShape] | None = None,
        guard: HostGuard | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._hot = dict(hot)
        self._errors = errors
        self._errors_of = dict(errors_of or {})
        self._fallback: Handler = AsgiHandler(app) if app is not None else unanswered
        self.guard = guard or HostGuard()
        self.limits = limits or Limits()
        self.connections: set[ServerConnection] = set()
        self.memo: HeadMemo[Head] = HeadMemo()
        self.scheme = "http"
        self.draining = False
        self.now = 0.0
        self._listeners: list[asyncio.Server] = []
        self._sweeper: asyncio.Task[None] | None = None

    async def listen(
        self, host: str, port: int, *, tls: ssl.SSLContext | None = None, inherited: socket.socket | None = None
    ) -> int:
        """Accept connections on `host`:`port` (0: a free one), or on a socket that listens already; return the port.

        Raises CannotListen.
        """
        loop = asyncio.get_running_loop()
        self.now = loop.time()
        self.scheme = "https" if tls is not None else "http"
        try:
            if inherited is not None:
                listener = await loop.create_server(
                    lambda: ServerConnection(self), sock=inherited, backlog=BACKLOG, ssl=tls
                )
            else:
                listener = await loop.create_server(
                    lambda: ServerConnection(self), host, port, backlog=BACKLOG, ssl=tls, reuse_address=True
                )
        except (OSError, OverflowError) as error:
            raise CannotListen(_why(host, port, error)) from error
        self._listeners.append(listener)
        if self._sweeper is None:
            self._sweeper = loop.create_task(self._sweep(), name="kuwa-http-sweep")
        return int(listener.sockets[0].getsockname()[1])

    def handler(self, method: str, path: str) -> Handler:
        """Who answers requests by this method for this path."""
        return self._hot.get(path, self._fallback) if method == "POST" else self._fallback

    def errors(self, path: str) -> ErrorShape:
        """How errors are worded to clients of this path."""
        return self._errors_of.get(path, self._errors)

    async def drain(self, timeout_s: float) -> bool:
        """Stop accepting, let the requests under way end, close. Returns whether all of them ended in time."""
        ended = await self.settle(timeout_s)
        self.close()
        return ended

    async def settle(self, timeout_s: float, *, listening: bool = False) -> bool:
        """Let the requests under way end, then close. Returns whether all of them ended in time.

        `listening`: go on accepting until then, so that whoever comes is told to go elsewhere by the handlers; else
        stop at once, for another process takes those who come.
        """
        self.draining = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        if not listening:
            self._stop_listening()
        while any(connection.busy for connection in self.connections):
            if loop.time() >= deadline:
                return False
            await asyncio.sleep(0.02)
        self._stop_listening()
        for connection in list(self.connections):
            connection.close_if_idle()
        return True

    def _stop_listening(self) -> None:
        for listener in self._listeners:
            listener.close()

    def close(self) -> None:
        """Stop at once: listeners closed, connections cut."""
        self.draining = True
        self._stop_listening()
        for connection in list(self.connections):
            connection.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_S)
            self.now = loop.time()
            for connection in list(self.connections):
                connection.check(self.now)


def connections_that_fit(files_each: int) -> int:
    """How many connections a server can take where each needs so many files. Lets the process open as many files as
    it may."""
    try:
        import resource
    except ImportError:  # Windows has no such bound
        return Limits.connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard and hard != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    if soft == resource.RLIM_INFINITY:
        return Limits.connections
    return max(1, (soft - OWN_FILES) // files_each)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end on uvloop, or on asyncio's own loop where uvloop does not exist."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        from asyncio import new_event_loop
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)


def _why(host: str, port: int, error: Exception) -> str:
    where = f"{host}:{port}"
    code = getattr(error, "errno", None)
    if code == errno.EADDRINUSE:
        return f"Port {port} on {host} is in use by another program. End that program or choose another --port."
    if code == errno.EACCES:
        return f"This user may not listen on {where}. Choose a --port above 1023."
    if code == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        return f"{host} is no address of this machine. Choose another --host."
    return f"Cannot listen on {where}: {error}."
