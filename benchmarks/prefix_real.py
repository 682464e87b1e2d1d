"""The same question as prefix.py on real executors: two of llamacpp, and the prompt tokens they had in their caches.

`python benchmarks/prefix_real.py [--model FILE.gguf]` starts a kernel and two executors for each policy, holds
several conversations at once over them, and reads `cached_tokens` from the usage of each answer. Without `--model`
a tiny one is made: its caches are real, only its arithmetic is small, so that TTFT says little; give a real one.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gateways
import machine
from gateways import Running
from report import table

POLICIES = ("least_loaded", "prefix", "session")
EXECUTORS = 2
SLOTS = 4  # of each: so many conversations does each keep
CONVERSATIONS = 16
TURNS = 6
AT_ONCE = 4
ANSWER_TOKENS = 24
SYSTEM = "You answer shortly. " * 20
START_WITHIN_S = 120.0


@dataclass(slots=True)
class Asked:
    prompt: int = 0
    cached: int = 0
    first_token_s: list[float] = field(default_factory=list[float])


def main() -> int:
    parser = argparse.ArgumentParser(description="How policies use the caches of two llamacpp executors.")
    parser.add_argument("--model", type=Path, help="a GGUF file (default: a tiny one is made)")
    options = parser.parse_args()
    rows: list[tuple[str, ...]] = []
    with tempfile.TemporaryDirectory(prefix="prefix-") as folder:
        try:
            model: Path = (options.model or _tiny_model(Path(folder))).resolve()
            for policy in POLICIES:
                asked = measure(policy, model, Path(folder))
                rows.append(
                    (
                        policy,
                        f"{asked.cached / asked.prompt:.1%}",
                        f"{asked.cached:,} of {asked.prompt:,}",
                        f"{statistics.median(asked.first_token_s) * 1000:.0f}",
                    )
                )
        except machine.NotReady as error:
            print(f"prefix_real: {error}", file=sys.stderr)
            return 1
    print(f"{CONVERSATIONS} conversations of {TURNS} turns, {AT_ONCE} at once; {EXECUTORS} executors × {SLOTS} slots")
    print(table(("policy", "cached", "prompt tokens", "TTFT ms p50"), rows))
    return 0


def measure(policy: str, model: Path, folder: Path) -> Asked:
    with contextlib.ExitStack() as running:
        kernel = _start("kernel", [machine.kuwa_command("kuwa-kernel"), "--policy", f"m={policy}"], folder, running)
        gateways.wait_until_it_answers(kernel, method="GET", path="/livez")
        executor = [machine.kuwa_command("kuwa-executor"), "llamacpp", "--model_path", model, "--access_code", "m"]
        own = ["--concurrency", str(SLOTS), "--kernel_url", f"http://127.0.0.1:{kernel.port}/"]
        for number in range(EXECUTORS):
            _start(f"executor-{number}", [*executor, *own], folder, running)
        _wait_for_replicas(kernel)
        asked = Asked()
        with ThreadPoolExecutor(AT_ONCE) as clients:
            histories: list[list[dict[str, str]]] = [
                [{"role": "system", "content": SYSTEM}] for _ in range(CONVERSATIONS)
            ]
            for turn in range(TURNS):  # every conversation in its turn: between two turns of one come all others
                list(
                    clients.map(
                        lambda item: _ask(kernel, *item, asked), [(n, turn, h) for n, h in enumerate(histories)]
                    )
                )
        return asked


def _ask(kernel: Running, number: int, turn: int, history: list[dict[str, str]], asked: Asked) -> None:
    history.append({"role": "user", "content": f"Conversation {number}, question {turn}: " + "tell me more. " * 20})
    body = {
        "model": "m",
        "messages": history,
        "max_tokens": ANSWER_TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    begin = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", kernel.port, timeout=120)
    with contextlib.closing(connection):
        headers = {"Content-Type": "application/json", "X-Session-Id": str(number)}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != 200:
            raise machine.NotReady(f"the kernel answers {response.status}: {response.read()[:300]!r}")
        text, first = "", 0.0
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event: dict[str, Any] = json.loads(line[6:])
            for choice in event["choices"]:
                text += choice["delta"].get("content") or ""
                first = first or time.monotonic()
            if usage := event.get("usage"):
                asked.prompt += usage["prompt_tokens"]
                asked.cached += (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    asked.first_token_s.append(first - begin)
    history.append({"role": "assistant", "content": text})


def _start(name: str, command: list[Any], folder: Path, running: contextlib.ExitStack) -> Running:
    port = machine.free_port()
    own = folder / name
    own.mkdir(exist_ok=True)
    every_core = ",".join(map(str, machine.allowed_cores()))
    flags = ["--port", str(port)]
    return running.enter_context(gateways.started(name, [*command, *flags], port=port, core=every_core, folder=own))


def _wait_for_replicas(kernel: Running) -> None:
    deadline = time.monotonic() + START_WITHIN_S
    ready = 0
    while time.monotonic() < deadline:
        _, body = gateways.ask(kernel.port, "GET", "/metrics")
        found = [line for line in body.decode().splitlines() if line.startswith('kuwa_replicas{state="ready"}')]
        ready = int(float(found[0].split()[-1])) if found else 0
        if ready == EXECUTORS:
            return
        time.sleep(0.1)
    raise machine.NotReady(f"{ready} of {EXECUTORS} executors are ready after {START_WITHIN_S:.0f} s")


def _tiny_model(folder: Path) -> Path:
    from kuwa.builtin.llamacpp.maker import make_scripted

    path = folder / "scripted.gguf"
    make_scripted(
        path, "".join(f"{n}: the quick brown fox jumps over the lazy dog.\n" for n in range(300)), context=32768
    )
    return path


if __name__ == "__main__":
    sys.exit(main())
