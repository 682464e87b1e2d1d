"""The kernel's log, as its own process writes it."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import logging
import structlog
from kuwa.kernel import log

log.configure("INFO")
bad = "x\\r\\n2026-05-06T07:08:09Z [error    ] forged\\x1b[2J\\u2067y"
logging.getLogger("a").warning("said: %s", bad)
structlog.get_logger("b").info(bad, who=bad, many=[bad], count=3)
try:
    raise RuntimeError(bad)
except RuntimeError:
    logging.getLogger("c").exception("it failed")
"""


def test_an_event_is_one_line_whatever_others_have_said() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, timeout=60, check=True)
    text = done.stderr.decode()
    assert not {"\r", "\x1b", "\u2067"} & set(text)
    said, bound, failed, *traceback = text.rstrip("\n").split("\n")
    assert "said: x\\r\\n2026" in said
    assert "forged\\x1b[2J\\u2067y" in said
    assert "count=3" in bound
    assert "it failed" in failed
    assert any("forged" in line for line in traceback)
    assert all(line.startswith("    ") for line in traceback)
