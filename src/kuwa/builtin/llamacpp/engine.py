"""The supervisor of the llama.cpp child: starts it, watches it, starts it again when it dies, speaks HTTP to it.

Owned by the executor, on its event loop. A request meets either a loaded engine or an EngineLost that says why
there is none; a request that was running when the child died gets EngineLost too. Each start draws a new API key,
so that nobody else on the machine can use the child, and each request has a connection of its own: llama.cpp's
server drops pooled ones after a stream, and closing the connection is how a slot is freed at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec

from kuwa.builtin.llamacpp.child import ChildConfig, Ready
from kuwa.http.client import StreamedResponse, open_stream
from kuwa.wire import sse
from kuwa.wire.errors import (
    BadUpstream,
    ContextLengthExceeded,
    EngineLost,
    InvalidRequest,
    KuwaError,
    NoReplica,
    Unsupported,
    UpstreamLost,
    UpstreamTimeout,
)

log = logging.getLogger(__name__)

TAIL_LINES = 30
MAX_LINE_BYTES = 4096
FIRST_BACKOFF_S = 0.1
LAST_BACKOFF_S = 5.0
MOST_FAILED_LOADS = 8
"""So many starts in a row that did not even load the model, and the engine is given up (after some 15 s)."""
CALL_TIMEOUT_S = 60.0
"""For calls that need no model: rendering a template, tokenizing."""
ENDS_WITHOUT_DONE = ("/infill",)
"""Of llama.cpp's own routes the stream simply ends; a child that dies breaks its framing, which is an error."""
MAX_ANSWER_BYTES = 256 * 1024 * 1024
NOTICE_EVERY_S = 10.0


class LoadFailed(Exception):
    """llama.cpp could not load the model; the message ends with its own words."""


class EngineError(msgspec.Struct, frozen=True):
    """llama.cpp's error object."""

    message: str = ""
    type: str = ""
    n_prompt_tokens: int = 0
    n_ctx: int = 0


class ErrorBody(msgspec.Struct, frozen=True):
    error: EngineError = EngineError()


_ERROR = re.compile(r"[\d.]+ E +|(?=.*GGML_ASSERT)")
"""What an error in llama.cpp's log begins with (the time since its start and the level), or a failed assertion."""

_DATA = b"data: "
_DONE = _DATA + sse.DONE
_ERROR_DATA = b'data: {"error"'

_decode_error = msgspec.json.Decoder(ErrorBody).decode
_decode_ready = msgspec.json.Decoder(Ready).decode


class Child:
    """One start of the child process: from its command line to its end."""

    def __init__(self, process: Process, api_key: str) -> None:
        self._process = process
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
    async def start(cls, config: ChildConfig) -> Child:
        api_key = secrets.token_urlsafe(32)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "kuwa.builtin.llamacpp.child"),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            start_new_session=True,  # Ctrl-C is the executor's to answer: what runs is to end well
        )
        assert process.stdin is not None  # noqa: S101 - it was asked for
        told = msgspec.structs.replace(config, parent=os.getpid(), api_key=api_key)
        process.stdin.write(msgspec.json.encode(told) + b"\n")
        return cls(process, api_key)

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
        """Why the model could not be loaded: of all errors that llama.cpp logs then, the first is the cause."""
        error = next((line for line in self.tail if _ERROR.match(line)), None)
        return _ERROR.sub("", error, count=1) if error is not None else self.last_words()

    def last_words(self) -> str:
        """The end of llama.cpp's log."""
        return " | ".join(list(self.tail)[-3:]) or "it logged nothing"

    async def kill(self) -> None:
        """End the process and wait for its end. It has nothing to save."""
        if self.alive:
            with suppress(ProcessLookupError):
                self._process.kill()
        await self.ended()

    async def _read_stdout(self) -> None:
        async for line in _lines(self._process.stdout):
            with suppress(msgspec.MsgspecError):
                if not self._ready.done():
                    self._ready.set_result(_decode_ready(line))

    async def _read_stderr(self) -> None:
        async for line in _lines(self._process.stderr):
            text = line.decode("utf-8", "replace").rstrip()
            if text:
                self.tail.append(text)
                log.debug("llama.cpp: %s", text)


