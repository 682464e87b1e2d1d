"""Counts the user-mode instructions that the kernel spends on a request and on a chunk, under valgrind's callgrind.

    python benchmarks/instructions.py [--against COMMIT] [--requests 2000]

CPU time on a shared machine moves by a tenth from run to run; a count of instructions does not, so it tells a change
of one per cent. It leaves out what the operating system does and how long the memory takes: run.py measures those.

One client sends one request after the other over one connection, and streams advance in lockstep (`step` of mock.c),
so that each run reads and writes the same pieces. callgrind writes its counts at the start and at the end of each
phase, so that the start of the kernel, which costs more than all requests, is counted nowhere; what its timers spend
meanwhile is taken off. Each phase is run twice after a warm-up; the table has the mean and, as noise, by how much the
two differ at most.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import gateways
import machine
import workloads
from run import start_mock

CHECKOUT = machine.HERE.parent
READY_WITHIN_S = 120.0  # a start takes fifty times as long under valgrind
ANSWER_WITHIN_S = 20.0
IDLE_S = 3.0
LEAST_REQUESTS = 500
CHUNKS = 50  # of each stream, as in W2


@dataclass(frozen=True, slots=True)
class Figure:
    name: str
    about: str
    step: int = 0  # chunks that the model sends in one piece; 0: not streamed

    def requests_of(self, requests: int) -> int:
        """Ten times fewer streams than whole answers, which are five times as many chunks: a chunk costs less, and
        one more turn of the garbage collector must not show."""
        return requests // 10 if self.step else requests

    def units_of(self, requests: int) -> int:
        return self.requests_of(requests) * CHUNKS if self.step else requests


FIGURES = (
    Figure("W1 request", "not streamed, 13 headers"),
    Figure("W2 chunk", f"streams of {CHUNKS} chunks, four read at a time, which is what W2 comes to", step=4),
    Figure("W3 chunk", f"streams of {CHUNKS} chunks, each read alone, as one of W3's", step=1),
)


@dataclass(frozen=True, slots=True)
class Count:
    """Instructions per request or chunk, in each of two rounds."""

    first: float
    second: float

    @property
    def mean(self) -> float:
        return (self.first + self.second) / 2

    @property
    def noise(self) -> float:
        return abs(self.first - self.second) / self.mean


@dataclass(slots=True)
class Counted:
    """A kernel under callgrind."""

    serving: gateways.Running
    counts: Path  # callgrind appends .1, .2 and so on to it, one each time that it is asked
    asked: int = 0

    def instructions_since_last(self) -> int:
        command = [find_program("vgdb"), f"--pid={self.serving.process.pid}", "dump"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        self.asked += 1
        written = self.counts.with_name(f"{self.counts.name}.{self.asked}")
        for line in written.read_text().splitlines() if written.exists() else ():
            if line.startswith("totals:"):
                return int(line.split()[1])
        raise machine.NotReady(f"callgrind wrote no totals to {written}: {done.stderr}")


def main() -> int:
    options = parse_options()
    try:
        print(compare(options.against, options.requests))
    except machine.NotReady as error:
        print(f"instructions: {error}", file=sys.stderr)
        return 1
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="User-mode instructions of the kernel per request and per chunk.")
    parser.add_argument("--against", metavar="COMMIT", help="measure this commit too, in a temporary git worktree")
    parser.add_argument(
        "--requests", type=int, default=2000, metavar="N", help="N requests and 5 N chunks a round (default: 2000)"
    )
    options = parser.parse_args()
    if options.requests < LEAST_REQUESTS:
        parser.error(f"--requests must be at least {LEAST_REQUESTS}: a turn of the garbage collector shows in fewer")
    return options


def compare(against: str | None, requests: int) -> str:
    """Measure this checkout, and the commit where one is given; return the table in Markdown."""
    for program in ("valgrind", "vgdb"):
        find_program(program)
    mock_program = machine.compile_tool("mock")
    measured: list[list[Count]] = []
    with contextlib.ExitStack() as running:
        mock = start_mock(mock_program, machine.allowed_cores()[-1], running)
        checkouts = [CHECKOUT]
        if against:
            checkouts.insert(0, running.enter_context(worktree_of(against)))
        for checkout in checkouts:
            print(f"measuring {checkout}", file=sys.stderr, flush=True)
            with kernel_of(checkout, mock) as kernel:
                idle_per_s = idle_instructions_per_s(kernel)
                measured.append([count(figure, requests, kernel, mock, idle_per_s) for figure in FIGURES])
    return as_markdown(against, measured)


def find_program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise machine.NotReady(f"{name} is not installed. On Debian or Ubuntu: apt-get install valgrind")
    return found


@contextlib.contextmanager
def worktree_of(commit: str) -> Generator[Path]:
    git = ["git", "-C", str(CHECKOUT), "worktree"]
    with tempfile.TemporaryDirectory(prefix="kuwa-against-") as folder:
        checkout = Path(folder) / "checkout"
        added = subprocess.run(
            [*git, "add", "--detach", str(checkout), commit], capture_output=True, text=True, check=False
        )
        if added.returncode:
            raise machine.NotReady(f"git could not check out {commit}:\n{added.stderr}")
        try:
            yield checkout
        finally:
            subprocess.run([*git, "remove", "--force", str(checkout)], check=False)


@contextlib.contextmanager
def kernel_of(checkout: Path, mock: gateways.Running) -> Generator[Counted]:
    """Serve with the source of that checkout, under callgrind, until the block ends."""
    with tempfile.TemporaryDirectory(prefix="callgrind-") as folder, contextlib.ExitStack() as running:
        counts = Path(folder) / "counts"

        def command(port: int, _: Path) -> list[str | Path]:
            return [
                *("env", f"PYTHONPATH={checkout / 'src'}", "PYTHONHASHSEED=0", "PYTHONDONTWRITEBYTECODE=1"),
                *(find_program("valgrind"), "--tool=callgrind", f"--callgrind-out-file={counts}"),
                *(sys.executable, "-m", "kuwa.kernel.cli", "--port", str(port)),
                *("--upstream", f"mock=http://127.0.0.1:{mock.port}/v1"),
            ]

        core = machine.allowed_cores()[0]
        kernel = gateways.serve("kuwa under callgrind", command, core, running, within_s=READY_WITHIN_S)
        yield Counted(kernel, counts)


def idle_instructions_per_s(kernel: Counted) -> float:
    """What the kernel's own timers spend, which depends on how long a phase takes and not on what is asked."""
    kernel.instructions_since_last()
    begin = time.monotonic()
    time.sleep(IDLE_S)  # the measurement itself: this long nothing is asked of it
    return kernel.instructions_since_last() / (time.monotonic() - begin)


