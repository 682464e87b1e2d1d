"""Real processes for tests: kernels and executors on free ports, watched by their logs, ended by their ids.

A `Stage` starts them, and at its end ends them in reverse order and checks that nothing is left behind: no
process, no port still listening, no traceback in a log. Used by `tests/conftest.py`, and by any test that wants a
stage of its own.
"""

from __future__ import annotations

import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

from calls import Answer, fetch

REPOSITORY = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 20.0
POLL_S = 0.01
TRACEBACK = "Traceback (most recent call last)"

T = TypeVar("T")


def until(condition: Callable[[], T], what: str, *, timeout_s: float = 10.0, every_s: float = POLL_S) -> T:
    """Poll `condition` until it returns something true, and return that; fail with `what` at the deadline."""
    deadline = time.monotonic() + timeout_s
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}; last seen: {result!r}")
        time.sleep(every_s)


def free_port() -> int:
    """A port nobody listens on, below the range from which the system draws ports for outgoing connections."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def listens(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without what would change how Kuwa's programs behave."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("KUWA_", "COV_", "PYTEST_"))}
    kept.pop("COLUMNS", None)
    return {**kept, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", **extra}


class Process:
    """One started program. Its standard output and error go to one log, which `log` reads."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        name: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        tolerates_tracebacks: bool = False,
        inherited: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.argv = list(argv)
        self.tolerates_tracebacks = tolerates_tracebacks
        self._seen: dict[int, psutil.Process] = {}
        with tempfile.NamedTemporaryFile(prefix=f"kuwa-{name.replace('/', '_')}-", suffix=".log", delete=False) as log:
            self._log_path = Path(log.name)
            # A session of its own: a signal for one program reaches no other, and orphans are found by it.
            self._popen = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(env) if env is not None else environment(),
                cwd=cwd or REPOSITORY,
                start_new_session=True,
                pass_fds=inherited,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; minus the signal's number where a signal ended it."""
        return self._popen.poll()

    @property
    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    def __repr__(self) -> str:
        return f"<{self.name}: pid {self.pid}, exit code {self.exit_code}, {shlex.join(self.argv)}>"

    def wait_for(self, condition: Callable[[], T], what: str, *, timeout_s: float = START_TIMEOUT_S) -> T:
        """Poll `condition`; fail at once, with the log, where the process ends first or the deadline passes."""
        deadline = time.monotonic() + timeout_s
        while True:
            result = condition()
            if result:
                return result
            if self.exit_code is not None:
                raise AssertionError(f"{self!r} ended before {what}. Its log:\n{self.log}")
            if time.monotonic() > deadline:
                raise AssertionError(f"{self!r}: not within {timeout_s:g} s: {what}. Its log:\n{self.log}")
            time.sleep(POLL_S)

    def wait(self, timeout_s: float = END_TIMEOUT_S) -> int:
        """Wait for the process to end by itself; return its exit code."""
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self!r} did not end within {timeout_s:g} s. Its log:\n{self.log}") from None

    def send(self, signal_number: int) -> None:
        """Send a signal to this process alone; its children are remembered first, so that orphans are found."""
        self.family()
        self._popen.send_signal(signal_number)

    def stop(self, timeout_s: float = END_TIMEOUT_S) -> int:
        """SIGTERM, then wait; return the exit code."""
        if self.exit_code is None:
            self.send(signal.SIGTERM)
        return self.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL: what a crash looks like from outside."""
        if self.exit_code is None:
            self.send(signal.SIGKILL)
        self.wait()

    def _ends(self) -> list[str]:
        try:
            self._popen.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return [f"{self!r} did not end within {END_TIMEOUT_S:g} s of its SIGKILL"]
        return []

    def family(self) -> list[psutil.Process]:
        """The descendants that are alive now, those remembered from before whose parent has gone included."""
        try:
            for child in psutil.Process(self.pid).children(recursive=True):
                self._seen[child.pid] = child
        except psutil.NoSuchProcess:
            pass
        for other in psutil.process_iter():
            try:
                if other.pid != self.pid and os.getsid(other.pid) == self.pid:
                    self._seen[other.pid] = other
            except (ProcessLookupError, PermissionError):
                continue
        return [child for child in self._seen.values() if _alive(child)]

    def end(self) -> list[str]:
        """End it for good, with all of its family; return what was wrong with the way it ended."""
        faults: list[str] = []
        if self.exit_code is None:
            self.send(signal.SIGTERM)
            try:
                self._popen.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                faults.append(f"{self!r} ignored SIGTERM for {END_TIMEOUT_S:g} s")
                self._popen.kill()
                faults += self._ends()
        deadline = time.monotonic() + 5
        while (orphans := self.family()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        for orphan in orphans:
            faults.append(f"{self!r} left an orphan: {orphan!r}")
            orphan.kill()
        log = self.log
        if TRACEBACK in log and not self.tolerates_tracebacks:
            faults.append(f"{self!r} wrote a traceback")
        if faults:
            faults.append(f"log of {self.name}:\n{log[-8000:]}")
        self._log_path.unlink()
        return faults


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Kernel:
    """A running kernel and what can be asked of it."""

    def __init__(self, process: Process, port: int, *, scheme: str = "http") -> None:
        self.process = process
        self.port = port
        self.url = f"{scheme}://127.0.0.1:{port}"

    def get(self, path: str, **headers: str) -> Answer:
        return fetch(self.url + path, headers=headers)

    def codes(self) -> list[str]:
        """The access codes that are listed to clients."""
        return [model["id"] for model in self.get("/v1/models").json()["data"]]

    def served(self) -> dict[str, list[dict[str, Any]]]:
        """The status page's JSON: access code → its replicas."""
        answer = fetch(self.url + "/v1.0/worker/debug", headers={"accept": "application/json"})
        assert answer.status == 200, answer
        return replicas_by_code(answer.json())

    def replicas(self, access_code: str) -> list[dict[str, Any]]:
        return self.served().get(access_code, [])

    def origins(self, access_code: str) -> list[str]:
        """Where the replicas answer, without a path: `http://127.0.0.1:4001`."""
        return ["/".join(replica["endpoint"].split("/")[:3]) for replica in self.replicas(access_code)]

    def ready(self, access_code: str, replicas: int = 1) -> bool:
        return sum(replica["state"] == "ready" for replica in self.replicas(access_code)) == replicas

    def running(self, access_code: str) -> int:
        """How many slots of this access code are held now."""
        return sum(replica["running"] for replica in self.replicas(access_code))

    def idle(self, access_code: str) -> bool:
        return self.running(access_code) == 0

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of `name` that carry `labels`."""
        return metric(self.get("/metrics").text, name, **labels)


def replicas_by_code(page: Any) -> dict[str, list[dict[str, Any]]]:
    """The status page's JSON is a list of replicas under `replicas`, each naming its access codes."""
    found: dict[str, list[dict[str, Any]]] = {}
    for replica in page["replicas"]:
        for code in replica["access_codes"]:
            found.setdefault(code, []).append(replica)
    return found


