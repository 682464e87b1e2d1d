"""Policies on a real kernel and two real executors: where the requests of one conversation go."""

from __future__ import annotations

from pathlib import Path

import pytest

from calls import old_chat, post_json
from processes import REPOSITORY, Kernel, Stage

EXECUTOR = str(REPOSITORY / "tests" / "fakes" / "june_2024_executor.py")
TURNS = 4


@pytest.fixture
def house(stage: Stage, tmp_path: Path) -> tuple[Kernel, list[Path]]:
    """A kernel and the ledgers of two executors, under the codes `talk` (prefix), `desk` (session) and `any`."""
    kernel = stage.kernel("--policy", "talk=prefix", "--policy", "desk=session")
    ledgers = [tmp_path / "one", tmp_path / "other"]
    for ledger in ledgers:
        codes = ("--access_code", "desk", "--access_code", "any")
        stage.executor(EXECUTOR, *codes, "--ledger", str(ledger), kernel=kernel, access_code="talk")
    return kernel, ledgers


def served(ledgers: list[Path]) -> list[int]:
    return [ledger.read_text().count("started") if ledger.exists() else 0 for ledger in ledgers]


def converse(kernel: Kernel, code: str, **headers: str) -> None:
    """One conversation of some turns."""
    history: list[dict[str, str]] = []
    for turn in range(TURNS):
        history.append({"role": "user", "content": f"question {turn}"})
        answer = post_json(f"{kernel.url}/v1/chat/completions", {"model": code, "messages": history}, headers)
        assert answer.status == 200, answer.text
        history.append(answer.json()["choices"][0]["message"])


@pytest.mark.parametrize(
    ("code", "headers", "expected"),
    [
        ("any", {}, [2, 2]),
        ("talk", {}, [0, 4]),
        ("desk", {}, [2, 2]),
        ("desk", {"x-session-id": "a"}, [0, 4]),
    ],
)
def test_each_model_is_served_by_its_own_policy(
    house: tuple[Kernel, list[Path]], code: str, headers: dict[str, str], expected: list[int]
) -> None:
    kernel, ledgers = house
    converse(kernel, code, **headers)
    assert sorted(served(ledgers)) == expected


def test_a_user_of_the_old_wire_is_a_session(house: tuple[Kernel, list[Path]]) -> None:
    kernel, ledgers = house
    for turn in range(TURNS):
        with old_chat(kernel.url, "desk", "hi", history_id=str(turn), user_id="7") as stream:
            assert stream.status == 200
            stream.read()
    assert sorted(served(ledgers)) == [0, TURNS]
