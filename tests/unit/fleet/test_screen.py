"""The words and lines that `kuwa up` shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from kuwa.fleet.screen import Served, how, last_lines, rows_of
from kuwa.wire.report import About, Replica, Report


def test_each_access_code_of_each_replica_is_a_line_of_the_table() -> None:
    replica = Replica(
        id="1", access_codes=["m", "alias"], endpoint="http://127.0.0.1:4001/v1", state="ready", executor="llamacpp"
    )
    report = Report(kernel=About("0"), models=[], replicas=[replica])
    assert rows_of(report) == [
        Served("m", "llamacpp", "ready", "http://127.0.0.1:4001/v1"),
        Served("alias", "llamacpp", "ready", "http://127.0.0.1:4001/v1"),
    ]
    assert rows_of(None) == []


@pytest.mark.parametrize(("code", "text"), [(3, "exit code 3"), (-9, "SIGKILL"), (-200, "signal 200")])
def test_an_exit_status_is_named(code: int, text: str) -> None:
    assert how(code) == text


def test_the_last_lines_of_a_log_are_its_last_eight_that_hold_anything(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_bytes(b"x" * 100_000 + b"\n" + b"".join(b"line %d\n\n" % n for n in range(20)) + b"\xff end")
    assert last_lines(log) == [*(f"line {n}" for n in range(13, 20)), "\ufffd end"]
    assert last_lines(tmp_path / "absent") == []
