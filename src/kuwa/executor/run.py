"""Runs an executor from its start to its end: sockets, `setup()`, the lease, signals, drain, the exit code.

`LLMExecutor.run` calls `run`. The order of things is here and nowhere else: listen, set up (in a thread, while the
kernel is told `starting`), serve, and on a signal say so, let requests end, unregister, leave.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import signal
import ssl
import sys
import threading
import time
from contextlib import suppress
from enum import IntEnum
from functools import partial
from types import FrameType

from kuwa import __version__
from kuwa.executor.address import Address, Way, bind_address, executor_id, local_addresses, way_to
from kuwa.executor.arguments import Settings, UsageError
from kuwa.executor.failures import SetupFailed
from kuwa.executor.interface import Executor
from kuwa.executor.lease import LeaseLoop
from kuwa.executor.process_title import hide
from kuwa.executor.server import ExecutorServer
from kuwa.http.guard import HostGuard
from kuwa.http.server import CannotListen, Server
from kuwa.http.server import run as run_loop
from kuwa.wire.errors import OPENAI, Draining, InvalidRequest
from kuwa.wire.lease import Dialects, ExecutorState, Load, Registration
from kuwa.wire.lines import LineFormatter, one_line
from kuwa.wire.names import check_access_code, is_loopback

DRAIN_S = 60.0
# What is left after the drain, or after a second signal, ends by itself within this; then the process ends with it.
STOP_S = 10.0
# A setup that ends at once (or fails at once) need not be announced as starting.
QUICK_SETUP_S = 0.3
TOLD_S = 1.0

log = logging.getLogger("kuwa.executor")


class Exit(IntEnum):
    OK = 0
    CUT = 1
    USAGE = 2
    SETUP_FAILED = 4
    REFUSED = 5


class Leave(Exception):
    """The executor ends now, for the reason given, with this exit code."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def run(executor: Executor) -> int:
    """Serve `executor` until a signal ends it; the process's exit code."""
    _log_to_stderr(executor.settings.log)
    hide(executor.invocation, executor.secret_options)
    try:
        return run_loop(_Life(executor).live())
    except Leave as leave:
        if leave.reason:
            sys.stderr.write(f"{executor.prog}: {one_line(leave.reason)}\n")
        return leave.code
    except KeyboardInterrupt:
        return Exit.CUT


def _log_to_stderr(level: str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)


