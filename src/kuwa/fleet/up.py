"""The I/O of `kuwa up`: starts processes, waits for their ends, asks the kernel who is ready, hears signals.
What follows from all that is decided by `kuwa.fleet.supervision`. Called by `kuwa.cli`."""

from __future__ import annotations

import asyncio
import errno
import importlib.util
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from kuwa.client import Client, Report
from kuwa.fleet.config import ON_THE_HUB, Settings
from kuwa.fleet.programs import KERNEL, Program, programs
from kuwa.fleet.screen import Screen, Served, rows_of
from kuwa.fleet.supervision import (
    Abandoned,
    Action,
    Died,
    Kill,
    News,
    Ready,
    Settled,
    Start,
    Supervision,
    Terminate,
)
from kuwa.home import DEFAULT_PORT
from kuwa.wire.errors import KuwaError
from kuwa.words import words_in

LOOK_EVERY_S = 0.2
CANNOT_START = 1
# What a shell says of a command that could not be executed.
NOT_EXECUTABLE = 126
PRIVATE_FOLDER = 0o700
PRIVATE_FILE = 0o600
ENGINE_PARTS = ("xllamacpp", "gguf", "numpy")


def up(settings: Settings) -> int:
    """Run the fleet until it is told to end. Returns the exit code: 0, or 1 where it could not serve."""
    screen = Screen(settings)
    problem = obstacle(settings)
    if problem is not None:
        screen.problem(problem)
        return CANNOT_START
    gguf_engine = all(importlib.util.find_spec(part) is not None for part in ENGINE_PARTS)
    if not gguf_engine and (settings.defaults or settings.models):
        screen.note(words_in(settings.language).up.no_gguf_engine)
    elif any(model.startswith(ON_THE_HUB) for model in settings.models):
        screen.note(words_in(settings.language).up.downloads.format(logs=settings.folders.logs(settings.port)))
    fleet = Fleet(settings, programs(settings, gguf_engine=gguf_engine), screen)
    return asyncio.run(fleet.run())


def obstacle(settings: Settings) -> str | None:
    """Why nothing can be started at all, in one line that says what to do; None where nothing is in the way."""
    words = words_in(settings.language)
    for model in settings.models:
        if not model.startswith(ON_THE_HUB) and not Path(model).is_file():
            return words.up.no_such_model.format(path=model)
    logs = settings.folders.logs(settings.port)
    for folder in (logs, settings.folders.models):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if folder == logs:
                # An error in a log may say what a user has asked.
                folder.chmod(PRIVATE_FOLDER)
        except OSError as error:
            return words.up.no_folder.format(path=folder, reason=error.strerror)
    error = _try_port(settings.port)
    if error is None:
        return None
    if error.errno != errno.EADDRINUSE:
        return words.up.port_refused.format(port=settings.port, reason=error.strerror)
    other = next((p for p in range(settings.port + 1, 65536) if _try_port(p) is None), DEFAULT_PORT)
    whose = words.up.by_kernel if asyncio.run(Client(settings.kernel_url).is_live()) else ""
    return words.up.port_taken.format(port=settings.port, by_whom=whose, other=other)


def _try_port(port: int) -> OSError | None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", port))
        except OSError as error:
            return error
    return None


