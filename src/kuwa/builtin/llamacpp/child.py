"""The program that runs llama.cpp: `python -m kuwa.builtin.llamacpp.child`, started and watched by `engine`.

It reads one line of JSON (`ChildConfig`) from its standard input, loads the model into llama.cpp's own HTTP
server on a free loopback port, and says where it listens with one line of JSON (`Ready`) on its standard output.
What llama.cpp has to say goes to standard error. It lives as long as its standard input stays open: when the
executor goes, however it goes, this process goes with it and frees the model's memory.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from importlib import import_module
from typing import Any

import msgspec

LOAD_FAILED = 4
"""The exit status after llama.cpp has refused the model."""


class ChildConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the child is told. `context` is in tokens per request; `environment` is for the engine alone.

    `parent` (a process id) and `api_key` are filled in at each start.
    """

    model_path: str
    context: int
    slots: int
    threads: int
    gpu_layers: int = 0
    chat_template: str = ""
    cache_mib: int = 0
    environment: dict[str, str] = {}
    parent: int = 0
    api_key: str = ""


class Ready(msgspec.Struct, frozen=True):
    """The model is loaded, and llama.cpp listens at `url`."""

    url: str


def main() -> int:
    config = msgspec.json.decode(sys.stdin.buffer.readline(), type=ChildConfig)
    die_with(config.parent)
    threading.Thread(target=_exit_at_end, args=(sys.stdin.fileno(),), daemon=True).start()
    # For llama.cpp's own code, which reads the C environment. Without a debugger's backtrace it dies at once, and
    # the last line of its log is the reason.
    for name, value in {"GGML_NO_BACKTRACE": "1", **config.environment}.items():
        os.putenv(name, value)
    xllamacpp: Any = import_module("xllamacpp")
    try:
        server = xllamacpp.Server(_parameters(config, xllamacpp.CommonParams()))
    except Exception as error:  # noqa: BLE001 - llama.cpp throws anything
        sys.stderr.write(f"llama.cpp could not load the model: {error}\n")
        return LOAD_FAILED
    sys.stdout.buffer.write(msgspec.json.encode(Ready(server.listening_address)) + b"\n")
    sys.stdout.buffer.flush()
    while True:
        time.sleep(3600)  # the server has threads of its own


def _parameters(config: ChildConfig, parameters: Any) -> Any:
    """`parameters`, xllamacpp's own defaults, as `config` wants them."""
    parameters.model.path = config.model_path
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.api_keys = [config.api_key]
    parameters.ui = False
    parameters.n_parallel = config.slots
    parameters.n_ctx = config.context * config.slots  # llama.cpp splits it evenly over its slots
    parameters.n_gpu_layers = config.gpu_layers
    parameters.cpuparams.n_threads = config.threads
    parameters.cpuparams_batch.n_threads = config.threads
    parameters.cache_ram_mib = config.cache_mib
    parameters.use_jinja = True
    if config.chat_template:
        parameters.chat_template = config.chat_template
    return parameters


def die_with(parent: int) -> None:
    """Ask Linux to kill this process when its parent dies: even while a load holds the interpreter's lock."""
    if sys.platform != "linux":
        return
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the request to be told
        os._exit(1)


def _exit_at_end(descriptor: int) -> None:
    while os.read(descriptor, 4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
