"""`kuwa-executor huggingface` beside `transformers serve --continuous-batching`, over HTTP, on the CPU.

    python -m venv /tmp/serve && /tmp/serve/bin/pip install 'transformers[serving]==5.23.*' torch==2.13.0 accelerate
    python benchmarks/engine_http.py --transformers /tmp/serve/bin/transformers

Both serve the same folder (about 125 million parameters, random weights, 32 bits) with one thread each, both are
asked the same streamed chats, a cell of one after the same cell of the other. What is compared is the CPU time that
each server's process takes for a cell, so that a busy machine disturbs no comparison; wall time is printed beside it.
The cells differ in how many ask at once and in the length of their prompt.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from processes import free_port
from tiny_models import make_folder

CELLS = [(1, 40, 24), (4, 40, 24), (8, 40, 24), (16, 40, 24), (4, 440, 16), (16, 440, 16)]
START_S = 180.0
ANSWER_S = 300.0
WORDS = ["harbour", "ship", "sail", "wind", "wave", "lamp", "tide", "rope"]


@dataclass
class Server:
    name: str
    port: int
    process: psutil.Process

    def cpu_s(self) -> float:
        times = [one.cpu_times() for one in (self.process, *self.process.children(recursive=True))]
        return sum(one.user + one.system for one in times)

    def ask(self, words: str, new: int) -> int:
        """The characters of one streamed answer."""
        body = {
            "model": MODEL_NAME[self.name],
            "messages": [{"role": "user", "content": words}],
            "max_tokens": new,
            "temperature": 0,
            "stream": True,
        }
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_S)
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        if answer.status != 200:
            raise SystemExit(f"{self.name}: {answer.status} {text[:300]!r}")
        return len(text)


MODEL_NAME: dict[str, str] = {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transformers", default=shutil.which("transformers"), help="the command, with [serving]")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    if not args.transformers:
        raise SystemExit("transformers[serving] is not installed; see --help")
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_folder("medium-llama", Path(scratch) / "medium-llama")
        _let_it_talk(folder)
        servers: list[Server] = []
        try:
            servers = [_kuwa(folder, Path(scratch)), _transformers(args.transformers, folder, Path(scratch))]
            compare(servers, args.rounds)
        finally:
            for server in servers:
                for one in (*server.process.children(recursive=True), server.process):
                    one.kill()


def compare(servers: list[Server], rounds: int) -> None:
    chance = random.Random(5)  # noqa: S311 - prompts
    for server in servers:
        server.ask("warm up", 2)
    print(f"{'n':>3} {'prompt':>6} {'new':>4}   tokens per CPU second (per second)")
    for count, length, new in CELLS:
        best: dict[str, tuple[float, float]] = {}
        for _ in range(rounds):
            prompts = [" ".join(chance.choices(WORDS, k=length)) for _ in range(count)]
            for server in servers:
                used, took = cell(server, prompts, new)
                before = best.get(server.name, (used, took))
                best[server.name] = (min(before[0], used), min(before[1], took))
        ours, theirs = (best[server.name] for server in servers)
        rates = "   ".join(
            f"{name} {count * new / used:6.1f} ({count * new / took:6.1f})" for name, (used, took) in best.items()
        )
        print(f"{count:>3} {length:>6} {new:>4}   {rates}   {theirs[0] / ours[0]:.2f} x", flush=True)


def cell(server: Server, prompts: list[str], new: int) -> tuple[float, float]:
    """CPU seconds of the server and wall seconds for all prompts at once."""
    before, began = server.cpu_s(), time.monotonic()
    with ThreadPoolExecutor(len(prompts)) as pool:
        list(pool.map(lambda prompt: server.ask(prompt, new), prompts))
    return server.cpu_s() - before, time.monotonic() - began


def _let_it_talk(folder: Path) -> None:
    """No token ends an answer, so that each has as many tokens as were asked for."""
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        if path.exists():
            held: dict[str, Any] = json.loads(path.read_text())
            held["eos_token_id"] = None
            path.write_text(json.dumps(held))


def _kuwa(folder: Path, scratch: Path) -> Server:
    MODEL_NAME["kuwa"] = "m"
    program = str(Path(sys.executable).parent / "kuwa-executor")
    argv = [program, "huggingface", "--model_path", str(folder), "--access_code", "m", "--ignore_kernel"]
    return _started("kuwa", [*argv, "--timeout", "120", "--dtype", "float32"], "--port", "/v1/models", scratch)


def _transformers(program: str, folder: Path, scratch: Path) -> Server:
    MODEL_NAME["transformers"] = str(folder)
    argv = [program, "serve", str(folder), "--continuous-batching", "--device", "cpu", "--dtype", "float32"]
    argv += ["--cb-num-blocks", "512", "--cb-block-size", "32", "--cb-max-batch-tokens", "512"]
    return _started("transformers", argv, "--port", "/health", scratch)


def _started(name: str, argv: list[str], option: str, path: str, scratch: Path) -> Server:
    port = free_port()
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    log = (scratch / f"{name}.log").open("wb")
    process = subprocess.Popen(
        [*argv, option, str(port)], env={**os.environ, **threads, "HF_HUB_OFFLINE": "1"}, stdout=log, stderr=log
    )
    until = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < until:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return Server(name, port, psutil.Process(process.pid))
        except OSError:
            time.sleep(0.2)
    process.kill()
    raise SystemExit(f"{name} did not start:\n" + (scratch / f"{name}.log").read_text()[-2000:])


if __name__ == "__main__":
    main()