class Fleet:
    """The processes of one `kuwa up`."""

    def __init__(self, settings: Settings, plan: list[Program], screen: Screen) -> None:
        self._settings = settings
        self._plan = plan
        self._screen = screen
        self._client = Client(settings.kernel_url)
        self._logs = settings.folders.logs(settings.port)
        self._supervision = Supervision(plan, time.monotonic())
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._something_happened = asyncio.Event()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._told_to_end)
        async with asyncio.TaskGroup() as tasks:
            looking = tasks.create_task(self._look_for_readiness())
            await self._supervise(tasks)
            looking.cancel()
        self._screen.ended()
        return CANNOT_START if self._supervision.failed else 0

    async def _supervise(self, tasks: asyncio.TaskGroup) -> None:
        supervision = self._supervision
        while True:
            for action in supervision.step(time.monotonic()):
                await self._do(action, tasks)
            for news in supervision.take_news():
                await self._tell(news)
            if supervision.finished:
                return
            self._screen.starting([] if supervision.stopping else supervision.pending())
            await self._next_event()

    async def _next_event(self) -> None:
        at = self._supervision.next_step_at()
        timeout_s = None if at is None else max(0.0, at - time.monotonic())
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._something_happened.wait()
        self._something_happened.clear()

    def _told_to_end(self) -> None:
        self._screen.still()
        if not self._supervision.stopping:
            self._screen.ending()
        self._supervision.stop(time.monotonic())
        self._something_happened.set()

    async def _look_for_readiness(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            awaited = self._supervision.starting()
            codes = {program.access_code: program.name for program in awaited if program.kind == "executor"}
            if any(program.kind == "kernel" for program in awaited):
                if await self._client.is_live():
                    self._is_ready(KERNEL)
            elif codes:
                report = await self._report()
                for code, replica in report.rows() if report is not None else ():
                    if replica.state_at(code) == "ready" and code in codes:
                        self._is_ready(codes[code], replica.since_s)

    def _is_ready(self, name: str, since_s: float = 0.0) -> None:
        self._supervision.ready(name, time.monotonic(), since_s)
        self._something_happened.set()

    async def _do(self, action: Action, tasks: asyncio.TaskGroup) -> None:
        match action:
            case Start(program):
                await self._start(program, tasks)
            case Terminate(program):
                with suppress(ProcessLookupError):
                    self._processes[program.name].terminate()
            case Kill(program):
                _kill_group(self._processes[program.name].pid)

    async def _start(self, program: Program, tasks: asyncio.TaskGroup) -> None:
        try:
            with _fresh_log(self._log(program)) as log:
                process = await asyncio.create_subprocess_exec(
                    *_command(program),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=log,
                    stderr=asyncio.subprocess.STDOUT,
                    process_group=0,
                )
        except OSError as error:
            self._screen.problem(f"{program.name}: {error}")
            self._supervision.exited(program.name, NOT_EXECUTABLE, time.monotonic())
            self._something_happened.set()
            return
        self._processes[program.name] = process
        tasks.create_task(self._await_end(program, process))

    async def _await_end(self, program: Program, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        # What it started itself shares its process group, and must not outlive it.
        _kill_group(process.pid)
        self._supervision.exited(program.name, code, time.monotonic())
        self._something_happened.set()

    async def _tell(self, news: News) -> None:
        match news:
            case Ready():
                self._screen.ready(news)
            case Died():
                self._screen.died(news, self._log(news.program))
                if news.program.name == KERNEL and news.again_in_s is None:
                    self._screen.kernel_lost()
            case Abandoned():
                self._screen.abandoned(news)
            case Settled():
                self._screen.still()
                await self._show_served()

    async def _report(self) -> Report | None:
        """The kernel's report; None if it does not answer."""
        try:
            return await self._client.report()
        except KuwaError:
            return None

    async def _show_served(self) -> None:
        """Everything that the kernel serves, and the executors of ours that it does not know (yet); ours first."""
        report = await self._report()
        rows = rows_of(report)
        known = {row.access_code for row in rows}
        ours = [program for program in self._plan if program.kind == "executor"]
        missing = [program for program in ours if program.access_code not in known]
        rows += [Served(p.access_code, p.executor, self._supervision.phase(p.name), "") for p in missing]
        order = {program.access_code: position for position, program in enumerate(ours)}
        rows.sort(key=lambda row: order.get(row.access_code, len(order)))
        self._screen.served(rows, report.suggestion() if report is not None else None, self._logs)

    def _log(self, program: Program) -> Path:
        return self._logs / f"{program.name.replace('/', '_')}.log"


def _command(program: Program) -> list[str]:
    """Its command line: output unbuffered, and nothing imported from the folder one happens to stand in."""
    return [sys.executable, "-P", "-u", "-m", "kuwa.fleet.leash", program.module, *program.arguments]


def _fresh_log(path: Path) -> BinaryIO:
    """A new log at `path`; the one of the run before is kept beside it. Both are for this user's eyes alone."""
    if os.path.lexists(path):
        before = path.replace(path.with_name(path.name + ".1"))
        if not before.is_symlink():
            before.chmod(PRIVATE_FILE)
    # As a new file: whoever had opened the one before does not read this one.
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, PRIVATE_FILE), "ab")


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
