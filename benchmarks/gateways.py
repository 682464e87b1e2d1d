"""The gateways that are compared: how each is configured and started, and what it has used so far.

A new gateway is one more entry in `available()`, or in `peers`: a name, its version and the command that serves on
one port and sends every request to one OpenAI-compatible backend. run.py starts them all and keeps them running
side by side.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import machine
import psutil

READY_WITHIN_S = 60.0
STOP_WITHIN_S = 10.0
CHAT = json.dumps({"model": "mock", "messages": [{"role": "user", "content": "ready?"}]})

NGINX_CONFIG = """\
daemon off;
worker_processes 1;
worker_rlimit_nofile {open_files};
pid {folder}/nginx.pid;
error_log stderr warn;
{user}
events {{ worker_connections 16384; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 32m;
    client_body_buffer_size 2m;
    keepalive_requests 1000000000;
    upstream backend {{
        {servers}
        keepalive 2048;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://backend;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Gateway:
    name: str
    version: str
    switched_on: str  # for the report: what it does for each request
    command: Callable[[int, int, Path], list[str | Path]]  # (port, backend's port, an empty folder of its own)


@dataclass(frozen=True, slots=True)
class Running:
    """A started program and its children."""

    name: str
    port: int
    process: psutil.Process
    log: Path

    def tree(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """User and system time of the whole tree, in steps of 10 ms."""
        return sum(times.user + times.system for times in (each.cpu_times() for each in self.tree()))

    def rss_mb(self) -> float:
        return sum(each.memory_info().rss for each in self.tree()) / 1e6

    def last_words(self) -> str:
        """The end of its output: why it does not serve is written there."""
        return self.log.read_text(errors="replace")[-3000:]


def available() -> dict[str, Callable[[], Gateway]]:
    """The gateways by name; calling one prepares it (installs what is missing) or raises machine.NotReady."""
    return {"nginx": _nginx, "kuwa": _kuwa, "kuwa+chatgpt": _chatgpt}


def nginx_command(port: int, servers: Iterable[str], folder: Path) -> list[str | Path]:
    """nginx in front of `servers` (host:port): of several, the one with the fewest connections takes a request."""
    lines = [f"server {server};" for server in servers]
    if len(lines) > 1:
        lines.insert(0, "least_conn;")
    config = folder / "nginx.conf"
    config.write_text(
        NGINX_CONFIG.format(
            port=port,
            servers=" ".join(lines),
            folder=folder,
            user="user root;" if os.geteuid() == 0 else "",  # the folder is readable by its owner alone
            open_files=machine.OPEN_FILES,
        )
    )
    return [machine.find_program("nginx"), "-p", folder, "-c", config, "-e", "stderr"]


def _nginx() -> Gateway:
    return Gateway(
        "nginx",
        machine.nginx_version(machine.find_program("nginx")),
        "1 worker, upstream keepalive, no buffering, no access log: it moves bytes and knows nothing of models",
        lambda port, backend, folder: nginx_command(port, [f"127.0.0.1:{backend}"], folder),
    )


def _kuwa() -> Gateway:
    def command(port: int, backend: int, folder: Path) -> list[str | Path]:
        upstream = f"mock=http://127.0.0.1:{backend}/v1"
        return [sys.executable, "-m", "kuwa.kernel.cli", "--port", str(port), "--upstream", upstream]

    return Gateway(
        "kuwa",
        machine.kuwa_version(),
        "kuwa-kernel as shipped, nothing switched off",
        command,
    )


def _chatgpt() -> Gateway:
    program = Path(__file__).with_name("kernel_and_executor.py")

    def command(port: int, backend: int, folder: Path) -> list[str | Path]:
        return [sys.executable, program, str(port), f"http://127.0.0.1:{backend}/v1"]

    return Gateway(
        "kuwa+chatgpt",
        machine.kuwa_version(),
        "kuwa-kernel and, behind it, the executor chatgpt: both as shipped, on one core",
        command,
    )


@contextlib.contextmanager
def started(name: str, command: list[str | Path], *, port: int, core: int | str, folder: Path) -> Iterator[Running]:
    """Run a program pinned to one core (or several: "0,1") until the block ends. Its output goes to <folder>/log."""
    log = folder / "log"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("KUWA_")}
    environment["KUWA_HOME"] = str(folder)  # the user's own settings and data stay out of it
    with log.open("wb") as output:
        child = subprocess.Popen(
            ["taskset", "--cpu-list", str(core), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder,
        )
    try:
        yield Running(name, port, psutil.Process(child.pid), log)
    finally:
        child.terminate()
        try:
            child.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            print(f"{name} did not end within {STOP_WITHIN_S:.0f} s of SIGTERM and is killed", file=sys.stderr)
            child.kill()
            child.wait()


def serve(
    name: str,
    command: Callable[[int, Path], list[str | Path]],
    core: int,
    running: contextlib.ExitStack,
    *,
    method: str = "POST",
    path: str = "/v1/chat/completions",
    within_s: float = READY_WITHIN_S,
) -> Running:
    """Start a program on a free port, with an empty folder of its own, for as long as `running` lasts; wait until it
    answers. `command`: its command line, of the port and the folder."""
    port = machine.free_port()
    folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix=f"{name}-")))
    program = running.enter_context(started(name, command(port, folder), port=port, core=core, folder=folder))
    wait_until_it_answers(program, method=method, path=path, within_s=within_s)
    return program


def wait_until_it_answers(
    running: Running,
    *,
    method: str = "POST",
    path: str = "/v1/chat/completions",
    within_s: float = READY_WITHIN_S,
) -> None:
    """Ask until the answer is 200; raises machine.NotReady with the program's own words when it never is."""
    deadline = time.monotonic() + within_s
    seen = "no answer yet"
    while time.monotonic() < deadline:
        if not running.process.is_running() or running.process.status() == psutil.STATUS_ZOMBIE:
            seen = "it ended"
            break
        try:
            status, body = ask(running.port, method, path, CHAT if method == "POST" else None)
        except OSError as error:
            seen = str(error)
        else:
            if status == 200:
                return
            seen = f"status {status}: {body[:200]!r}"
        time.sleep(0.005)
    raise machine.NotReady(
        f"{running.name} does not serve {method} {path}: {seen}.\nIts output ends with:\n{running.last_words()}"
    )


def ask(port: int, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    except http.client.HTTPException as error:
        raise OSError(f"no HTTP answer: {error!r}") from error
    finally:
        connection.close()
