"""Keeps an inference engine alive that runs as a server in a process of its own, for executors in front of one.

An executor makes a `Supervisor` on its event loop and says how its child is started. The child loads the model, says
with one line of JSON (`Ready`) on its standard output where it listens, and logs to standard error; it lives as long
as its standard input stays open. A request meets either a loaded engine or an EngineLost that says why there is none.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import msgspec

from kuwa.wire.errors import EngineLost
from kuwa.wire.json import BadJson, decoder

log = logging.getLogger(__name__)

TAIL_LINES = 30
MAX_LINE_BYTES = 4096
FIRST_BACKOFF_S = 0.1
LAST_BACKOFF_S = 5.0
MOST_FAILED_LOADS = 8
"""So many starts in a row that did not even load the model, and the engine is given up (after some 15 s)."""
NOTICE_EVERY_S = 10.0


class LoadFailed(Exception):
    """The engine could not load the model; the message ends with its own words."""


class Ready(msgspec.Struct, frozen=True):
    """The model is loaded, and the engine listens at `url`. `system` is its own line about its build."""

    url: str
    system: str = ""


_decode_ready = decoder(Ready)


class Child:
    """One start of the child process: from its command line to its end."""

    def __init__(self, process: Process, name: str, api_key: str, cause: re.Pattern[str]) -> None:
        self._process = process
        self._name = name
        self._cause = cause
        self._ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.answered = False
        self.authorization = (b"authorization", f"Bearer {api_key}".encode())
        self.url = ""
        self.system = ""
        self._readers = [
            asyncio.create_task(self._read_stdout()),
            asyncio.create_task(self._read_stderr()),
        ]

    @classmethod
    async def start(
        cls, module: str, told: msgspec.Struct, *, name: str, api_key: str, cause: re.Pattern[str]
    ) -> Child:
        """Run `module` as a program, tell it `told` as one line of JSON. What matches `cause` begins a line of its log
        that says why a load has failed."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", module),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            start_new_session=True,  # Ctrl-C is the executor's to answer: what runs is to end well
        )
        assert process.stdin is not None  # noqa: S101 - it was asked for
        with suppress(OSError, RuntimeError):  # killed in the moment of its start (RuntimeError: uvloop): `ended` tells
            process.stdin.write(msgspec.json.encode(told) + b"\n")
        return cls(process, name, api_key, cause)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def loaded(self) -> None:
        """Wait until the model is loaded. Raises LoadFailed if the process ends instead."""
        ended = asyncio.create_task(self.ended())
        try:
            await asyncio.wait((self._ready, ended), return_when=asyncio.FIRST_COMPLETED)
            if not self._ready.done():
                raise LoadFailed(f"{self.load_fault()} ({ended.result()})")
            ready = self._ready.result()
            self.url, self.system = ready.url, ready.system
        finally:
            ended.cancel()

    async def ended(self) -> str:
        """Wait for the process to end; returns how it did."""
        code = await self._process.wait()
        await asyncio.wait(self._readers)
        return f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it ended with status {code}"

    def load_fault(self) -> str:
        """Why the model could not be loaded: of all errors that are logged then, the first is the cause."""
        error = next((line for line in self.tail if self._cause.match(line)), None)
        return self._cause.sub("", error, count=1) if error is not None else self.last_words()

    def last_words(self) -> str:
        """The end of the engine's log."""
        return " | ".join(list(self.tail)[-3:]) or "it logged nothing"

    async def kill(self) -> None:
        """End the process with all that it has started, and wait for its end. It has nothing to save."""
        if self.alive:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        await self.ended()

    async def _read_stdout(self) -> None:
        async for line in _lines(self._process.stdout):
            with suppress(BadJson):
                if not self._ready.done():
                    self._ready.set_result(_decode_ready(line))

    async def _read_stderr(self) -> None:
        async for line in _lines(self._process.stderr):
            text = line.decode("utf-8", "replace").rstrip()
            if text:
                self.tail.append(text)
                log.debug("%s: %s", self._name, text)


