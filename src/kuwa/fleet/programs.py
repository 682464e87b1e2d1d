"""Which programs one `kuwa up` consists of, and their command lines. Pure: `kuwa.fleet.up` starts them,
`kuwa.fleet.supervision` decides when."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from kuwa.fleet.config import ON_THE_HUB, Settings
from kuwa.wire.names import MAX_ACCESS_CODE
from kuwa.wire.report import WELCOME

KERNEL = "kernel"
WELCOME_FILE = "welcome-file"

Kind = Literal["kernel", "task", "executor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One program to run as `python -m MODULE ARGUMENT…`.

    A task runs once, to its end. `needs` are the names of programs that must be ready (a task: done) before this
    one starts. `access_code` and `executor` say what an executor serves and which one it is.
    """

    name: str
    kind: Kind
    module: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()
    access_code: str = ""
    executor: str = ""


def programs(settings: Settings, *, gguf_engine: bool) -> list[Program]:
    """The programs of `settings` in the order of their start.

    Without the engine for GGUF files (`gguf_engine`) those that need it are left out.
    """
    plan = [_kernel(settings)]
    if settings.defaults:
        plan += [_executor(settings, "debug"), _executor(settings, "dummy")]
    if settings.defaults and gguf_engine:
        plan += _welcome(settings)
    if gguf_engine:
        for model in settings.models:
            code = access_code_of(model, {program.name for program in plan})
            plan.append(_gguf(settings, code, model))
    return plan


def access_code_of(model: str, taken: Collection[str]) -> str:
    """The access code a GGUF file is served under: its name, made valid, numbered where it is taken already."""
    name = PurePosixPath(model.rpartition("?")[2]).stem if model.startswith(ON_THE_HUB) else Path(model).stem
    stem = "".join(c if c.isprintable() and not c.isspace() and c != "," else "-" for c in name)
    stem = stem[: MAX_ACCESS_CODE - 4] or "gguf"
    codes = [stem, *(f"{stem}-{number}" for number in range(2, len(taken) + 2))]
    return next(code for code in codes if code not in taken)


def _kernel(settings: Settings) -> Program:
    return Program(name=KERNEL, kind="kernel", module="kuwa.kernel.cli", arguments=("--port", str(settings.port)))


def _executor(
    settings: Settings, executor: str, *options: str, access_code: str = "", needs: tuple[str, ...] = ()
) -> Program:
    code = access_code or executor
    return Program(
        name=code,
        kind="executor",
        module="kuwa.executor.cli",
        arguments=(executor, f"--access_code={code}", "--kernel_url", settings.kernel_url + "/", *options),
        needs=(KERNEL, *needs),
        access_code=code,
        executor=executor,
    )


def _gguf(settings: Settings, code: str, model: str, needs: tuple[str, ...] = ()) -> Program:
    return _executor(settings, "llamacpp", "--model_path", model, access_code=code, needs=needs)


def _welcome(settings: Settings) -> list[Program]:
    path = str(settings.folders.models / "welcome.gguf")
    maker = Program(
        name=WELCOME_FILE,
        kind="task",
        module="kuwa.builtin.llamacpp.maker",
        arguments=("welcome", path),
    )
    return [maker, _gguf(settings, WELCOME, path, needs=(WELCOME_FILE,))]
