"""The three commands before they do anything: `kuwa` answers at once, and all notice the old distribution."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import kuwa
from processes import environment


def run(module: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_version_is_shown() -> None:
    assert run("kuwa.cli", "--version").stdout == f"kuwa {kuwa.__version__}\n"


def test_help_imports_nothing_that_takes_time() -> None:
    code = "import sys, kuwa.cli\ntry: kuwa.cli.main()\nexcept SystemExit: print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code, "up", "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert "--model" in done.stdout
    assert not {"asyncio", "rich", "msgspec", "kuwa.fleet.up"} & set(done.stderr.split())


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http"])
def test_a_port_that_is_none_is_refused_in_one_line(port: str) -> None:
    done = run("kuwa.cli", "up", f"--port={port}")
    assert done.returncode == 2
    assert "is not a valid port (must be 1-65535)" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("module", ["kuwa.cli", "kuwa.kernel.cli", "kuwa.executor.cli"])
def test_beside_the_old_distribution_every_command_names_what_mends_it(module: str, tmp_path: Path) -> None:
    (tmp_path / "kuwa_executor-0.1.0.dist-info").mkdir()
    done = run(module, "--help", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert done.stdout == ""
    assert "pip uninstall --yes kuwa-executor" in done.stderr
    assert "pip install --force-reinstall --no-deps" in done.stderr
