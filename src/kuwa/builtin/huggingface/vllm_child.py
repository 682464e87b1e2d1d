"""The program that runs a vLLM server: `python -m kuwa.builtin.huggingface.vllm_child`, started and watched by `vllm`.

It reads one line of JSON (`VllmConfig`) from its standard input, starts the server on a free loopback port, and says
where it listens once the model is loaded. When standard input ends, because the executor has gone, however it went,
it ends its whole process group: vLLM starts processes of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import msgspec

from kuwa.executor.supervised import LOAD_FAILED, came_up, free_port, say
from kuwa.executor.supervision import Ready
from kuwa.wire.json import decode

LOOK_EVERY_S = 0.1


class VllmConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`command` without the port. `environment` is for vLLM alone; the API key stands there and on no command line."""

    command: list[str]
    environment: dict[str, str] = {}


def main() -> int:
    config = decode(sys.stdin.buffer.readline(), VllmConfig)
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    for name, value in config.environment.items():
        os.putenv(name, value)
    port = free_port()
    process = subprocess.Popen(  # noqa: S603 - the vllm that is installed beside this
        [*config.command, "--host", "127.0.0.1", "--port", str(port)], stdin=subprocess.DEVNULL, stdout=sys.stderr
    )
    if not came_up(process, port, LOOK_EVERY_S):
        return LOAD_FAILED
    say(Ready(f"http://127.0.0.1:{port}"))
    code = process.wait()
    return code if code >= 0 else 128 - code


def _end_with_stdin() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
