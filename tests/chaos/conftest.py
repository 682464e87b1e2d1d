"""The chaos table: each test is a row, runs a short form with the other tests and its full form by `make chaos`.

`row` is how a test says what it tried and what held; the table is printed at the end of the run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import pytest

from processes import REPOSITORY, Kernel, Process, Stage, until
from watcher import Sight, sights

Row = Callable[..., None]


@dataclass(frozen=True)
class Scale:
    """`full` is the whole table. Each test says both of its sizes.

    The table's times are those of a machine with nothing else to do: a test for every run of the suite, which shares
    two cores with another, says what it measured and keeps to a bound that only a fault exceeds.
    """

    full: bool
    soak_minutes: float
    q8_streams: int = 100

    def of(self, short: int, full: int) -> int:
        return full if self.full else short


class Watch:
    """A path of the kernel, asked for all the time by a process of its own."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def sights(self) -> list[Sight]:
        return sights(self._process.log)


@contextmanager
def watching(stage: Stage, kernel: Kernel, path: str, *, at_most_s: float = 100.0) -> Iterator[Watch]:
    """Watch `path` until the end of the block."""
    script = str(REPOSITORY / "tests" / "watcher.py")
    process = stage.process([sys.executable, script, str(kernel.port), path, str(at_most_s)], name="watcher")
    watch = Watch(process)
    process.wait_for(watch.sights, "it saw something")
    try:
        yield watch
    finally:
        process.kill()


@pytest.fixture(scope="session")
def scale(request: pytest.FixtureRequest) -> Scale:
    return Scale(request.config.getoption("full_chaos"), request.config.getoption("soak_minutes"))


@pytest.fixture
def row(record_property: Callable[[str, object], None]) -> Row:
    def write(name: str, tried: str, held: str) -> None:
        record_property("chaos", (name, tried, held))

    return write


@dataclass(frozen=True)
class Footprint:
    """What the kernel holds. `fds` are its files but for those to executors, which are kept for the next request
    for half a minute; `tasks` those of its event loop."""

    rss_mb: float
    fds: int
    threads: int
    tasks: int

    @classmethod
    def of(cls, kernel: Kernel) -> Footprint:
        tasks = int(kernel.metric("kuwa_tasks"))
        it = psutil.Process(kernel.process.pid)
        kept = sum(
            each.status == psutil.CONN_ESTABLISHED and each.laddr.port != kernel.port
            for each in it.net_connections("tcp")
        )
        return cls(it.memory_info().rss / 1e6, it.num_fds() - kept, it.num_threads(), tasks)


@dataclass
class Allowance:
    """How much more memory than before a test may leave the kernel with: what the allocator keeps of its peak."""

    rss_mb: float = 25.0


@pytest.fixture
def leaves_nothing(kernel: Kernel) -> Iterator[Allowance]:
    """After the test the kernel holds what it held before: no slot, task, thread, file, and hardly more memory."""
    allowed = Allowance()
    before = Footprint.of(kernel)
    yield allowed
    if kernel.process.exit_code is not None:
        return
    until(lambda: kernel.metric("kuwa_slots", state="used") == 0, "no slot was held")
    until(lambda: Footprint.of(kernel).fds <= before.fds + 4, "its files were closed", timeout_s=20, every_s=0.1)
    until(lambda: Footprint.of(kernel).tasks <= before.tasks + 1, "its tasks had ended", every_s=0.1)
    after = Footprint.of(kernel)
    assert after.threads <= before.threads + 1, (before, after)
    assert after.rss_mb <= before.rss_mb + allowed.rss_mb, (before, after)
    seconds = psutil.Process(kernel.process.pid).cpu_percent(interval=0.5)
    assert seconds < 30, "it does not spin"
