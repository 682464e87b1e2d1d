"""The contract: what every executor does, whoever wrote it, checked with nothing but its command line.

To run it on an executor of your own:

    pytest tests/contract --executor './my_executor.py --my_option 3'

What stands after `--executor` is what you would write after `kuwa-executor`; the suite adds `--kernel_url`,
`--host`, `--port` and `--access_code` itself, and starts a kernel of its own on a free port. Repeat the option
to check several executors. An executor that gives the same answer to the same question is held to it (streamed
or not, by whichever wire); one that does not is checked for everything else. Without `--executor` the suite
runs on our own executors.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.subjects import OURS, SAME_LIFE, House, Subject
from processes import Stage


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--executor",
        action="append",
        metavar="COMMAND",
        help="run the contract on `kuwa-executor COMMAND` instead of on our own executors",
    )
    parser.addoption(
        "--every_life", action="store_true", help="start and end the huggingface executor with each kind of model"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "subject" in metafunc.fixturenames:
        names: list[str] = metafunc.config.getoption("--executor", default=None) or list(OURS)
        of_life = metafunc.cls is not None and metafunc.cls.__name__ == "TestLife"
        if of_life and not metafunc.config.getoption("--every_life", default=False):
            names = [name for name in names if name not in SAME_LIFE]
        # With `--dist loadgroup` one worker runs all of a subject's tests, so that each is started once.
        params = [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in names]
        metafunc.parametrize("subject", params, ids=[name.replace("/", "_") for name in names], indirect=True)


@pytest.fixture(scope="session")
def subject_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage(tmp_path_factory.mktemp("contract")) as processes:
        yield processes


@pytest.fixture(scope="session")
def subject(request: pytest.FixtureRequest, subject_stage: Stage) -> Subject:
    command: str = request.param
    if command in OURS and not request.config.getoption("--executor", default=None):
        return OURS[command](subject_stage)
    argv = shlex.split(command)
    return Subject(Path(argv[0]).stem, argv)


@pytest.fixture(scope="session")
def house(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with Stage(tmp_path_factory.mktemp(f"contract-{subject.name}")) as processes:
        kernel = processes.kernel()
        yield House(kernel, subject.start(processes, kernel))


@pytest.fixture(scope="session")
def repeatable(house: House) -> bool:
    """Whether this executor gives the same answer to the same question."""
    return house.text() == house.text()