class Supervisor:
    """An engine with one model, kept alive from `start` to `stop`. `name` is what people call it."""

    def __init__(self, name: str, model: str, start_child: Callable[[], Awaitable[Child]]) -> None:
        self._name = name
        self._model = model
        self._start_child = start_child
        self._child: Child | None = None
        self._trouble = "The engine has not been started."
        self._keeper: asyncio.Task[None] | None = None
        self.gave_up: Callable[[str], None] = _nobody_cares
        """Called with the reason when the engine dies again and again; it is not started any more then."""

    @property
    def trouble(self) -> str:
        """Why the engine cannot answer now; empty while it can."""
        return self._trouble

    @property
    def system(self) -> str:
        """The engine's own line about its build; empty where it says nothing."""
        return self._child.system if self._child is not None else ""

    @property
    def pid(self) -> int | None:
        """The process id of the child, for people and tests."""
        return self._child.pid if self._child is not None else None

    async def start(self) -> None:
        """Load the model. Raises LoadFailed; afterwards the engine is kept alive until `stop`."""
        self._trouble = "The engine is loading the model."
        child = await self._load()
        self._keeper = asyncio.create_task(self._keep(child))

    async def stop(self) -> None:
        self._trouble = "The engine has been stopped."
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        if self._child is not None:
            await self._child.kill()

    def child(self) -> Child:
        """The child that answers now. Raises EngineLost."""
        if self._child is None or self._trouble:
            raise EngineLost(self._trouble)
        return self._child

    async def _load(self) -> Child:
        child = await self._start_child()
        self._child = child
        notices = asyncio.create_task(self._say_that_it_loads())
        try:
            await child.loaded()
        except BaseException:
            await child.kill()
            raise
        finally:
            notices.cancel()
        self._trouble = ""
        return child

    async def _say_that_it_loads(self) -> None:
        seconds = 0.0
        while True:
            await asyncio.sleep(NOTICE_EVERY_S)
            seconds += NOTICE_EVERY_S
            log.info("still loading %s (%.0f s)", self._model, seconds)

    async def _keep(self, child: Child) -> None:
        """Wait for the child to die and start it again, with longer and longer pauses while it answers nothing."""
        fruitless = 0
        while True:
            fault = await self._end_of(child)
            fruitless = 0 if child.answered else fruitless + 1
            started = await self._start_again(fault, fruitless)
            if started is None:
                return
            child = started

    async def _start_again(self, fault: str, fruitless: int) -> Child | None:
        """Load the model again after `fruitless` starts without an answer. None: given up."""
        failed = 0
        while failed < MOST_FAILED_LOADS:
            self._trouble = f"The {self._name} engine died and is being started again: {fault}"
            pause = min(FIRST_BACKOFF_S * 2 ** max(0, fruitless + failed - 1), LAST_BACKOFF_S)
            log.error("%s (in %.1f s)", self._trouble, pause)
            await asyncio.sleep(pause)
            try:
                child = await self._load()
            except (LoadFailed, OSError) as error:
                failed += 1
                fault = str(error)
            except Exception as error:  # were it to end this task, nobody would start the engine again or say so
                failed += 1
                fault = repr(error)
                log.exception("starting the %s engine failed in a way that Kuwa did not foresee", self._name)
            else:
                log.info("the %s engine is back (pid %d)", self._name, child.pid)
                return child
        self._trouble = f"The {self._name} engine was given up after {failed} starts in a row: {fault}"
        self.gave_up(self._trouble)
        return None

    async def _end_of(self, child: Child) -> str:
        """Wait until the child has died; how it did and its last words."""
        how = await child.ended()
        return f"{how}; its log ends with: {child.last_words()}"


def _nobody_cares(reason: str) -> None:
    del reason


async def _lines(stream: asyncio.StreamReader | None) -> AsyncIterator[bytes]:
    """The lines of a pipe; of an overlong one only its end is kept."""
    rest = b""
    while stream is not None and (data := await stream.read(MAX_LINE_BYTES)):
        *lines, rest = (rest + data).split(b"\n")
        rest = rest[-MAX_LINE_BYTES:]
        for line in lines:
            yield line
    if rest:
        yield rest
