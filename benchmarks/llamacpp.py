"""Measures what Kuwa costs around llama.cpp: the bare child server beside kernel + executor, in one run.

`python benchmarks/llamacpp.py` makes a random model of half a billion parameters (528 MB, kept in the cache folder),
starts both sides with the same options, and takes turns A B B A at 1, 4, 8 and 16 requests at once. Only figures of
one run compare; the ratios are of neighbouring turns.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from kuwa.builtin.llamacpp.child import ChildConfig, Ready
from kuwa.builtin.llamacpp.maker import make_half_billion

SLOTS = 16
CONTEXT = 512
START_TIMEOUT_S = 120.0
PROMPT = "Tell me of the sea, the waves and the wind, and of those who wait ashore. " * 3


@dataclass(frozen=True)
class Side:
    """One way to reach the model. `own` are the processes beside llama.cpp's own, `engine` is that one."""

    name: str
    port: int
    model: str
    key: str
    own: tuple[int, ...]
    engine: int


@dataclass(frozen=True)
class Turn:
    """Tokens per second in all, median seconds to the first token, CPU seconds of Kuwa and of llama.cpp."""

    speed: float
    first_s: float
    own_cpu_s: float
    engine_cpu_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side (default: 3)")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of an answer (default: 32)")
    parser.add_argument("--threads", type=int, default=1, help="threads of llama.cpp (default: 1)")
    parser.add_argument("--at_once", type=int, action="append", help="requests at once (default: 1 4 8 16)")
    options = parser.parse_args()
    model = Path.home() / ".cache" / "kuwa" / "benchmarks" / "half-billion.gguf"
    if not model.exists():
        make_half_billion(model)
    print("| at once | bare tok/s | Kuwa tok/s | ratio | bare first token ms | Kuwa | added | Kuwa's CPU |")
    print("|--:|--:|--:|--:|--:|--:|--:|--:|")
    with bare(model, options.threads) as plain, kuwa(model, options.threads) as ours:
        for side in (plain, ours):
            turn(side, 1, options.tokens)
        for at_once in options.at_once or (1, 4, 8, 16):
            compare(plain, ours, at_once, options)


def compare(plain: Side, ours: Side, at_once: int, options: argparse.Namespace) -> None:
    pairs: list[tuple[Turn, Turn]] = []
    for number in range(options.rounds):
        first, second = (plain, ours) if number % 2 == 0 else (ours, plain)
        turns = {side.name: turn(side, at_once, options.tokens) for side in (first, second)}
        pairs.append((turns[plain.name], turns[ours.name]))
    ratio = statistics.median(b.speed / a.speed for a, b in pairs)
    added = statistics.median(b.first_s - a.first_s for a, b in pairs) * 1000
    share = sum(b.own_cpu_s for _, b in pairs) / sum(b.own_cpu_s + b.engine_cpu_s for _, b in pairs)
    a_speed, b_speed = (statistics.median(pair[i].speed for pair in pairs) for i in (0, 1))
    a_first, b_first = (statistics.median(pair[i].first_s for pair in pairs) * 1000 for i in (0, 1))
    print(
        f"| {at_once} | {a_speed:.1f} | {b_speed:.1f} | {ratio:.3f} | {a_first:.0f} | {b_first:.0f} | {added:+.1f} | "
        f"{share:.1%} |",
        flush=True,
    )


def turn(side: Side, at_once: int, tokens: int) -> Turn:
    """`at_once` streams begun together, each with a prompt that nothing has read before."""
    own, engine = cpu_s(side.own), cpu_s((side.engine,))
    began = time.monotonic()
    with ThreadPoolExecutor(at_once) as clients:
        first = list(clients.map(lambda _: stream(side, tokens), range(at_once)))
    took = time.monotonic() - began
    return Turn(
        at_once * tokens / took, statistics.median(first), cpu_s(side.own) - own, cpu_s((side.engine,)) - engine
    )


def cpu_s(pids: tuple[int, ...]) -> float:
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


def stream(side: Side, tokens: int) -> float:
    """Seconds to the first content of one answer, read to its end."""
    body = {
        "model": side.model,
        "messages": [{"role": "user", "content": f"{secrets.token_hex(8)} {PROMPT}"}],
        "stream": True,
        "max_tokens": tokens,
        "ignore_eos": True,
    }
    headers = {"content-type": "application/json", "authorization": f"Bearer {side.key}"}
    connection = http.client.HTTPConnection("127.0.0.1", side.port, timeout=600)
    began = time.monotonic()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    response = connection.getresponse()
    if response.status != 200:
        raise SystemExit(f"{side.name} answered {response.status}: {response.read()!r}")
    first = 0.0
    while data := response.read1(65536):
        if not first and b'"content":"' in data.replace(b'"content":""', b""):
            first = time.monotonic() - began
    connection.close()
    return first


@contextmanager
def bare(model: Path, threads: int) -> Generator[Side]:
    """llama.cpp's server alone, with the options that the executor gives it."""
    config = ChildConfig(
        model_path=str(model), context=CONTEXT, slots=SLOTS, threads=threads, parent=os.getpid(), api_key="bare"
    )
    command = [sys.executable, "-m", "kuwa.builtin.llamacpp.child"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        if process.stdin is None or process.stdout is None:
            raise SystemExit("the child has no pipes")
        process.stdin.write(msgspec.json.encode(config) + b"\n")
        process.stdin.flush()
        ready = msgspec.json.decode(process.stdout.readline(), type=Ready)
        port = int(ready.url.rpartition(":")[2])
        yield Side("bare", port, "m", "bare", (), process.pid)
        process.kill()


@contextmanager
def kuwa(model: Path, threads: int) -> Generator[Side]:
    """A kernel and an executor in front of a child of its own."""
    port = free_port()
    with tempfile.TemporaryFile() as log:
        kernel = subprocess.Popen(
            [sys.executable, "-m", "kuwa.kernel.cli", "--port", str(port)], stdout=log, stderr=log
        )
        executor = subprocess.Popen(
            [
                *(sys.executable, "-m", "kuwa.executor.cli", "llamacpp", "--model_path", str(model)),
                *("--access_code", "m", "--concurrency", str(SLOTS), "--context_window", str(CONTEXT)),
                *("--threads", str(threads), "--kernel_url", f"http://127.0.0.1:{port}/"),
            ],
            stdout=log,
            stderr=log,
        )
        try:
            wait_served(port)
            (child,) = psutil.Process(executor.pid).children()
            yield Side("kuwa", port, "m", "", (kernel.pid, executor.pid), child.pid)
        finally:
            for process in (executor, kernel):
                process.terminate()
                process.wait(30)


def wait_served(port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/v1/models")
            if b'"m"' in connection.getresponse().read():
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit("the executor did not come up")


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


if __name__ == "__main__":
    main()
