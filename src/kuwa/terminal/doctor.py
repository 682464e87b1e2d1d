"""`kuwa doctor`: looks at this machine and its kernel, and says what needs doing. Called by `kuwa.cli`.

This module looks and shows; what follows from what it saw is decided by `kuwa.terminal.findings`.
"""

from __future__ import annotations

import asyncio
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import aclosing
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from kuwa import __version__, clash
from kuwa.client import Client, NoKernel
from kuwa.terminal.config import Setting
from kuwa.terminal.findings import (
    Asked,
    Extra,
    Finding,
    KernelSeen,
    Machine,
    answer_finding,
    kernel_findings,
    machine_findings,
    whom_to_ask,
)
from kuwa.wire.errors import KuwaError
from kuwa.wire.names import is_loopback
from kuwa.words import Words, words_in

if TYPE_CHECKING:
    from rich.console import Console

ENGINE = "xllamacpp"
ENGINE_TIMEOUT_S = 60
ANSWER_TIMEOUT_S = 60.0
QUESTION = "Are you there?"
TRIED_PORTS = 100
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
CGROUP_USED = Path("/sys/fs/cgroup/memory.current")


def doctor(setting: Setting) -> int:
    """Look at everything, say what was found; 1 where something needs doing, else 0."""
    from rich.console import Console

    words = words_in(setting.language)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    to_do = 0
    for finding in _findings(setting, words):
        _show(console, words, finding)
        to_do += finding.needs_doing
    console.print()
    if to_do:
        console.print(words.doctor.things_to_do.format(count=to_do), style="bold red")
        return 1
    console.print(words.doctor.all_well, style="bold green")
    return 0


def _show(console: Console, words: Words, finding: Finding) -> None:
    if finding.needs_doing:
        console.print(f"{words.doctor.to_do}  {finding.what}", style="bold red")
    else:
        console.print(f"{words.doctor.fine}  {finding.what}" if not finding.do else f"--  {finding.what}")
    for line in finding.do.splitlines():
        console.print(f"    → {line.strip()}", style="" if finding.needs_doing else "dim")


def _findings(setting: Setting, words: Words) -> Iterator[Finding]:
    """Everything that is found, each as soon as it is known."""
    yield from machine_findings(words, look_at_machine(setting.folders.data))
    seen = asyncio.run(look_at_kernel(setting))
    yield from kernel_findings(words, seen)
    model = whom_to_ask(seen.report)
    if model:
        asked = asyncio.run(ask(Client(setting.kernel_url, tls=setting.tls), model))
        yield answer_finding(words, asked, seen.logs)
    elif seen.report is not None and seen.report.ready():
        yield Finding(words.doctor.not_asked)


# This machine


def look_at_machine(folder: Path) -> Machine:
    old = clash.old_distribution(sys.path)  # noqa: TID251 - read only, as kuwa.clash does for the other commands
    free, total = _memory()
    engine_version = _version(ENGINE)
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    return Machine(
        kuwa=__version__,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        encoding=sys.stdout.encoding or "",
        old_distribution=str(old or ""),
        mending=clash.mending() if old is not None else (),
        memory_free=free,
        memory_total=total,
        folder=folder,
        folder_writable=nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK),
        disk_free=shutil.disk_usage(nearest).free,
        extras=tuple(_extras()),
        engine_version=engine_version,
        engine_trouble=_engine_trouble() if engine_version else "",
    )


def _memory() -> tuple[int, int]:
    """Bytes of memory that are free, and in all: the container's where it has fewer than the machine."""
    import psutil

    memory = psutil.virtual_memory()
    try:
        limit = int(CGROUP_LIMIT.read_text())
        used = int(CGROUP_USED.read_text())
    except (OSError, ValueError):
        return memory.available, memory.total
    return min(memory.available, max(0, limit - used)), min(memory.total, limit)


