"""Measures what Kuwa costs around llama.cpp: the bare child server beside kernel + executor, in one run.

`python benchmarks/llamacpp.py` makes a random model of half a billion parameters (528 MB, kept in the cache folder),
starts both sides with the same options, and takes turns A B B A at 1, 4, 8 and 16 requests at once. Only figures of
one run compare; the ratios are of neighbouring turns. What Kuwa adds to the first token is measured once more on a
model of one megabyte, whose own time hides nothing.

`--llama_cpp_python PYTHON` names the Python of an environment that holds `llama-cpp-python[server]`: then its server
takes turns with Kuwa at 8 requests at once, with a short and with a long question.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from kuwa.builtin.llamacpp.child import ChildConfig, Ready
from kuwa.builtin.llamacpp.machine import cache_mib
from kuwa.builtin.llamacpp.maker import make_half_billion, make_scripted

SLOTS = 16
CONTEXT = 512
START_TIMEOUT_S = 120.0
SHORT_PROMPT = "Tell me of the sea."
PROMPT = "Tell me of the sea, the waves and the wind, and of those who wait ashore. " * 3
SHORT_ROUNDS = 100
"""Turns on the model that takes no time."""
MORE_ROUNDS = 4
"""So many times the turns with one request at once: they are short, and the first token's time varies most there."""


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

    @property
    def cpu_s(self) -> float:
        return self.own_cpu_s + self.engine_cpu_s


Pairs = list[tuple[Turn, Turn]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side (default: 3)")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of an answer (default: 32)")
    parser.add_argument("--threads", type=int, default=1, help="threads of llama.cpp (default: 1)")
    parser.add_argument("--at_once", type=int, action="append", help="requests at once (default: 1 4 8 16)")
    parser.add_argument("--llama_cpp_python", metavar="PYTHON", help="measure its server too")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is ended then too
    model = Path.home() / ".cache" / "kuwa" / "benchmarks" / "half-billion.gguf"
    if not model.exists():
        make_half_billion(model)
    with tempfile.TemporaryDirectory() as folder:
        make_scripted(Path(folder) / "small.gguf", PROMPT)
        first_token(Path(folder) / "small.gguf")
    beside_bare(model, options)
    if options.llama_cpp_python:
        beside_llama_cpp_python(model, options)


def first_token(model: Path) -> None:
    with bare(model, 1) as plain, kuwa(model, 1) as ours:
        pairs = turns(plain, ours, 1, 16, SHORT_ROUNDS)
    bare_ms, own_ms = (statistics.median(pair[i].first_s for pair in pairs) * 1000 for i in (0, 1))
    added_ms = statistics.median(b.first_s - a.first_s for a, b in pairs) * 1000
    cpu_us = sum(b.own_cpu_s for _, b in pairs) / len(pairs) / 16 * 1e6
    print(
        f"First token, model of 1 MB, 1 at once, {len(pairs)} turns: bare {bare_ms:.1f} ms, Kuwa {own_ms:.1f} ms, "
        f"added {added_ms:+.1f} ms; CPU of kernel + executor {cpu_us:.0f} us a token of an answer of 16\n",
        flush=True,
    )


