"""Builds the kernel of its parts, holds the one table of all its routes, and serves until told to stop."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager

import psutil
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kuwa.http.connection import Limits
from kuwa.http.guard import HostGuard
from kuwa.http.server import CannotListen, Server, connections_that_fit
from kuwa.http.upstream import UpstreamPool, tls_context
from kuwa.kernel import log as kernel_log
from kuwa.kernel.accounting import Ledger
from kuwa.kernel.api.errors import http_error, kuwa_error
from kuwa.kernel.api.front import FrontPage
from kuwa.kernel.api.ids import WithRequestIds
from kuwa.kernel.api.status import StatusApi
from kuwa.kernel.api.workers import WorkerApi
from kuwa.kernel.chat import Chat
from kuwa.kernel.dialects import v1
from kuwa.kernel.dialects.dialect import Dialect, Entrance
from kuwa.kernel.dialects.openai import ROUTES, OpenAIDialect
from kuwa.kernel.dispatcher import Dispatcher
from kuwa.kernel.health import TickingClock, Watch
from kuwa.kernel.metrics import Collector, Metrics, exposition_of
from kuwa.kernel.registry import Registry
from kuwa.kernel.report import build_report
from kuwa.kernel.settings import BadSetting, Settings
from kuwa.kernel.trust import EndpointRule
from kuwa.wire.errors import OPENAI, Draining, KuwaError, MethodNotAllowed
from kuwa.wire.names import RequestIds
from kuwa.wire.report import Report

TOLD_S = 1.0  # how long clients may take to hear that their answer was cut

REJOIN_S = 4.0  # a renewal is due every 2 s, and tried again at least every second

DialectRoute = tuple[Dialect, str]
"""A client dialect, and the route below a replica's base URL that its requests go to."""

DIALECT_ROUTES: Mapping[str, DialectRoute] = {
    **{"/v1" + route: (OpenAIDialect(), route) for route in ROUTES},
    v1.CHAT_PATH: (v1.V1Dialect(), "/chat/completions"),
}
"""Every path that a model answers."""

log: structlog.stdlib.BoundLogger = structlog.get_logger("kuwa.kernel")


class Kernel:
    """Every part of one kernel, made and connected. Nothing runs before `listen`.

    `dialects` are those of `/v1` and `/v1.0` beside any others.
    """

    def __init__(self, settings: Settings, dialects: Mapping[str, DialectRoute] = DIALECT_ROUTES) -> None:
        tls = _tls(settings)
        clock = TickingClock()
        ids = RequestIds()
        self.settings = settings
        self.registry = Registry()
        self.dispatcher = Dispatcher(self.registry, policies=settings.policies)
        self.metrics = Metrics()
        self.ledger = Ledger(self.metrics)
        self.pool = UpstreamPool(tls=tls)
        self.chat = Chat(
            registry=self.registry,
            dispatcher=self.dispatcher,
            pool=self.pool,
            ledger=self.ledger,
            clock=clock,
            first_token_s=settings.first_token_s,
        )
        self.entrances = {path: Entrance(self.chat, ids, dialect, route) for path, (dialect, route) in dialects.items()}
        self.abort = v1.AbortRoute(self.chat.abort)
        self.workers = WorkerApi(
            self.registry,
            self.dispatcher,
            EndpointRule(settings.allowed_executors, own_addresses),
            report=self.report,
            draining=lambda: self.chat.draining,
            late_usage=self.ledger.late_usage,
        )
        self.front = FrontPage(self.report)
        self.status = StatusApi(
            self.registry,
            self.dispatcher,
            exposition_of(Collector(self.metrics, self.registry, self.dispatcher)),
            request_status=self.chat.status,
            cancel=self.chat.cancel,
            draining=lambda: self.chat.draining,
            clock_offset=time.time() - clock.now,
        )
        self.watch = Watch(
            self.registry, self.dispatcher, clock=clock, sweeps=(self.chat.sweep, self.pool.sweep), tls=tls
        )
        hot, cold = routes(self)
        app = WithRequestIds(application(cold), ids)
        # Each may need a second connection, to its replica.
        limits = Limits(connections=connections_that_fit(2))
        self.server = Server(
            hot=hot,
            app=app,
            errors=OPENAI,
            errors_of={path: handler.dialect for path, handler in hot.items()},
            guard=HostGuard(settings.allowed_hosts),
            limits=limits,
        )
        for upstream in settings.upstreams:
            authorization = f"Bearer {upstream.key}".encode() if upstream.key else b""
            self.registry.add_upstream(
                upstream.access_code, upstream.base_url, upstream.model, authorization, clock.now
            )

    def report(self) -> Report:
        """The state of this moment."""
        return build_report(self.registry, self.dispatcher, draining=self.chat.draining, now=time.monotonic())

    async def listen(self) -> int:
        """Begin to serve; returns the port. Raises CannotListen."""
        settings = self.settings
        inherited = _inherited(settings.listen_fd) if settings.listen_fd >= 0 else None
        if inherited is not None:
            # Executors renew within seconds; whoever comes before them waits instead of being turned away.
            self.dispatcher.expect_replicas(time.monotonic() + REJOIN_S)
        return await self.server.listen(settings.host, settings.port, inherited=inherited)

    def refuse(self) -> None:
        """Refuse new requests from this moment on. On an inherited socket the next kernel is to take them: there it
        is `drain` that first stops accepting."""
        self.chat.draining = self.settings.listen_fd < 0

    async def drain(self) -> bool:
        """Refuse new requests, let those under way end, and tell those that do not. Whether all ended in time."""
        self.chat.draining = True
        # With an inherited socket the next kernel takes those who come.
        ended = await self.server.settle(self.settings.drain_s, listening=self.settings.listen_fd < 0)
        if not ended:
            self.chat.end_all(Draining("This kernel was shut down before the answer was complete."))
            await self.server.settle(TOLD_S)
        return ended

    def close(self) -> None:
        """Cut what is left."""
        self.server.close()
        self.pool.close()