class _Life:
    """One executor process."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.settings = executor.settings
        self.incarnation = time.time_ns()
        self.lease: LeaseLoop | None = None
        self.leaving = False
        self.refusal: asyncio.Future[str]
        self.given_up: asyncio.Future[str]
        self.signals = 0
        self.signalled: asyncio.Event
        self.cut: asyncio.Event
        self._load = _Rate()

    async def live(self) -> int:
        loop = asyncio.get_running_loop()
        self.refusal = loop.create_future()
        self.given_up = loop.create_future()
        self.executor.on_give_up = self._gave_up
        self.signalled, self.cut = asyncio.Event(), asyncio.Event()
        self._loop = loop
        signal.signal(signal.SIGALRM, self._overdue)
        for number in (signal.SIGTERM, signal.SIGINT):
            # Not the event loop's own handler: that one waits for a model's code which holds up the loop.
            signal.signal(number, self._on_signal)
        try:
            self.server = ExecutorServer(self.executor)
        except SetupFailed as error:
            raise why_not(error) from error
        http = await self._listen()
        try:
            started = await self._set_up()
            if started:
                await self._until_told_to_leave()
            return await self._leave(http, started)
        finally:
            if self.lease is not None:
                await asyncio.to_thread(self.lease.close)
            http.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signals += 1
        _alarm(DRAIN_S + STOP_S if self.signals == 1 else STOP_S)
        self._loop.call_soon_threadsafe((self.signalled if self.signals == 1 else self.cut).set)

    def _overdue(self, number: int, frame: FrameType | None) -> None:
        """The last resort: a model's code neither ends nor can be cancelled."""
        log.error("leaving: something of %s did not end when told to; cut", type(self.executor).__name__)
        os._exit(Exit.CUT)

    async def _listen(self) -> Server:
        settings = self.settings
        way = Way if settings.ignore_kernel else partial(_way, settings.kernel_url)
        host = settings.host or way().own
        bind = bind_address(host, local_addresses(host), way)
        http = Server(
            hot=self.server.hot(),
            app=self.server.app(),
            errors=OPENAI,
            errors_of=self.server.errors_of(),
            guard=HostGuard([*settings.allowed_hosts, host], changing=[self.server.abort_path]),
        )
        try:
            port = await http.listen(bind, settings.port or 0, tls=_tls(settings))
        except CannotListen as error:
            raise Leave(Exit.USAGE, str(error)) from error
        scheme = "https" if settings.https or settings.tls_cert else "http"
        self.address = Address(host, port, scheme)
        if not is_loopback(bind):
            log.warning(
                "listening on %s port %d: every program that reaches this address may use the model past the kernel",
                bind,
                port,
            )
        elif not is_loopback(host):
            log.info("listening on %s port %d alone; %s must lead there", bind, port, host)
        return http

    # ---- setup ---------------------------------------------------------------------------------------------

    async def _set_up(self) -> bool:
        """Run `setup()` and `serve_startup()` and announce the executor; False where a signal came first."""
        setup = asyncio.ensure_future(_start_up(self.executor))
        signalled = asyncio.ensure_future(self.signalled.wait())
        try:
            await asyncio.wait([setup, signalled], timeout=QUICK_SETUP_S, return_when=asyncio.FIRST_COMPLETED)
            if not (setup.done() or self.settings.ignore_kernel):
                log.info("setting up; the kernel is told that this executor is starting")
                self._start_lease()
            await asyncio.wait([setup, signalled, self.refusal], return_when=asyncio.FIRST_COMPLETED)
            if self.signalled.is_set() or self.refusal.done():
                self._check_refusal()
                return False
            setup.result()
            for code in self.executor.access_codes:
                check_access_code(code)
        except Exception as error:
            raise why_not(error) from error
        finally:
            setup.cancel()
            signalled.cancel()
        self.server.ready()
        if self.lease is not None:
            self.lease.announce()
        elif not self.settings.ignore_kernel:
            self._start_lease()
        codes = ", ".join(self.executor.access_codes)
        log.info("serving %s at %s/v1, %d at once", codes, self.address.origin, self.settings.concurrency)
        return True

    def _start_lease(self) -> None:
        loop = asyncio.get_running_loop()
        endpoint = self.address.origin + self.settings.executor_path

        def refused(reason: str) -> None:
            loop.call_soon_threadsafe(self._refused, reason)

        try:
            self.lease = LeaseLoop(self.settings, endpoint, self._describe, self._heard, refused)
        except (ssl.SSLError, OSError) as error:
            raise Leave(Exit.USAGE, f"--ca_file {self.settings.ca_file} holds no certificates: {error}") from error
        self.lease.start()

    def _refused(self, reason: str) -> None:
        if not self.refusal.done():
            self.refusal.set_result(reason)

    def _gave_up(self, reason: str) -> None:
        if not self.given_up.done():
            self.given_up.set_result(reason)

    def _check_refusal(self) -> None:
        if self.refusal.done():
            raise Leave(Exit.REFUSED, self.refusal.result())

    # ---- what the kernel is told ---------------------------------------------------------------------------

    def _describe(self) -> Registration:
        """Called from the lease thread: reads, and changes nothing that is not its own."""
        executor, server, origin = self.executor, self.server, self.address.origin
        trouble = executor.healthy() if server.state == "ready" else ""
        state: ExecutorState = "draining" if self.leaving else "starting" if trouble else server.state
        # Before setup() has returned the code may still change; only what the command line or the class says counts.
        known = executor.access_codes if server.state != "starting" else self._early_codes()
        return Registration(
            executor_id=executor_id(origin),
            incarnation=self.incarnation,
            access_codes=list(known),
            dialects=Dialects(openai=origin + "/v1", v1_0=origin + self.settings.executor_path),
            executor=executor.default_name,
            version=__version__,
            state=state,
            concurrency=self.settings.concurrency,
            capabilities=server.capabilities,
            context_length=executor.context_length,
            fingerprint=server.fingerprint,
            load=Load(
                running=server.slots.running,
                waiting=server.slots.waiting,
                tokens_per_s=self._load.per_second(server.chunks, time.monotonic()),
                progress=trouble,
            ),
            ended=list(server.untold),
            started_at=self.incarnation / 1e9,
        )

    def _heard(self, registration: Registration) -> None:
        """The kernel has taken this registration. Called from the lease thread."""
        for ended in registration.ended:
            with suppress(ValueError):  # a newer one may have pushed it out
                self.server.untold.remove(ended)

    def _early_codes(self) -> tuple[str, ...]:
        name = self.executor.LLM_name
        return self.settings.access_codes or ((name,) if name else ())

    # ---- the end -------------------------------------------------------------------------------------------

    async def _until_told_to_leave(self) -> None:
        signalled = asyncio.ensure_future(self.signalled.wait())
        await asyncio.wait([signalled, self.refusal, self.given_up], return_when=asyncio.FIRST_COMPLETED)
        signalled.cancel()

    async def _leave(self, http: Server, started: bool) -> int:
        """Tell the kernel, let the requests under way end, and stop."""
        self.leaving = True
        if not self.signals:
            _alarm(DRAIN_S + STOP_S)
        ended = True
        if started:
            running = self.server.slots.running
            if running:
                log.info("leaving: %d requests may end within %.0f s; a second signal cuts them", running, DRAIN_S)
            if not self.refusal.done():
                await self._tell_kernel()
            ended = await self._drained()
            for job in self.server.cancel_all(Draining("This executor was shut down before the answer was complete.")):
                await job.ended()
            await http.drain(1.0)
            await self.executor.shutdown()
        self._check_refusal()
        if self.given_up.done():
            raise Leave(Exit.SETUP_FAILED, self.given_up.result())
        return Exit.OK if ended else Exit.CUT

    async def _tell_kernel(self) -> None:
        lease = self.lease
        if lease is not None:
            lease.announce()
            await asyncio.to_thread(lease.leave_old_kernel)
            await asyncio.to_thread(lease.wait_told, TOLD_S)

    async def _drained(self) -> bool:
        drain = asyncio.ensure_future(self.server.drain(DRAIN_S))
        cut = asyncio.ensure_future(self.cut.wait())
        await asyncio.wait([drain, cut], return_when=asyncio.FIRST_COMPLETED)
        cut.cancel()
        if drain.done():
            return drain.result()
        drain.cancel()
        return False