def _extras() -> Iterator[Extra]:
    """The extras that Kuwa's own metadata names, in its order. Only `==` and `>=` are compared."""
    found: dict[str, list[str]] = {}
    missing: dict[str, list[str]] = {}
    wrong: dict[str, list[str]] = {}
    names: list[str] = []
    for requirement in requires("kuwa") or ():
        parts = re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?([^;]*);.*extra == ['\"]([^'\"]+)['\"]", requirement)
        if parts is None:
            continue
        name, bounds, extra = parts.groups()
        if extra not in names:
            names.append(extra)
        installed = _version(name)
        if not installed:
            missing.setdefault(extra, []).append(name)
        elif not _fits(installed, bounds):
            wrong.setdefault(extra, []).append(f"{name} {installed} ({bounds.strip()})")
        else:
            found.setdefault(extra, []).append(f"{name} {installed}")
    for name in names:
        yield Extra(
            name=name,
            found=tuple(found.get(name, ())),
            missing=tuple(missing.get(name, ())),
            wrong=tuple(wrong.get(name, ())),
        )


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def _fits(installed: str, bounds: str) -> bool:
    installed = installed.partition("+")[0]  # a local label such as +cpu tells a build, not a version
    for operator, wanted in re.findall(r"(==|>=)\s*([0-9.]+)", bounds):
        if operator == "==" and installed != wanted:
            return False
        if operator == ">=" and _numbers(installed) < _numbers(wanted):
            return False
    return True


def _numbers(text: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", text)]


def _engine_trouble() -> str:
    """Why the engine cannot be loaded, in a process of its own: on a processor that it was not built for it dies."""
    try:
        done = subprocess.run(  # noqa: S603 - our own Python and a constant
            [sys.executable, "-P", "-c", f"import {ENGINE}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ENGINE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"not within {ENGINE_TIMEOUT_S} s"
    if done.returncode == 0:
        return ""
    if done.returncode < 0:
        return signal.Signals(-done.returncode).name
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


# The kernel


async def look_at_kernel(setting: Setting) -> KernelSeen:
    url = setting.kernel_url
    parts = urlsplit(url)
    port = (parts.port or (443 if parts.scheme == "https" else 80)) if is_loopback(parts.hostname or "") else 0
    logs = setting.folders.logs(port)
    try:
        report = await Client(url, tls=setting.tls).report()
    except NoKernel as error:
        if not port or not _listened_on(port):
            return KernelSeen(url=url, port=port, reason=error.message, logs=logs)
        return _taken(url, port, error.message, logs)
    except KuwaError as error:
        return _taken(url, port, error.message, logs)
    return KernelSeen(url=url, port=port, report=report, logs=logs)


def _taken(url: str, port: int, reason: str, logs: Path) -> KernelSeen:
    return KernelSeen(
        url=url,
        port=port,
        reason=reason,
        port_taken=True,
        holder=_holder(port) if port else None,
        other_port=next((p for p in range(port + 1, port + TRIED_PORTS) if not _listened_on(p)), 0) if port else 0,
        logs=logs,
    )


def _listened_on(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
        return False


def _holder(port: int) -> tuple[str, int] | None:
    """The program that listens on `port`, where the system lets us know."""
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            at = connection.laddr
            if connection.status == psutil.CONN_LISTEN and at and at.port == port and connection.pid:
                return psutil.Process(connection.pid).name(), connection.pid
    except psutil.Error:
        pass
    return None


async def ask(client: Client, model: str) -> Asked:
    """Ask `model` something and read the whole answer."""
    begun = time.monotonic()
    first_s = 0.0
    tokens = 0
    characters = 0
    try:
        async with (
            asyncio.timeout(ANSWER_TIMEOUT_S),
            aclosing(client.chat(model, [{"role": "user", "content": QUESTION}])) as deltas,
        ):
            async for delta in deltas:
                if delta.text and not characters:
                    first_s = time.monotonic() - begun
                characters += len(delta.text)
                tokens = delta.usage.completion_tokens if delta.usage is not None else tokens
    except TimeoutError:
        return Asked(model=model, trouble=f"not within {ANSWER_TIMEOUT_S:g} s")
    except KuwaError as error:
        return Asked(model=model, trouble=error.message)
    if not characters:
        return Asked(model=model, trouble="an empty answer")
    return Asked(
        model=model,
        tokens=tokens,
        characters=characters,
        first_s=first_s,
        took_s=time.monotonic() - begun,
    )