def routes(kernel: Kernel) -> tuple[dict[str, Entrance | v1.AbortRoute], list[Route]]:
    """Every route: those that bypass the framework (POST on exactly that path), and all others."""
    hot: dict[str, Entrance | v1.AbortRoute] = {**kernel.entrances, v1.ABORT_PATH: kernel.abort}
    workers, status = kernel.workers, kernel.status
    cold = [
        Route("/", kernel.front.page),
        Route("/health", status.health),
        Route("/livez", status.live),
        Route("/readyz", status.ready),
        Route("/metrics", status.metrics),
        Route("/v1/models", status.models),
        Route("/v1/models/{id:path}", status.model),
        Route("/v1/requests/{id}", status.request),
        Route("/v1/requests/{id}/cancel", status.cancel, methods=["POST"]),
        Route("/v1.0/worker/register", workers.register, methods=["POST"]),
        Route("/v1.0/worker/unregister", workers.unregister, methods=["POST"]),
        Route("/v1.0/worker/schedule", workers.schedule, methods=["POST"]),
        Route("/v1.0/worker/list", workers.list),
        Route("/v1.0/worker/debug", workers.debug, methods=["GET", "POST"]),
        # A hot path comes here only by another method than POST.
        *(Route(path, _only_post, methods=["POST"]) for path in hot),
    ]
    return hot, cold


async def _only_post(request: Request) -> Response:
    raise MethodNotAllowed(f"{request.url.path} takes POST only.")


def application(cold: list[Route]) -> Starlette:
    """The routes that are no hot path, as an ASGI application that answers every error in the OpenAI shape."""
    app = Starlette(
        routes=cold,
        exception_handlers={HTTPException: http_error, KuwaError: kuwa_error, Exception: kuwa_error},
    )
    # A redirect would be built from the request's Host; a path is either a route or it is none.
    app.router.redirect_slashes = False
    return app


async def serve(settings: Settings, dialects: Mapping[str, DialectRoute] = DIALECT_ROUTES) -> int:
    """Run a kernel until SIGTERM or SIGINT; returns the exit code. Raises BadSetting, CannotListen."""
    kernel_log.configure(settings.log_level)
    kernel = Kernel(settings, dialects)
    stopping = asyncio.Event()
    with _signals(stopping, kernel.refuse, kernel.close):
        port = await kernel.listen()
        # The watch comes first: an executor's first renewal must find the clock running.
        watch = asyncio.create_task(kernel.watch.run(), name="kuwa-watch")
        _announce(settings, port)
        stopped = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait((watch, stopped), return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                log.critical("the kernel's watch failed; stopping", exc_info=watch.exception())
                return 1
            log.info("stopping: requests under way may end", seconds=settings.drain_s)
            if not await kernel.drain():
                log.warning("requests were still under way when the time to stop was over")
            return 0
        finally:
            watch.cancel()
            stopped.cancel()
            kernel.close()


@contextmanager
def _signals(stopping: asyncio.Event, at_first: Callable[[], None], at_once: Callable[[], None]) -> Generator[None]:
    """The first SIGTERM or SIGINT calls `at_first` and sets `stopping`; the next one ends everything at once."""

    def stop() -> None:
        if stopping.is_set():
            at_once()
        else:
            at_first()
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _announce(settings: Settings, port: int) -> None:
    """One line on standard output for the person or the program that started the kernel."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    sys.stdout.write(f"Kuwa kernel: http://{host}:{port}\n")
    sys.stdout.flush()
    if settings.insecure_no_auth:
        log.warning("--insecure_no_auth: everyone who reaches this address may use every model", host=settings.host)


def _tls(settings: Settings) -> ssl.SSLContext:
    try:
        return tls_context(settings.ca_file or None)
    except OSError as error:
        raise BadSetting(f"--ca_file {settings.ca_file}: it holds no certificates in PEM form ({error}).") from error


def _inherited(descriptor: int) -> socket.socket:
    try:
        inherited = socket.socket(fileno=descriptor)
        inherited.getsockname()
    except OSError as error:
        raise CannotListen(f"--listen_fd {descriptor}: there is no listening socket ({error.strerror}).") from error
    return inherited


def own_addresses() -> Iterator[str]:
    """The names and addresses by which executors on this machine may call it."""
    yield socket.gethostname()
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family in (socket.AF_INET, socket.AF_INET6):
                yield address.address.partition("%")[0]