class Engine:
    """llama.cpp with one model, kept alive from `start` to `stop`."""

    def __init__(self, config: ChildConfig) -> None:
        self._config = config
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
        """llama.cpp's own line about its build; empty where it says nothing."""
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

    async def call(self, path: str, payload: dict[str, Any], *, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """POST `payload` to the child and decode its whole answer. Raises EngineLost and the child's errors."""
        return await self._whole("POST", path, payload, timeout_s)

    async def get(self, path: str) -> Any:
        """What the child says of itself at `/props`, `/slots` and the like. Raises as `call` does."""
        return await self._whole("GET", path, None, CALL_TIMEOUT_S)

    async def events(self, path: str, payload: dict[str, Any]) -> AsyncGenerator[bytes]:
        """POST `payload`, which asks for a stream, and yield the data of its events up to `[DONE]`.

        Closing the generator closes the connection, which frees the child's slot. Raises EngineLost when the
        child dies, and the child's own errors as ours.
        """
        async with self._open("POST", path, payload) as (child, response):
            held = b""
            errs = False  # its own error is the last event that it sends
            async for piece in response:
                # llama.cpp's events are one line of data each. This is the hot path: no reader for all kinds of events.
                *events, held = (held + piece).split(b"\n\n")
                if len(held) > sse.MAX_EVENT_BYTES:
                    raise BadUpstream("The llama.cpp engine sent an event without an end.")
                for event in events:
                    if event == _DONE:
                        return
                    if event.startswith(_DATA):
                        child.answered = True
                        errs = event.startswith(_ERROR_DATA)
                        yield event[len(_DATA) :]
        if path in ENDS_WITHOUT_DONE or errs:
            return
        raise EngineLost("The llama.cpp engine ended its answer without an end.")

    async def _whole(self, method: str, path: str, payload: dict[str, Any] | None, timeout_s: float) -> Any:
        try:
            async with asyncio.timeout(timeout_s), self._open(method, path, payload) as (_, response):
                return msgspec.json.decode(await response.read(MAX_ANSWER_BYTES))
        except (TimeoutError, msgspec.MsgspecError) as error:
            raise BadUpstream(f"The llama.cpp engine gave no sound answer to {path}.") from error

    @asynccontextmanager
    async def _open(
        self, method: str, path: str, payload: dict[str, Any] | None
    ) -> AsyncGenerator[tuple[Child, StreamedResponse]]:
        child = self._child
        if child is None or self._trouble:
            raise EngineLost(self._trouble)
        body = b"" if payload is None else msgspec.json.encode(payload)
        headers = (child.authorization, (b"content-type", b"application/json"))
        try:
            async with open_stream(method, child.url + path, headers=headers, body=body) as response:
                if response.status != 200:
                    raise refusal(response.status, await response.read())
                yield child, response
        except (UpstreamLost, NoReplica, UpstreamTimeout) as error:
            raise EngineLost("The llama.cpp engine died while it was answering; it is being started again.") from error

    async def _load(self) -> Child:
        child = await Child.start(self._config)
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
            log.info("still loading %s (%.0f s)", self._config.model_path, seconds)

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
            self._trouble = f"The llama.cpp engine died and is being started again: {fault}"
            pause = min(FIRST_BACKOFF_S * 2 ** max(0, fruitless + failed - 1), LAST_BACKOFF_S)
            log.error("%s (in %.1f s)", self._trouble, pause)
            await asyncio.sleep(pause)
            try:
                child = await self._load()
            except (LoadFailed, OSError) as error:
                failed += 1
                fault = str(error)
            else:
                log.info("the llama.cpp engine is back (pid %d)", child.pid)
                return child
        self._trouble = f"The llama.cpp engine was given up after {failed} starts in a row: {fault}"
        self.gave_up(self._trouble)
        return None

    async def _end_of(self, child: Child) -> str:
        """Wait until the child has died; how it did and its last words."""
        how = await child.ended()
        return f"{how}; its log ends with: {child.last_words()}"


def _nobody_cares(reason: str) -> None:
    del reason


def refusal(status: int, body: bytes) -> KuwaError:
    """What the child answered with an error status, as an error of ours."""
    try:
        error = _decode_error(body).error
    except msgspec.MsgspecError:
        error = EngineError()
    return engine_error(status, error)


def engine_error(status: int, error: EngineError) -> KuwaError:
    """llama.cpp's error object as an error of ours."""
    message = error.message or f"llama.cpp answered with status {status}."
    if error.type == "exceed_context_size_error":
        return ContextLengthExceeded(
            f"The prompt has {error.n_prompt_tokens} tokens, and the model's context holds {error.n_ctx}. "
            "Shorten the conversation, or start the executor with a larger --context_window.",
            param="messages",
        )
    if error.type == "not_supported_error" or status == 501:
        return Unsupported(message)
    if status in (400, 404, 413, 422):
        return InvalidRequest(message)
    if status in (401, 503):
        return EngineLost(f"The llama.cpp engine is not ready: {message}")
    return BadUpstream(f"The llama.cpp engine failed: {message}")


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
