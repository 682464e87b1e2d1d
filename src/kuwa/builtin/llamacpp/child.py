"""The program that runs llama.cpp: `python -m kuwa.builtin.llamacpp.child`, started and watched by `engine`.

It reads one line of JSON (`ChildConfig`) from its standard input, loads the model into llama.cpp's own HTTP server on
a free loopback port, and says where it listens with one line of JSON (`Ready`) on its standard output. The server is
the one in the xllamacpp package, in this process; or a `llama-server` of the machine's, in a process below this one.
What llama.cpp has to say goes to standard error. All of it lives as long as standard input stays open: when the
executor goes, however it goes, these processes go with it and free the model's memory.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import msgspec

from kuwa.executor.leash import die_with
from kuwa.executor.supervised import LOAD_FAILED, came_up, free_port, say
from kuwa.executor.supervision import Ready
from kuwa.wire.json import decode

LOOK_EVERY_S = 0.05
WARNINGS, ALL_IT_DOES = 2, 3
"""What llama.cpp logs; of the second a dozen lines for each request."""


class Adapter(msgspec.Struct, frozen=True):
    path: str
    scale: float


class ChildConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the child is told. `context` is in tokens per request; `environment` is for the engine alone.

    `gpu_layers` -1: what fits. `server` is the path of a llama-server, empty for the one that comes along.
    `parent` (a process id) and `api_key` are filled in at each start.
    """

    model_path: str
    context: int
    slots: int
    threads: int
    gpu_layers: int = 0
    batch: int = 2048
    ubatch: int = 512
    chat_template: str = ""
    cache_mib: int = 0
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    flash_attention: str = "auto"
    main_gpu: int = 0
    tensor_split: list[float] = []
    split_mode: str = "layer"
    projector: str = ""
    adapters: list[Adapter] = []
    draft_model: str = ""
    draft_max: int = 16
    embedding: bool = False
    pooling: str = ""
    slot_folder: str = ""
    server: str = ""
    environment: dict[str, str] = {}
    verbose: bool = False
    parent: int = 0
    api_key: str = ""


def main() -> int:
    config = decode(sys.stdin.buffer.readline(), ChildConfig)
    die_with(config.parent)
    os.umask(0o077)  # what it writes are conversations
    # For llama.cpp's own code, which reads the C environment. Without a debugger's backtrace it dies at once, and
    # the last line of its log is the reason.
    for name, value in {"GGML_NO_BACKTRACE": "1", **config.environment}.items():
        os.putenv(name, value)
    return _run_server(config) if config.server else _run_package(config)


def _run_package(config: ChildConfig) -> int:
    _leave_at_end(lambda: None)
    xllamacpp: Any = import_module("xllamacpp")
    try:
        server = xllamacpp.Server(package_parameters(config, xllamacpp))
    except Exception as error:  # noqa: BLE001 - llama.cpp throws anything
        sys.stderr.write(f"llama.cpp could not load the model: {error}\n")
        return LOAD_FAILED
    say(Ready(server.listening_address, str(xllamacpp.get_system_info())))
    while True:
        time.sleep(3600)  # the server has threads of its own


def _run_server(config: ChildConfig) -> int:
    port = free_port()
    own = os.getpid()
    os.putenv("LLAMA_API_KEY", config.api_key)  # not on a command line that everybody can read
    process = subprocess.Popen(  # noqa: S603 - the program that the person who started the executor named
        [config.server, *server_arguments(config, port)],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        preexec_fn=lambda: die_with(own),
    )
    _leave_at_end(process.kill)
    if not came_up(process, port, LOOK_EVERY_S):
        return LOAD_FAILED
    say(Ready(f"http://127.0.0.1:{port}"))
    code = process.wait()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(own, -code)
    return code


