"""Fixtures for every test: the async backend, and stages of real processes.

`stage` belongs to one test, `shared_stage` to one module: take the second where a test leaves its processes as it
found them, and it need not pay for their start.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from processes import Kernel, Stage


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
