"""Other gateways that stand between clients and model servers, each in a virtual environment of its own.

`make bench-peers` installs them into `.venv-NAME/`, once. One that does not install or start is left out of
the run, and the report says why. Their versions are pinned: a newer one is tried by changing `REQUIREMENTS`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import machine
from gateways import Gateway

REQUIREMENTS = {
    "vllm-router": "vllm-router==0.1.17",
    "sglang-router": "sglang-router==0.3.2",
    "litellm": "litellm[proxy]==1.106.2",
    "transformers": "transformers[serving]==5.23.0 torch==2.13.0",  # no gateway: a provider, in tests/peers
}
INSTALL_WITHIN_S = 900.0

# Two files a client: maxconn stays below half of machine.OPEN_FILES.
HAPROXY_CONFIG = """\
global
    nbthread 1
    maxconn 9900
defaults
    mode http
    timeout connect 5s
    timeout client 300s
    timeout server 300s
    option http-keep-alive
    option http-no-delay
    http-reuse always
frontend clients
    bind 127.0.0.1:{port} backlog 4096
    default_backend models
backend models
    server mock 127.0.0.1:{backend}
"""

LITELLM_CONFIG = """\
model_list:
  - model_name: mock
    litellm_params:
      model: openai/mock
      api_base: http://127.0.0.1:{backend}/v1
      api_key: none
"""


def available() -> dict[str, Callable[[], Gateway]]:
    """The peers by name; calling one installs it or raises machine.NotReady."""
    return {
        "haproxy": _haproxy,
        "vllm-router": lambda: _router("vllm-router", ()),
        "sglang-router": lambda: _router("sglang-router", ("launch",)),
        "litellm": _litellm,
    }


def _haproxy() -> Gateway:
    program = machine.find_program("haproxy")

    def command(port: int, backend: int, folder: Path) -> list[str | Path]:
        config = folder / "haproxy.cfg"
        config.write_text(HAPROXY_CONFIG.format(port=port, backend=backend))
        return [program, "-db", "-f", config]

    said = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stdout
    version = said.split("version ")[1].split()[0]
    return Gateway("haproxy", version, "1 thread, upstream connections reused, no log", command)


def _router(name: str, words: tuple[str, ...]) -> Gateway:
    folder = _installed(name)

    def command(port: int, backend: int, folder_: Path) -> list[str | Path]:
        worker = f"http://127.0.0.1:{backend}"
        options = ["--host", "127.0.0.1", "--port", str(port), "--worker-urls", worker, "--policy", "round_robin"]
        metrics = ["--prometheus-port", str(machine.free_port()), "--prometheus-host", "127.0.0.1"]
        return [folder / "bin" / name, *words, *options, *metrics, "--log-level", "error"]

    return Gateway(name, _version(name), "one worker, policy round_robin, as shipped otherwise", command)


def _litellm() -> Gateway:
    folder = _installed("litellm")

    def command(port: int, backend: int, own: Path) -> list[str | Path]:
        config = own / "litellm.yaml"
        config.write_text(LITELLM_CONFIG.format(backend=backend))
        # Its price list comes from the package, not from the network.
        local = ["env", "LITELLM_LOCAL_MODEL_COST_MAP=True", "LITELLM_LOG=ERROR"]
        local.append("LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY=true")  # it is on loopback, for minutes
        serve = ["--config", config, "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
        return [*local, folder / "bin" / "litellm", *serve, "--telemetry", "False"]

    return Gateway("litellm", _version("litellm"), "one worker, one model, no keys, no database", command)


def _installed(name: str) -> Path:
    """The virtual environment of a peer, made now where it is missing."""
    folder = machine.HERE.parent / f".venv-{name}"
    requirement = REQUIREMENTS[name]
    stamp = folder / "installed"
    if stamp.exists() and stamp.read_text() == requirement:
        return folder
    print(f"installing {requirement} into {folder} (once)", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        done = subprocess.run(
            [*pip, *requirement.split()], capture_output=True, text=True, check=False, timeout=INSTALL_WITHIN_S
        )
    except subprocess.TimeoutExpired as error:
        raise machine.NotReady(f"{requirement} was not installed within {INSTALL_WITHIN_S:.0f} s") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr[-300:]]
        raise machine.NotReady(f"pip cannot install {requirement}: {lines[-1].strip()}")
    stamp.write_text(requirement)
    return folder


def _version(name: str) -> str:
    return REQUIREMENTS[name].partition("==")[2]


if __name__ == "__main__":
    os.nice(10)
    for name in sys.argv[1:] or REQUIREMENTS:
        _installed(name)
