"""Renders the chat template that a request brings along, in a process that may be killed.

Such a template is a stranger's program. It runs in jinja2's sandbox, in a child with bounded memory, and is ended
when it takes too long. `python -m kuwa.executor.renderer` reads one line of JSON (`Job`) after the other from
standard input and answers each with one line (`Rendered`). `Renderer` is the executor's side of it.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from typing import Any, NoReturn

import msgspec

from kuwa.executor.leash import die_with
from kuwa.wire.errors import InvalidRequest
from kuwa.wire.json import decode

MOST_MEMORY = 512 * 1024 * 1024
MOST_TEXT = 4 * 1024 * 1024
MOST_LINE = 64 * 1024 * 1024
TIMEOUT_S = 2.0
START_TIMEOUT_S = 20.0


class Job(msgspec.Struct, frozen=True):
    template: str
    messages: list[dict[str, Any]]
    bos_token: str
    eos_token: str


class Rendered(msgspec.Struct, frozen=True):
    """The `text`, or why there is none."""

    text: str = ""
    error: str = ""


class Renderer:
    """One process that renders, started when it is first needed and again after it had to be killed."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._turn = asyncio.Lock()

    async def render(self, job: Job) -> str:
        """The text of `job`. Raises InvalidRequest for a template that fails, or takes too long or too much."""
        async with self._turn:
            try:
                return await self._render(job)
            except BaseException:
                await self.stop()
                raise

    async def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _render(self, job: Job) -> str:
        process = await self._started()
        assert process.stdin is not None  # noqa: S101 - both were asked for
        assert process.stdout is not None  # noqa: S101
        try:
            async with asyncio.timeout(TIMEOUT_S):
                process.stdin.write(msgspec.json.encode(job) + b"\n")
                await process.stdin.drain()
                line = await process.stdout.readline()
            rendered = decode(line, Rendered)
        except TimeoutError as error:
            raise _refused(f"took more than {TIMEOUT_S:g} s") from error
        except (ConnectionError, ValueError) as error:
            raise _refused("took more memory than it may") from error
        if rendered.error:
            raise _refused(f"failed: {rendered.error}")
        return rendered.text

    async def _started(self) -> Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "kuwa.executor.renderer", str(os.getpid())),
                stdin=PIPE,
                stdout=PIPE,
                limit=MOST_LINE,
                start_new_session=True,
            )
            assert self._process.stdout is not None  # noqa: S101 - it was asked for
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._process.stdout.readline()  # its first line says that it is there
        return self._process


def _refused(why: str) -> InvalidRequest:
    return InvalidRequest(f"The Modelfile's chat template {why}.", param="modelfile")


def main(parent: int) -> None:
    die_with(parent)
    environment = _sandbox()
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    _answer(Rendered())
    for line in sys.stdin.buffer:
        try:
            job = decode(line, Job)
            text = environment.from_string(job.template).render(
                messages=job.messages,
                bos_token=job.bos_token,
                eos_token=job.eos_token,
                add_generation_prompt=True,
                raise_exception=_raise,
            )
            if len(text) > MOST_TEXT:
                raise ValueError(f"it makes {len(text)} characters")
            _answer(Rendered(text=text))
        except MemoryError:
            os._exit(1)
        except Exception as error:  # noqa: BLE001 - a stranger's program may raise anything
            _answer(Rendered(error=f"{type(error).__name__}: {error}"[:500]))


def _sandbox() -> Any:
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # As chat templates are written for: transformers renders them so.
    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])


def _raise(message: object) -> NoReturn:
    raise ValueError(str(message))


def _answer(rendered: Rendered) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(rendered) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))  # noqa: TID251 - a program of its own, which nothing else starts