def metric(exposition: str, name: str, **labels: str) -> float:
    total = 0.0
    for line in exposition.splitlines():
        head, _, value = line.rpartition(" ")
        sample, _, label_text = head.partition("{")
        if sample == name and all(f'{key}="{wanted}"' in label_text for key, wanted in labels.items()):
            total += float(value)
    return total


class Executor:
    """A running executor, and the port it was told to serve."""

    def __init__(self, process: Process, port: int, access_code: str, *, scheme: str = "http") -> None:
        self.process = process
        self.port = port
        self.access_code = access_code
        self.url = f"{scheme}://127.0.0.1:{port}"

    def get(self, path: str, **headers: str) -> Answer:
        return fetch(self.url + path, headers=headers)


class Stage:
    """The programs of one test. A context manager: its end is theirs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: list[Process] = []
        self._ports: list[int] = []
        self._closed = False

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything, the last started first; fail, with the logs, where something was left or went wrong."""
        faults: list[str] = []
        self._closed = True
        for process in reversed(self._processes):
            faults += process.end()
        faults += [f"port {port} is still listened on" for port in self._ports if listens(port)]
        self._processes.clear()
        self._ports.clear()
        assert not faults, "\n".join(faults)

    def port(self) -> int:
        """A free port, which has to be free again at the end."""
        port = free_port()
        self._ports.append(port)
        return port

    def process(
        self,
        argv: Sequence[str],
        *,
        name: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        tolerates_tracebacks: bool = False,
        inherited: Sequence[int] = (),
    ) -> Process:
        """Start any program; it belongs to this stage from then on, which must not have ended."""
        assert not self._closed, "the stage is closed"
        process = Process(
            argv,
            name=name,
            env=env if env is not None else self.environment(),
            cwd=cwd,
            tolerates_tracebacks=tolerates_tracebacks,
            inherited=inherited,
        )
        self._processes.append(process)
        return process

    def environment(self, **extra: str) -> dict[str, str]:
        return environment(KUWA_HOME=str(self.folder), **extra)

    def kernel(self, *flags: str, port: int | None = None, cwd: Path | None = None, **env: str) -> Kernel:
        """A kernel that answers."""
        port = port or self.port()
        argv = [sys.executable, "-m", "kuwa.kernel.cli", "--port", str(port), *flags]
        process = self.process(argv, name="kernel", env=self.environment(**env), cwd=cwd)
        process.wait_for(lambda: _answers(f"http://127.0.0.1:{port}/livez"), "the kernel answered")
        return Kernel(process, port)

    def executor(
        self,
        name: str,
        *flags: str,
        kernel: Kernel | None,
        access_code: str | None = None,
        port: int | None = None,
        wait: bool = True,
        **env: str,
    ) -> Executor:
        """An executor that is ready: at its kernel, or (`kernel=None`, so `--ignore_kernel`) at its own port.

        `name` is the first argument of `kuwa-executor`; with `access_code=None` the executor's own default counts,
        which is learned from the kernel. With `wait=False` it has only been started.
        """
        port = port or self.port()
        # The test's own flags come last: they win.
        argv = [sys.executable, "-m", "kuwa.executor.cli", name, "--host", "127.0.0.1", "--port", str(port)]
        if access_code is not None:
            argv += ["--access_code", access_code]
        argv += ["--kernel_url", kernel.url + "/"] if kernel is not None else ["--ignore_kernel"]
        argv += flags
        label = Path(name).stem
        before = _ids_at(kernel, port)
        executor = Executor(
            self.process(argv, name=label, env=self.environment(**env)),
            port,
            access_code or "",
        )
        if wait:
            self.wait_ready(executor, kernel, before)
        return executor

    def wait_ready(self, executor: Executor, kernel: Kernel | None, before: frozenset[str] = frozenset()) -> None:
        """Wait until the kernel sees `executor` ready, or (without one) until its own `/health` says 204.

        `before` are the ids of the replicas at its port that were there before it was started.
        """
        if kernel is None:
            executor.process.wait_for(lambda: _answers(executor.url + "/health"), "it answered")
            return

        def served() -> str:
            for code, replicas in kernel.served().items():
                for replica in replicas:
                    if replica["state"] == "ready" and _is_at(replica, executor.port) and replica["id"] not in before:
                        return code
            return ""

        found = executor.process.wait_for(served, f"the kernel saw the executor at port {executor.port} ready")
        executor.access_code = executor.access_code or found


def _is_at(replica: Mapping[str, Any], port: int) -> bool:
    return f":{port}/" in replica["endpoint"] + "/"


def _ids_at(kernel: Kernel | None, port: int) -> frozenset[str]:
    if kernel is None:
        return frozenset()
    replicas = [replica for replicas in kernel.served().values() for replica in replicas]
    return frozenset(replica["id"] for replica in replicas if _is_at(replica, port))


def _answers(url: str) -> bool:
    try:
        return fetch(url, timeout_s=5).status < 300
    except OSError:
        return False
