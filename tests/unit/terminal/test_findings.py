from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kuwa.terminal.findings import (
    GIB,
    Asked,
    Extra,
    Finding,
    KernelSeen,
    Machine,
    answer_finding,
    kernel_findings,
    machine_findings,
    whom_to_ask,
)
from kuwa.wire.report import About, Queue, Replica, Report
from kuwa.words import words_in

EN = words_in("en")
SOUND = Machine(
    kuwa="0.1.0",
    python="3.11.7",
    platform="Linux x86_64",
    encoding="utf-8",
    old_distribution="",
    mending=(),
    memory_free=8 * GIB,
    memory_total=16 * GIB,
    folder=Path("/home/me/.local/share/kuwa"),
    folder_writable=True,
    disk_free=100 * GIB,
    extras=(Extra(name="chatgpt", found=("openai 3.54.0",)),),
    engine_version="1.0",
    engine_trouble="",
)
URL = "http://127.0.0.1:9000"


def to_do(machine: Machine) -> list[Finding]:
    return [finding for finding in machine_findings(EN, machine) if finding.needs_doing]


def replica(code: str, state: str = "ready", **fields: Any) -> Replica:
    return Replica(id=code, access_codes=[code], endpoint="http://127.0.0.1:4001/v1", state=state, **fields)


def seen(*replicas: Replica, draining: bool = False, **fields: Any) -> KernelSeen:
    report = Report(About("0.1.0", draining), [Queue(one.id) for one in replicas], list(replicas))
    return KernelSeen(url=URL, port=9000, report=report, **fields)


def test_a_sound_machine_needs_nothing() -> None:
    assert to_do(SOUND) == []


@pytest.mark.parametrize(
    ("changes", "what", "do"),
    [
        ({"old_distribution": "/x", "mending": ("pip uninstall",)}, "old distribution", "pip uninstall"),
        ({"encoding": "ANSI_X3.4-1968"}, "not UTF-8", "export LANG"),
        ({"memory_free": GIB // 2}, "0.5 GiB of 16.0 GiB", "smaller model"),
        ({"disk_free": GIB}, "1.0 GiB", "KUWA_HOME"),
        ({"folder_writable": False}, "is not writable", "KUWA_HOME"),
        ({"engine_trouble": "SIGILL"}, "SIGILL", "xllamacpp==1.0"),
        ({"extras": (Extra(name="llamacpp", wrong=("gguf 0.1",)),)}, "gguf 0.1", "'kuwa[llamacpp]'"),
    ],
)
def test_each_fault_says_what_to_do(changes: dict[str, Any], what: str, do: str) -> None:
    [finding] = to_do(replace(SOUND, **changes))
    assert what in finding.what
    assert do in finding.do


def test_an_extra_that_is_not_installed_is_told_but_is_no_fault() -> None:
    machine = replace(SOUND, extras=(Extra(name="llamacpp", missing=("gguf",)),), engine_version="")
    assert to_do(machine) == []
    assert any("pip install 'kuwa[llamacpp]'" in finding.do for finding in machine_findings(EN, machine))


def test_a_kernel_with_ready_models_needs_nothing() -> None:
    found = list(kernel_findings(EN, seen(replica("a"), replica("b"))))
    assert [finding for finding in found if finding.needs_doing] == []
    assert "a, b" in found[-1].what


@pytest.mark.parametrize(
    ("kernel", "what", "do"),
    [
        (KernelSeen(url=URL, port=9000), "port 9000 is free", "kuwa up"),
        (KernelSeen(url="http://127.0.0.1:9100", port=9100), "port 9100 is free", "kuwa up --port 9100"),
        (
            KernelSeen(url=URL, port=9000, port_taken=True, holder=("nginx", 7), other_port=9001),
            "(nginx, process 7)",
            "kuwa up --port 9001",
        ),
        (KernelSeen(url="http://far.example", reason="no route"), "no route", "KUWA_KERNEL_URL"),
        (seen(draining=True), "draining", "kuwa up"),
        (seen(), "No model is ready", "kuwa-executor debug"),
    ],
)
def test_each_fault_of_the_kernel_says_what_to_do(kernel: KernelSeen, what: str, do: str) -> None:
    [finding] = [finding for finding in kernel_findings(EN, kernel) if finding.needs_doing]
    assert what in finding.what
    assert do in finding.do


def test_an_executor_that_does_not_answer_is_named_with_the_reason() -> None:
    kernel = seen(replica("a"), replica("b", "ejected", note="5 failures"), logs=Path("/logs"))
    [finding] = [finding for finding in kernel_findings(EN, kernel) if finding.needs_doing]
    assert finding.what == "b at 127.0.0.1:4001 is ejected (5 failures)."
    assert "/logs" in finding.do


@pytest.mark.parametrize(
    ("codes", "asked"),
    [(["debug", "welcome"], "welcome"), (["a", "debug"], "debug"), (["gpt-4"], ""), ([], "")],
)
def test_only_what_costs_nothing_is_asked(codes: list[str], asked: str) -> None:
    assert whom_to_ask(seen(*map(replica, codes)).report) == asked


def test_a_model_that_is_not_ready_is_not_asked() -> None:
    assert whom_to_ask(seen(replica("welcome", "starting"), replica("debug")).report) == "debug"
    assert whom_to_ask(None) == ""


def test_an_answer_that_did_not_come_is_something_to_do() -> None:
    assert answer_finding(EN, Asked(model="debug", trouble="it broke"), Path("/logs")).needs_doing
    assert not answer_finding(EN, Asked(model="debug", tokens=3), Path("/logs")).needs_doing
