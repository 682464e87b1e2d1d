"""Asks a server for the same path again and again, from a process of its own, so that what it sees is the server's
doing and not that of a busy test:

    python watcher.py PORT PATH SECONDS

Each line it writes is one answer: the monotonic time at which it was complete, its status (0: none), and how many
seconds it took.
"""

from __future__ import annotations

import http.client
import sys
import time
from dataclasses import dataclass

PAUSE_S = 0.002


@dataclass(frozen=True, slots=True)
class Sight:
    at: float
    status: int
    seconds: float


def sights(log: str) -> list[Sight]:
    """What a watcher wrote, up to its last whole line."""
    lines = log[: log.rfind("\n") + 1].splitlines()
    return [Sight(float(at), int(status), float(seconds)) for at, status, seconds in map(str.split, lines)]


def look(port: int, path: str) -> Sight:
    began = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        status = answer.status
    except (OSError, http.client.HTTPException):
        status = 0
    finally:
        connection.close()
    ended = time.monotonic()
    return Sight(ended, status, ended - began)


def main(port: int, path: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        seen = look(port, path)
        sys.stdout.write(f"{seen.at:.6f} {seen.status} {seen.seconds:.6f}\n")
        sys.stdout.flush()
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
