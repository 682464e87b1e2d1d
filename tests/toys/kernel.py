"""A kernel that speaks two toy dialects as well: `python kernel.py PORT`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # a program of its own, not a module of the tests

from lines import LinesDialect
from shout import Shout

from kuwa.http.server import run
from kuwa.kernel.app import DIALECT_ROUTES, serve
from kuwa.kernel.settings import Settings

TOYS = {
    "/toy/shout": (Shout(), "/chat/completions"),
    "/toy/lines": (LinesDialect(), "/chat/completions"),
}

if __name__ == "__main__":
    sys.exit(run(serve(Settings(port=int(sys.argv[1])), {**DIALECT_ROUTES, **TOYS})))
