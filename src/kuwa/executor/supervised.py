"""What the programs under `supervision` share on their side: a port, the wait for a server, and saying `Ready`."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import time

import msgspec

from kuwa.executor.supervision import Ready

LOAD_FAILED = 4
"""The exit status after the engine has refused the model."""


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


def came_up(server: subprocess.Popen[bytes], port: int, look_every_s: float) -> bool:
    """Wait until `server` answers /health at `port`; False where it ended before."""
    while not _is_healthy(port):
        if server.poll() is not None:
            return False
        time.sleep(look_every_s)
    return True


def say(ready: Ready) -> None:
    """Tell the supervisor, on standard output."""
    sys.stdout.buffer.write(msgspec.json.encode(ready) + b"\n")
    sys.stdout.buffer.flush()


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