def beside_bare(model: Path, options: argparse.Namespace) -> None:
    print("| at once | bare tok/s | Kuwa tok/s | ratio | by CPU | bare first token ms | Kuwa | added | Kuwa's CPU |")
    print("|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    with bare(model, options.threads) as plain, kuwa(model, options.threads) as ours:
        for side in (plain, ours):
            turn(side, 1, options.tokens)
        for at_once in options.at_once or (1, 4, 8, 16):
            rounds = options.rounds * MORE_ROUNDS if at_once == 1 else options.rounds
            show(at_once, turns(plain, ours, at_once, options.tokens, rounds))


def show(at_once: int, pairs: Pairs) -> None:
    ratio = statistics.median(b.speed / a.speed for a, b in pairs)
    added = statistics.median(b.first_s - a.first_s for a, b in pairs) * 1000
    share = sum(b.own_cpu_s for _, b in pairs) / sum(b.cpu_s for _, b in pairs)
    a_speed, b_speed = (statistics.median(pair[i].speed for pair in pairs) for i in (0, 1))
    a_first, b_first = (statistics.median(pair[i].first_s for pair in pairs) * 1000 for i in (0, 1))
    cells = [str(at_once), f"{a_speed:.1f}", f"{b_speed:.1f}", f"{ratio:.3f}", f"{by_cpu(pairs):.3f}"]
    cells += [f"{a_first:.0f}", f"{b_first:.0f}", f"{added:+.1f}", f"{share:.2%}"]
    print("| " + " | ".join(cells) + " |", flush=True)


def by_cpu(pairs: Pairs) -> float:
    """The ratio of tokens per second of CPU time, which holds on a busy machine too."""
    return statistics.median(a.cpu_s / b.cpu_s for a, b in pairs)


def beside_llama_cpp_python(model: Path, options: argparse.Namespace) -> None:
    others = llama_cpp_python(options.llama_cpp_python, model, options.threads)
    print("\n| question | prompt tokens | new | llama-cpp-python tok/s | Kuwa tok/s | ratio | by CPU |")
    print("|:--|--:|--:|--:|--:|--:|--:|")
    with others as theirs, kuwa(model, options.threads) as ours:
        for name, prompt in (("short", SHORT_PROMPT), ("long", PROMPT)):
            for side in (theirs, ours):
                turn(side, 1, options.tokens, prompt)
            pairs = turns(theirs, ours, 8, options.tokens, options.rounds, prompt)
            their_speed, own_speed = (statistics.median(pair[i].speed for pair in pairs) for i in (0, 1))
            ratio = statistics.median(b.speed / a.speed for a, b in pairs)
            cells = [name, str(prompt_tokens(ours, prompt)), str(options.tokens), f"{their_speed:.1f}"]
            cells += [f"{own_speed:.1f}", f"{ratio:.2f}", f"{by_cpu(pairs):.2f}"]
            print("| " + " | ".join(cells) + " |", flush=True)


def turns(one: Side, other: Side, at_once: int, tokens: int, rounds: int, prompt: str = PROMPT) -> Pairs:
    """Neighbouring turns of both sides, which begins changing from round to round."""
    pairs: Pairs = []
    for number in range(rounds):
        order = (one, other) if number % 2 == 0 else (other, one)
        taken = {side.name: turn(side, at_once, tokens, prompt) for side in order}
        pairs.append((taken[one.name], taken[other.name]))
    return pairs


def turn(side: Side, at_once: int, tokens: int, prompt: str = PROMPT) -> Turn:
    """`at_once` streams begun together, each with a prompt that nothing has read before."""
    own, engine = cpu_s(side.own), cpu_s((side.engine,))
    began = time.monotonic()
    with ThreadPoolExecutor(at_once) as clients:
        first = list(clients.map(lambda _: stream(side, tokens, prompt), range(at_once)))
    took = time.monotonic() - began
    return Turn(
        at_once * tokens / took, statistics.median(first), cpu_s(side.own) - own, cpu_s((side.engine,)) - engine
    )


def cpu_s(pids: Sequence[int]) -> float:
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


def prompt_tokens(side: Side, prompt: str) -> int:
    """How many tokens such a question has for the model, what the template adds included."""
    response = asked(side, {"messages": messages(prompt), "max_tokens": 1})
    return int(json.loads(response.read())["usage"]["prompt_tokens"])


def messages(prompt: str) -> list[dict[str, str]]:
    """A question that begins as none before it."""
    return [{"role": "user", "content": f"{secrets.token_hex(4)} {prompt}"}]


def asked(side: Side, body: dict[str, object]) -> http.client.HTTPResponse:
    headers = {"content-type": "application/json", "authorization": f"Bearer {side.key}"}
    connection = http.client.HTTPConnection("127.0.0.1", side.port, timeout=600)
    connection.request("POST", "/v1/chat/completions", json.dumps({"model": side.model, **body}), headers)
    response = connection.getresponse()
    if response.status != 200:
        raise SystemExit(f"{side.name} answered {response.status}: {response.read()!r}")
    return response


def stream(side: Side, tokens: int, prompt: str) -> float:
    """Seconds to the first content of one answer, read to its end."""
    began = time.monotonic()
    response = asked(side, {"messages": messages(prompt), "stream": True, "max_tokens": tokens, "ignore_eos": True})
    first = 0.0
    tail = b""
    while data := response.read1(65536):
        if not first and b'"content":"' in data.replace(b'": "', b'":"').replace(b'"content":""', b""):
            first = time.monotonic() - began
        tail = (tail + data)[-2000:]
    response.close()
    if b'"length"' not in tail:
        raise SystemExit(f"{side.name} did not give {tokens} tokens: its answer ends with {tail[-300:]!r}")
    return first


@contextmanager
def bare(model: Path, threads: int) -> Generator[Side]:
    """llama.cpp's server alone, with the options that the executor gives it."""
    config = ChildConfig(
        model_path=str(model),
        context=CONTEXT,
        slots=SLOTS,
        threads=threads,
        cache_mib=cache_mib(),
        parent=os.getpid(),
        api_key="bare",
    )
    command = [sys.executable, "-m", "kuwa.builtin.llamacpp.child"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        if process.stdin is None or process.stdout is None:
            raise SystemExit("the child has no pipes")
        try:
            process.stdin.write(msgspec.json.encode(config) + b"\n")
            process.stdin.flush()
            ready = msgspec.json.decode(process.stdout.readline(), type=Ready)
            yield Side("bare", int(ready.url.rpartition(":")[2]), "m", "bare", (), process.pid)
        finally:
            process.kill()


@contextmanager
def kuwa(model: Path, threads: int) -> Generator[Side]:
    """A kernel and an executor in front of a child of its own."""
    port = free_port()
    kernel = [sys.executable, "-m", "kuwa.kernel.cli", "--port", str(port)]
    executor = [
        *(sys.executable, "-m", "kuwa.executor.cli", "llamacpp", "--model_path", str(model)),
        *("--access_code", "m", "--concurrency", str(SLOTS), "--context_window", str(CONTEXT)),
        *("--threads", str(threads), "--kernel_url", f"http://127.0.0.1:{port}/"),
    ]
    with running(kernel, executor) as (front, worker):
        wait_served(port, b'"m"')
        (child,) = psutil.Process(worker).children()
        yield Side("kuwa", port, "m", "", (front, worker), child.pid)


@contextmanager
def llama_cpp_python(python: str, model: Path, threads: int) -> Generator[Side]:
    """llama-cpp-python's own server, with as many threads. It computes one request after the other."""
    port = free_port()
    server = [
        *(python, "-m", "llama_cpp.server", "--model", str(model), "--host", "127.0.0.1", "--port", str(port)),
        *("--n_ctx", str(CONTEXT), "--n_threads", str(threads), "--n_threads_batch", str(threads)),
        *("--model_alias", "m", "--interrupt_requests", "false"),
    ]
    with running(server) as (pid,):
        wait_served(port, b'"m"')
        yield Side("llama-cpp-python", port, "m", "", (), pid)


@contextmanager
def running(*commands: list[str]) -> Generator[list[int]]:
    """The process ids of the programs; they end with the block, the last one first."""
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryFile() as log:
        try:
            processes += [subprocess.Popen(command, stdout=log, stderr=log) for command in commands]
            yield [process.pid for process in processes]
        finally:
            for process in reversed(processes):
                process.terminate()
                process.wait(30)


def wait_served(port: int, name: bytes) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/v1/models")
            if name in connection.getresponse().read():
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit("the server did not come up")


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


if __name__ == "__main__":
    main()