def _alarm(seconds: float) -> None:
    """Have `_overdue` called after so long; the latest call counts."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


class _Rate:
    """Chunks per second between two looks."""

    def __init__(self) -> None:
        self._count = 0
        self._at = time.monotonic()

    def per_second(self, count: int, now: float) -> float:
        since, self._at = now - self._at, now
        made, self._count = count - self._count, count
        return round(made / since, 1) if since > 0 else 0.0


async def _start_up(executor: Executor) -> None:
    await _setup(executor)
    await executor.serve_startup()


async def _setup(executor: Executor) -> None:
    """`setup()` in a thread that cannot keep the process alive, or on the event loop where it is `async`."""
    if inspect.iscoroutinefunction(executor.setup):
        await executor.setup()
        return
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def finish(error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def work() -> None:
        error: BaseException | None = None
        try:
            executor.setup()
        except SystemExit as exit_:
            error = Leave(exit_.code if isinstance(exit_.code, int) else Exit.SETUP_FAILED, "setup() ended it")
        except Exception as raised:  # noqa: BLE001 - raised again on the event loop
            error = raised
        loop.call_soon_threadsafe(finish, error)

    threading.Thread(target=work, name="kuwa-setup", daemon=True).start()
    await done


def why_not(error: Exception) -> Leave:
    """An exception out of the start-up as the reason to leave."""
    match error:
        case Leave():
            return error
        case UsageError() | InvalidRequest():
            return Leave(Exit.USAGE, str(error))
        case SetupFailed():
            return Leave(Exit.SETUP_FAILED, str(error))
        case _:
            log.debug("setup failed", exc_info=error)
            hint = "--log debug shows where"
            return Leave(Exit.SETUP_FAILED, f"setup failed: {type(error).__name__}: {error} ({hint})")


def _way(kernel_url: str) -> Way:
    try:
        return way_to(kernel_url)
    except OSError as error:
        raise Leave(
            Exit.USAGE,
            f"cannot find the way to the kernel at {kernel_url} ({error}); check --kernel_url, or give --host an "
            "address of this machine",
        ) from error


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.tls_cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except (ssl.SSLError, OSError) as error:
        raise Leave(Exit.USAGE, f"--tls_cert and --tls_key do not fit: {error}") from error
    return context
