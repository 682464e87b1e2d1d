"""What `kuwa doctor` makes of what it saw. Pure: `kuwa.terminal.doctor` looks and shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from kuwa.client import Report
from kuwa.home import DEFAULT_PORT
from kuwa.wire.lines import printable
from kuwa.words import Words
from kuwa.words.phrases import kernel_option

GIB = 2**30
LITTLE_MEMORY = GIB
LITTLE_DISK = 2 * GIB
UNWELL = ("suspect", "ejected")
ASKED_FIRST = ("welcome", "debug")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line for the person: what is so, and what to do about it (empty: nothing needs doing)."""

    what: str
    do: str = ""
    # Worth saying, yet nothing is wrong: an extra that may not be wanted.
    optional: bool = False

    @property
    def needs_doing(self) -> bool:
        return bool(self.do) and not self.optional


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """An extra of the distribution: the requirements that are met (`name version`), missing, or of a wrong version."""

    name: str
    found: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What was seen of this machine. Sizes are bytes; `encoding` is the terminal's."""

    kuwa: str
    python: str
    platform: str
    encoding: str
    old_distribution: str
    mending: tuple[str, ...]
    memory_free: int
    memory_total: int
    folder: Path
    folder_writable: bool
    disk_free: int
    extras: tuple[Extra, ...]
    engine_version: str
    engine_trouble: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSeen:
    """What was seen at the kernel's address. `report` is None where no kernel answered; `port` is 0 where the address
    is not this machine's; `holder` is the name and id of the program that holds the port."""

    url: str
    port: int = 0
    report: Report | None = None
    reason: str = ""
    port_taken: bool = False
    holder: tuple[str, int] | None = None
    other_port: int = 0
    logs: Path = Path()


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What became of a question to `model`. Times are seconds; `trouble` is empty where an answer came, `tokens` is 0
    where the executor does not count them."""

    model: str
    trouble: str = ""
    tokens: int = 0
    characters: int = 0
    first_s: float = 0.0
    took_s: float = 0.0


def machine_findings(words: Words, machine: Machine) -> Iterator[Finding]:
    yield Finding(words.doctor.python.format(version=machine.kuwa, python=machine.python, platform=machine.platform))
    if machine.old_distribution:
        commands = "\n".join(machine.mending)
        yield Finding(
            words.doctor.clash.format(path=machine.old_distribution), words.doctor.clash_do.format(commands=commands)
        )
    if machine.encoding.lower().replace("-", "") not in ("utf8", ""):
        yield Finding(words.doctor.not_utf8_terminal.format(encoding=machine.encoding), words.doctor.not_utf8_do)
    yield _memory(words, machine)
    yield _disk(words, machine)
    for extra in machine.extras:
        yield _extra(words, extra)
    if machine.engine_trouble:
        do = words.doctor.engine_broken_do.format(version=machine.engine_version)
        yield Finding(words.doctor.engine_broken.format(reason=machine.engine_trouble), do)
    elif machine.engine_version:
        yield Finding(words.doctor.engine)


def _memory(words: Words, machine: Machine) -> Finding:
    free, total = _gib(machine.memory_free), _gib(machine.memory_total)
    if machine.memory_free < LITTLE_MEMORY:
        return Finding(words.doctor.little_memory.format(free=free, total=total), words.doctor.little_memory_do)
    return Finding(words.doctor.memory.format(free=free, total=total))


def _disk(words: Words, machine: Machine) -> Finding:
    if not machine.folder_writable:
        return Finding(words.doctor.no_folder.format(path=machine.folder), words.doctor.no_folder_do)
    free = _gib(machine.disk_free)
    if machine.disk_free < LITTLE_DISK:
        return Finding(words.doctor.little_disk.format(free=free, path=machine.folder), words.doctor.little_disk_do)
    return Finding(words.doctor.disk.format(free=free, path=machine.folder))


def _extra(words: Words, extra: Extra) -> Finding:
    if extra.missing:
        what = words.doctor.extra_missing.format(extra=extra.name, missing=", ".join(extra.missing))
        return Finding(what, words.doctor.extra_missing_do.format(extra=extra.name), optional=True)
    if extra.wrong:
        what = words.doctor.extra_old.format(extra=extra.name, missing=", ".join(extra.wrong))
        return Finding(what, words.doctor.extra_old_do.format(extra=extra.name))
    return Finding(words.doctor.extra.format(extra=extra.name, found=", ".join(extra.found)))


def kernel_findings(words: Words, seen: KernelSeen) -> Iterator[Finding]:
    if seen.report is None:
        yield _no_kernel(words, seen)
        return
    report = seen.report
    if report.kernel.draining:
        yield Finding(words.doctor.kernel_draining.format(url=seen.url), _start(words, seen))
        return
    yield Finding(words.doctor.kernel.format(version=printable(report.kernel.version), url=seen.url))
    for replica in report.replicas:
        if replica.state in UNWELL or replica.ejected:
            codes = replica.access_codes if replica.state in UNWELL else sorted(replica.ejected)
            state = replica.state if replica.state in UNWELL else "ejected"
            note = replica.note or replica.note_at(codes[0])
            what = words.doctor.replica_unwell.format(
                code=printable(", ".join(codes)),
                where=printable(urlsplit(replica.endpoint).netloc),
                state=words.states.get(state, state),
                note=f" ({printable(note)})" if note else "",
            )
            yield Finding(what, words.doctor.replica_unwell_do.format(logs=seen.logs))
    ready = report.ready()
    if ready:
        yield Finding(words.doctor.served.format(models=printable(", ".join(ready))))
    else:
        yield Finding(words.doctor.none_ready, words.doctor.none_ready_do.format(option=kernel_option(seen.url)))


def _no_kernel(words: Words, seen: KernelSeen) -> Finding:
    if seen.port and not seen.port_taken:
        return Finding(words.doctor.port_free.format(port=seen.port), _start(words, seen))
    if seen.port:
        name, pid = seen.holder or ("", 0)
        by_whom = words.doctor.port_taken_pid.format(name=printable(name), pid=pid) if seen.holder else ""
        what = words.doctor.port_taken.format(port=seen.port, by_whom=by_whom)
        return Finding(what, words.doctor.port_taken_do.format(other=seen.other_port))
    what = words.doctor.kernel_unreachable.format(url=seen.url, reason=printable(seen.reason))
    return Finding(what, words.doctor.kernel_unreachable_do)


def _start(words: Words, seen: KernelSeen) -> str:
    option = f" --port {seen.port}" if seen.port not in (0, DEFAULT_PORT) else ""
    return words.doctor.port_free_do.format(option=option)


def whom_to_ask(report: Report | None) -> str:
    """A model that answers at no cost; empty where none is ready."""
    ready = report.ready() if report is not None else []
    return next((code for code in ASKED_FIRST if code in ready), "")


def answer_finding(words: Words, asked: Asked, logs: Path) -> Finding:
    if asked.trouble:
        what = words.doctor.not_answered.format(model=asked.model, reason=printable(asked.trouble))
        return Finding(what, words.doctor.not_answered_do.format(logs=logs))
    length = (
        words.doctor.tokens.format(count=asked.tokens)
        if asked.tokens
        else words.doctor.characters.format(count=asked.characters)
    )
    return Finding(
        words.doctor.answered.format(model=asked.model, length=length, first_s=asked.first_s, took_s=asked.took_s)
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}"