def count(figure: Figure, requests: int, kernel: Counted, mock: gateways.Running, idle_per_s: float) -> Count:
    """Ask once so that connections and caches are there, then twice as many for the figure."""
    gateways.ask(mock.port, "GET", f"/cfg?chunks={CHUNKS}&delay=0&ttft=0&pad=0&pings=0&step={figure.step}")
    rounds: list[float] = []
    try:
        with connect(kernel.serving.port) as asking, connect(mock.port) as stepping:
            message = request_message(kernel.serving.port, is_streamed=figure.step > 0)
            for is_warm in (False, True, True):
                begin = time.monotonic()
                kernel.instructions_since_last()
                ask_in_turn(figure, figure.requests_of(requests), message, asking, stepping)
                spent = kernel.instructions_since_last() - (time.monotonic() - begin) * idle_per_s
                if is_warm:
                    rounds.append(spent / figure.units_of(requests))
    except (OSError, http.client.HTTPException) as error:
        raise machine.NotReady(
            f"{figure.name}: {error!r}\nThe kernel's output ends with:\n{kernel.serving.last_words()}"
        ) from error
    print(f"{figure.name}: {rounds[0]:,.0f}, {rounds[1]:,.0f}", file=sys.stderr, flush=True)
    return Count(*rounds)


def ask_in_turn(figure: Figure, requests: int, message: bytes, asking: socket.socket, stepping: socket.socket) -> None:
    for _ in range(requests):
        answer = exchange(asking, message)
        if figure.step:
            read_stream(answer, stepping, figure.step)
        else:
            answer.read()


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), ANSWER_WITHIN_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def request_message(port: int, *, is_streamed: bool) -> bytes:
    """The request of load.c with the headers of an SDK, as one piece: http.client sends head and body apart."""
    body = json.dumps(
        {
            "model": "mock",
            "messages": [{"role": "user", "content": "many "}],
            "max_tokens": 256,
            "stream": is_streamed,
        },
        separators=(",", ":"),
    )
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Content-Type: application/json",
        "Accept: */*",
        *workloads.SDK_HEADERS,
        f"Content-Length: {len(body)}",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


def exchange(connection: socket.socket, message: bytes) -> http.client.HTTPResponse:
    connection.sendall(message)
    answer = http.client.HTTPResponse(connection, method="POST")
    answer.begin()
    if answer.status != 200:
        raise http.client.HTTPException(f"status {answer.status}: {answer.read(200)!r}")
    return answer


def read_stream(answer: http.client.HTTPResponse, stepping: socket.socket, step: int) -> None:
    """Read to the end; ask the mock for the next chunks once those before have arrived."""
    arrived, released = 0, step
    while piece := answer.read1(65536):
        arrived += piece.count(b"@")  # each chunk of the mock has one
        if released <= arrived < CHUNKS:
            released += step
            exchange(stepping, b"GET /step HTTP/1.1\r\nHost: mock\r\n\r\n").read()
    if arrived != CHUNKS:
        raise http.client.HTTPException(f"{arrived} chunks of {CHUNKS} arrived")


def as_markdown(against: str | None, measured: list[list[Count]]) -> str:
    here = machine.kuwa_version()
    heads = ["instructions per", "", *([against] if against else []), here, *(["change"] if against else []), "noise"]
    rows = [heads, ["---"] * len(heads)]
    for figure, *counts in zip(FIGURES, *measured, strict=True):
        cells = [figure.name, figure.about, *(f"{count.mean:,.0f}" for count in counts)]
        if against:
            cells.append(f"{(counts[1].mean / counts[0].mean - 1) * 100:+.1f} %")
        cells.append(f"{max(count.noise for count in counts) * 100:.2f} %")
        rows.append(cells)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
