"""The machine a benchmark runs on: which cores are used, what is installed, and what it is called in the report.

Owns everything that looks at or changes the machine itself (compiling the C tools, installing nginx, choosing
cores). run.py calls it before anything is measured.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
BUILD = HERE / "build"  # ignored by git
OPEN_FILES = 20_000  # enough for 5,000 clients, their upstream connections and the tools


class NotReady(Exception):
    """The machine lacks something; the message says what and which command mends it."""


def compile_tool(name: str) -> Path:
    """Return the compiled benchmarks/<name>.c, compiling it first where it is missing or older than its source."""
    source, program = HERE / f"{name}.c", BUILD / name
    if program.exists() and program.stat().st_mtime > source.stat().st_mtime:
        return program
    compiler = shutil.which("gcc")
    if compiler is None:
        raise NotReady(
            "The load tools are written in C and gcc is not installed. "
            "On Debian or Ubuntu: apt-get install gcc libc6-dev"
        )
    BUILD.mkdir(exist_ok=True)
    done = subprocess.run(
        [compiler, "-O2", "-Wall", "-Wextra", "-o", program, source], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise NotReady(f"gcc could not compile {source} (libc6-dev is needed too):\n{done.stderr}")
    return program


def find_program(name: str) -> Path:
    """Return a server's program, installing Debian's package of that name when it is missing and we are root."""
    if found := _which(name):
        return found
    command = ["apt-get", "install", "--yes", "--no-install-recommends", name]
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise NotReady(
            f"{name} is not installed and only root may install it: sudo {' '.join(command)}\n"
            "(or measure Kuwa alone: --gateway kuwa)"
        )
    print(f"{name} is missing; installing it: {' '.join(command)}", flush=True)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    installed = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
    if installed.returncode:  # a fresh container has no package lists yet
        subprocess.run(["apt-get", "update"], stdout=subprocess.DEVNULL, check=False)
        installed = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
    found = _which(name)
    if installed.returncode or found is None:
        raise NotReady(f"apt-get could not install {name} (its messages are above): {' '.join(command)}")
    print(
        f"{name} is installed. Where systemd runs, the package also starts a server of its own; the benchmark does "
        f"not use it: systemctl disable --now {name}"
    )
    return found


def _which(name: str) -> Path | None:
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin")
    return Path(found) if found else None


def allowed_cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def choose_cores() -> tuple[int, int]:
    """Return one core for the gateway and one for mock and load, not two threads of one core where avoidable."""
    allowed = allowed_cores()
    if len(allowed) < 2:
        raise NotReady("The benchmark needs two cores: one for the gateway, one for the mock backend and the load.")
    gateway, others = allowed[0], allowed[1:]
    siblings = Path(f"/sys/devices/system/cpu/cpu{gateway}/topology/thread_siblings_list")
    taken = _core_list(siblings.read_text()) if siblings.exists() else {gateway}
    return gateway, next((core for core in others if core not in taken), others[0])


def _core_list(text: str) -> set[int]:
    """Read the kernel's notation of cores: "0,64" or "0-1"."""
    cores: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        cores.update(range(int(first), int(last or first) + 1))
    return cores


def allow_open_files() -> None:
    """Raise the limit of open files for us and, by inheritance, for every program we start."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def busy_seconds() -> float:
    """CPU time spent on this machine by anybody, time stolen by a hypervisor included."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - times.iowait - times.guest - times.guest_nice  # guest is part of user


def describe() -> dict[str, str]:
    """What the report says about the machine and the software on it."""
    return {
        "cpu": f"{_cpu_model()}, {psutil.cpu_count()} cores",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{_distribution()}, Linux {platform.release()}, TCP congestion control {_congestion_control()}",
        "python": f"{platform.python_version()}, {_python_build()}",
        "packages": ", ".join(f"{name} {_version(name)}" for name in ("uvloop", "httptools", "msgspec", "starlette")),
    }


def nginx_version(program: Path) -> str:
    return subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stderr.strip().split("/")[-1]


def kuwa_version() -> str:
    return f"{_version('kuwa')} at {_commit()}"


def kuwa_command(name: str) -> Path:
    """Return a command of this project as installed beside the Python that runs the benchmark."""
    program = Path(sys.executable).parent / name
    if not program.exists():
        raise NotReady(f"{program} is not there. Install the project into this Python: pip install -e .")
    return program


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _python_build() -> str:
    """Profile-guided builds, as distributions make them, run this kernel's code a quarter faster than plain ones.

    A distribution's own Python does not always say how it was built.
    """
    if "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or ""):
        return "built with profile-guided optimisation"
    if sys.base_prefix == "/usr":
        return "the distribution's own build"
    return "built without profile-guided optimisation"


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return "unknown distribution"


def _congestion_control() -> str:
    """BBR paces each packet, which costs CPU on loopback too: figures of machines differ by it."""
    return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "(not installed)"


def _commit() -> str:
    """The commit that is measured, with + when src/ differs from it."""
    git = ["git", "-C", str(HERE)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        return "no git commit"
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--", "../src"], capture_output=True, text=True, check=False
    )
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
