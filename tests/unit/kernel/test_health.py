from __future__ import annotations

import pytest

from kuwa.kernel.dispatcher import Dispatcher
from kuwa.kernel.health import settle
from kuwa.kernel.queue import Ticket
from kuwa.kernel.registry import Registry


@pytest.mark.parametrize(
    ("endpoint", "asked"),
    [
        ("http://127.0.0.1:5001/chat", "http://127.0.0.1:5001/health"),
        ("https://[::1]:5001/a/b/chat", "https://[::1]:5001/health"),
    ],
)
def test_an_old_executor_is_asked_at_the_root_of_its_server(endpoint: str, asked: str) -> None:
    registry = Registry()
    registry.register_old("m", endpoint, 0.0)
    assert registry.replicas("m")[0].health_url == asked


def test_an_upstream_is_asked_for_its_models() -> None:
    registry = Registry()
    registry.add_upstream("gpt", "https://api.test/v1", "", b"", 0.0)
    assert registry.replicas("gpt")[0].health_url == "https://api.test/v1/models"


def test_a_change_wakes_exactly_those_whom_it_concerns() -> None:
    registry = Registry()
    dispatcher = Dispatcher(registry)
    registry.register_old("m", "http://127.0.0.1:5001/chat", 0.0)
    registry.health(registry.replicas("m")[0], "ok", 0.0)
    settle(registry, dispatcher, 0.0)
    woken: list[str] = []
    for name in ("running", "waiting"):
        dispatcher.acquire(Ticket("m", "p", granted=lambda name=name: woken.append(name)), 0.0)
    settle(registry, dispatcher, 1.0)
    assert woken == []
    registry.unregister("m", "http://127.0.0.1:5001/chat", 2.0)
    settle(registry, dispatcher, 2.0)
    settle(registry, dispatcher, 3.0)
    assert woken == ["waiting"]