def server_arguments(config: ChildConfig, port: int) -> list[str]:
    """The command line of a llama-server that does what `config` says."""
    arguments = [
        *("--model", config.model_path, "--host", "127.0.0.1", "--port", str(port)),
        *("--parallel", str(config.slots), "--ctx-size", str(config.context * config.slots)),
        *("--threads", str(config.threads), "--threads-batch", str(config.threads)),
        *("--batch-size", str(config.batch), "--ubatch-size", str(config.ubatch)),
        *("--cache-type-k", config.cache_type_k, "--cache-type-v", config.cache_type_v),
        *("--flash-attn", config.flash_attention, "--cache-ram", str(config.cache_mib)),
        *("--split-mode", config.split_mode, "--main-gpu", str(config.main_gpu)),
        *("--jinja", "--no-webui", "--slots"),
    ]
    if config.gpu_layers >= 0:
        arguments += ["--n-gpu-layers", str(config.gpu_layers)]
    if config.tensor_split:
        arguments += ["--tensor-split", ",".join(map(str, config.tensor_split))]
    if config.chat_template:
        arguments += ["--chat-template", config.chat_template]
    if config.projector:
        arguments += ["--mmproj", config.projector]
    for adapter in config.adapters:
        arguments += ["--lora-scaled", f"{adapter.path}:{adapter.scale}"]
    if config.draft_model:
        arguments += ["--spec-type", "draft-simple", "--spec-draft-model", config.draft_model]
        arguments += ["--spec-draft-n-max", str(config.draft_max)]
    if config.embedding:
        arguments += ["--embeddings", "--kv-unified"]
    if config.pooling:
        arguments += ["--pooling", config.pooling]
    if config.slot_folder:
        arguments += ["--slot-save-path", config.slot_folder]
    return arguments


def package_parameters(config: ChildConfig, xllamacpp: Any) -> Any:
    """xllamacpp's own defaults, changed as `config` wants them."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = config.model_path
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.api_keys = [config.api_key]
    parameters.ui = False
    parameters.verbosity = ALL_IT_DOES if config.verbose else WARNINGS
    parameters.n_parallel = config.slots
    parameters.n_ctx = config.context * config.slots  # llama.cpp splits it evenly over its slots
    parameters.n_batch, parameters.n_ubatch = config.batch, config.ubatch
    parameters.cpuparams.n_threads = config.threads
    parameters.cpuparams_batch.n_threads = config.threads
    parameters.cache_ram_mib = config.cache_mib
    parameters.use_jinja = True
    if config.chat_template:
        parameters.chat_template = config.chat_template
    parameters.n_gpu_layers = config.gpu_layers
    parameters.fit_params = config.gpu_layers < 0
    parameters.main_gpu = config.main_gpu
    parameters.split_mode = xllamacpp.llama_split_mode[f"LLAMA_SPLIT_MODE_{config.split_mode.upper()}"]
    if config.tensor_split:
        shares = list(parameters.tensor_split)
        shares[: len(config.tensor_split)] = config.tensor_split
        parameters.tensor_split = shares
    parameters.cache_type_k = _cache_type(xllamacpp, config.cache_type_k)
    parameters.cache_type_v = _cache_type(xllamacpp, config.cache_type_v)
    attention = {"auto": "AUTO", "on": "ENABLED", "off": "DISABLED"}[config.flash_attention]
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type[f"LLAMA_FLASH_ATTN_TYPE_{attention}"]
    _add_files(parameters, config, xllamacpp)
    return parameters


def _add_files(parameters: Any, config: ChildConfig, xllamacpp: Any) -> None:
    """What stands beside the model: projector, adapters, draft model, pooling, kept slots."""
    if config.projector:
        parameters.mmproj.path = config.projector
        parameters.mmproj_use_gpu = config.gpu_layers != 0
    if config.adapters:
        adapters: list[Any] = []
        for adapter in config.adapters:
            described = xllamacpp.CommonAdapterLoraInfo()
            described.path, described.scale = adapter.path, adapter.scale
            adapters.append(described)
        parameters.lora_adapters = adapters
    if config.draft_model:
        parameters.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        parameters.speculative.draft.mparams.path = config.draft_model
        parameters.speculative.draft.n_max = config.draft_max
        parameters.speculative.draft.n_gpu_layers = config.gpu_layers
    parameters.embedding = config.embedding
    # Otherwise texts of different lengths that are read together are pooled over their last part alone.
    parameters.kv_unified = config.embedding
    if config.pooling:
        parameters.pooling_type = xllamacpp.llama_pooling_type[f"LLAMA_POOLING_TYPE_{config.pooling.upper()}"]
    if config.slot_folder:
        parameters.slot_save_path = config.slot_folder


def _cache_type(xllamacpp: Any, name: str) -> Any:
    return xllamacpp.ggml_type[f"GGML_TYPE_{name.upper()}"]


def _leave_at_end(clean_up: Callable[[], None]) -> None:
    """End this process when its standard input ends, after `clean_up`."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        clean_up()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
