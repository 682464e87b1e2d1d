"""The chaos table: each test is a row, runs a short form with the other tests and its full form by `make chaos`.

`row` is how a test says what it tried and what held; the table is printed at the end of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psutil
import pytest

from processes import Kernel, Process, until

Row = Callable[..., None]


@dataclass(frozen=True)
class Scale:
    """`full` is the whole table. Each test says both of its sizes."""

    full: bool
    soak_minutes: float

    def of(self, short: int, full: int) -> int:
        return full if self.full else short


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
    """What a process holds."""

    rss_mb: float
    fds: int
    threads: int

    @classmethod
    def of(cls, process: Process) -> Footprint:
        it = psutil.Process(process.pid)
        return cls(it.memory_info().rss / 1e6, it.num_fds(), it.num_threads())


@pytest.fixture
def leaves_nothing(kernel: Kernel) -> Iterator[None]:
    """After the test the kernel holds what it held before: no slot, file, thread, and hardly more memory."""
    before = Footprint.of(kernel.process)
    yield
    if kernel.process.exit_code is not None:
        return
    until(lambda: kernel.metric("kuwa_slots", state="used") == 0, "no slot was held")
    until(lambda: Footprint.of(kernel.process).fds <= before.fds + 80, "its files were closed", timeout_s=45)
    after = Footprint.of(kernel.process)
    assert after.threads <= before.threads + 2
    assert after.rss_mb <= before.rss_mb + 120
    seconds = psutil.Process(kernel.process.pid).cpu_percent(interval=0.5)
    assert seconds < 60, "it does not spin"
