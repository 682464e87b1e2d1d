"""The kernel's report of itself, from the registry to the reader at the other end."""

from __future__ import annotations

import msgspec
import pytest

from kuwa.kernel.dispatcher import Dispatcher
from kuwa.kernel.registry import Registry
from kuwa.kernel.report import build_report
from kuwa.wire.lease import Dialects, Load, Registration
from kuwa.wire.report import About, Replica, Report, decode_report, encode_report


def registration(name: str, *codes: str, capabilities: tuple[str, ...] = ()) -> Registration:
    return Registration(
        executor_id=name,
        incarnation=1,
        access_codes=list(codes),
        dialects=Dialects(openai=f"http://127.0.0.1:4001/{name}/v1"),
        executor="llamacpp",
        concurrency=3,
        capabilities=list(capabilities),
        context_length=8192,
        load=Load(tokens_per_s=12.5),
    )


def replica(code: str, state: str = "ready", *, capabilities: tuple[str, ...] = ()) -> Replica:
    return Replica(id=code, access_codes=[code], endpoint="", state=state, capabilities=list(capabilities))


def report_of(*replicas: Replica) -> Report:
    return Report(kernel=About("0"), models=[], replicas=list(replicas))


def test_a_reader_reads_what_the_kernel_reports() -> None:
    registry = Registry()
    registry.register(registration("b", "west/7b", "alias", capabilities=("chat", "tools")), now=100.0)
    registry.add_upstream("cloud", "https://api.test/v1", "", b"", 100.0)
    report = build_report(registry, Dispatcher(registry), draining=True, now=101.25)
    assert decode_report(encode_report(report)) == report
    assert report.kernel.draining
    assert [queue.access_code for queue in report.models] == ["alias", "cloud", "west/7b"]
    cloud, leased = sorted(report.replicas, key=lambda one: one.source != "upstream")
    assert (cloud.slots, cloud.kind) == (None, "upstream")
    assert (leased.slots, leased.kind, leased.since_s) == (3, "llamacpp", 1.25)
    assert (leased.capabilities, leased.context_length) == (["chat", "tools"], 8192)
    assert leased.load.tokens_per_s == 12.5


def test_the_v1_0_part_of_the_report_has_the_name_of_its_wire() -> None:
    registry = Registry()
    registry.register(registration("b", "west/7b"), now=5.0)
    sent = msgspec.json.decode(encode_report(build_report(registry, Dispatcher(registry), draining=False, now=5.0)))
    assert sent["v1.0"] == {"west/7b": [["http://127.0.0.1:4001/b/v1", "READY", -1, -1]]}
    assert "v1_0" not in sent


def test_a_replica_that_left_is_reported_as_gone() -> None:
    registry = Registry()
    registry.register_old("old", "http://127.0.0.1:4002/chat", 5.0)
    registry.unregister("old", "http://127.0.0.1:4002/chat", 6.0)
    report = build_report(registry, Dispatcher(registry), draining=False, now=7.5)
    assert (report.models, report.replicas, report.v1_0) == ([], [], {})
    [gone] = report.gone
    assert (gone.state, gone.since_s) == ("gone", 1.5)


def test_one_ejected_model_of_two_is_reported_without_the_other() -> None:
    registry = Registry()
    registry.register(registration("a", "east", "west"), now=0.0)
    other = registration("b", "east")
    registry.register(msgspec.structs.replace(other, dialects=Dialects(openai="http://127.0.0.1:4002/v1")), now=0.0)
    for fault in (b"1", b"2", b"3"):
        registry.faults.failed(registry.replicas("west")[0], "east", fault, 1.0, "no memory")
    report = build_report(registry, Dispatcher(registry), draining=False, now=1.0)
    broken = next(one for one in report.replicas if "west" in one.access_codes)
    assert (broken.state, broken.state_at("east"), broken.state_at("west")) == ("ready", "ejected", "ready")
    assert (broken.note_at("east"), broken.note_at("west")) == ("no memory", "")
    assert [row[1] for row in report.v1_0["east"]] == ["BUSY", "READY"]


def test_a_newer_kernels_fields_are_ignored_and_an_older_kernels_are_missed() -> None:
    body = b'{"kernel": {"version": "9", "mood": 1}, "models": [], "replicas": [], "soon": [1]}'
    assert decode_report(body) == Report(kernel=About("9"), models=[], replicas=[])


@pytest.mark.parametrize(
    ("replicas", "suggested"),
    [
        ((replica("debug"), replica("welcome")), "welcome"),
        ((replica("debug"), replica("welcome", "starting")), "debug"),
        ((replica("vectors", capabilities=("embeddings",)), replica("zephyr", capabilities=("chat",))), "zephyr"),
        ((replica("vectors", capabilities=("embeddings",)),), None),
        ((replica("b"), replica("a")), "a"),
        ((), None),
    ],
)
def test_the_model_to_try_first_is_ready_and_chats(replicas: tuple[Replica, ...], suggested: str | None) -> None:
    assert report_of(*replicas).suggestion() == suggested
