"""Fixtures for every test: the async backend, and stages of real processes.

`stage` belongs to one test, `shared_stage` to one module: take the second where a test leaves its processes as it
found them, and it need not pay for their start.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from processes import Kernel, Stage

# How long one example takes says how busy the machine is, and nothing about the code.
hypothesis.settings.register_profile("kuwa", deadline=None)
hypothesis.settings.load_profile("kuwa")

# What would let a test, or a program it starts, see whose machine this is.
PERSONAL = ("KUWA_", "XDG_", "HF_", "OPENAI_", "GEMINI_", "GOOGLE_")
PERSONAL_TOO = {f"{scheme}_proxy" for scheme in ("http", "https", "all", "no")}


def pytest_configure(config: pytest.Config) -> None:
    """Every test is run by somebody whose home is empty and who has set nothing, whoever runs them."""
    for name in list(os.environ):
        if name.startswith(PERSONAL) or name.lower() in PERSONAL_TOO:
            del os.environ[name]
    home = Path(tempfile.mkdtemp(prefix="kuwa-home-"))
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))
    os.environ["HOME"] = str(home)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `pytest -n 2 --dist loadgroup` the tests of a module, or of a group it names itself, share a worker: what
    they start together is started once.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(str(item.path)))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage(tmp_path_factory.mktemp("kuwa")) as processes:
        yield processes


@pytest.fixture
def kernel(stage: Stage) -> Kernel:
    return stage.kernel()


@pytest.fixture(scope="module")
def shared_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage(tmp_path_factory.mktemp("kuwa")) as processes:
        yield processes


@pytest.fixture(scope="module")
def shared_kernel(shared_stage: Stage) -> Kernel:
    return shared_stage.kernel()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full_chaos", action="store_true", help="the chaos table in full, not its short form")
    parser.addoption("--soak_minutes", type=float, default=20.0, help="how long the soak of the full table takes")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The chaos table: fault, what was tried, what held."""
    reports = [report for key in ("passed", "failed") for report in terminalreporter.stats.get(key, [])]
    rows = [value for report in reports for name, value in report.user_properties if name == "chaos"]
    if rows:
        terminalreporter.section("chaos")
        for name, tried, held in sorted(map(tuple, rows), key=lambda row: (len(row[0].split()[0]), row[0])):
            terminalreporter.write_line(f"{name}: {tried} -> {held}")
