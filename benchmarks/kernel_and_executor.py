"""A kernel and a `chatgpt` executor behind it, as one program: the gateway `kuwa+chatgpt` of the benchmarks.

    python benchmarks/kernel_and_executor.py PORT BASE_URL

serves the model `mock` on PORT through both, and ends both on SIGTERM.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys


def main() -> None:
    port, base_url = sys.argv[1:]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        own_port = probe.getsockname()[1]
    kernel = [sys.executable, "-m", "kuwa.kernel.cli", "--port", port]
    executor = [
        *(sys.executable, "-m", "kuwa.executor.cli", "chatgpt", "--access_code", "mock", "--model", "mock"),
        *("--base_url", base_url, "--api_key", "dummy", "--host", "127.0.0.1", "--port", str(own_port)),
        *("--kernel_url", f"http://127.0.0.1:{port}/", "--concurrency", "10000", "--log", "WARNING"),
    ]
    programs = [subprocess.Popen(kernel), subprocess.Popen(executor)]

    def end(*_: object) -> None:
        for program in reversed(programs):
            program.terminate()

    signal.signal(signal.SIGTERM, end)
    sys.exit(max(abs(program.wait()) for program in programs))


if __name__ == "__main__":
    main()
