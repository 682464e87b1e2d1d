"""What is no cost per request: the most streams that keep up, streams that stay idle, and what grows.

run.py calls these after the workloads of a long run. Each function measures one gateway and returns a record.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import gateways
import machine
import workloads
from gateways import Running, ask

STREAM_MS = 1980.0  # what a W3 stream takes that keeps up: 99 pauses of 20 ms
LATE = 1.05
FEWEST, MOST = 100, 4000
NEAR = 0.05  # the bisection ends when its bounds are this near

PING_S = 10
PROBE_S = 3.0
IDLE_RAMP_S = 10.0

REPLICAS = (1, 10, 100, 1000)
GROWTH_ROUNDS = 5
GROWTH_S = 2.0
WHOLE_ANSWERS = workloads.Workload("W1 c32", "", 32)
RENEWALS = 4
REGISTERING = 16  # connections that register at the same time
SOON_S = 2.3  # a lease counts as doubtful after 4.5 s
MANY_REQUESTS = 100_000


@dataclass(frozen=True, slots=True)
class MostStreams:
    gateway: str
    streams: int
    probes: dict[int, float]  # streams at once -> ms within which 99 % of the streams ended; inf: some failed


@dataclass(frozen=True, slots=True)
class IdleStreams:
    gateway: str
    streams: int
    seconds: float
    alive: int  # streams that ended as they should, at the end
    kb_a_stream: float
    rss_mb: float
    cpu_ms_per_s: float
    first_byte_p99_ms: float  # of new requests meanwhile, the worst of several probes


@dataclass(slots=True)
class Growth:
    gateway: str
    replicas: int
    cpu_us_per_request: list[float] = field(default_factory=list[float])
    cpu_us_per_renewal: list[float] = field(default_factory=list[float])  # nginx has none: its servers are configured
    rss_mb: float = 0.0


@dataclass(frozen=True, slots=True)
class Memory:
    """RSS before and after many requests, which come after some that warm up."""

    requests: int
    before_mb: float
    after_mb: float


def most_streams(gateway: Running, mock: Running, load: Path) -> MostStreams:
    """Bisect for the most W3 streams of which 99 % end at most 5 % late."""
    probes: dict[int, float] = {}

    def keeps_up(streams: int) -> bool:
        sample = workloads.measure(workloads.steady(streams), gateway, 0.0, mock=mock, load=load)
        whole = not sample.load["errors"] and not sample.load["hung"]
        probes[streams] = sample.load["request_ms_p99"] if whole else float("inf")
        verdict = "keeps up" if probes[streams] <= STREAM_MS * LATE else "falls behind"
        print(f"{gateway.name}: {streams} streams: p99 {probes[streams]:.0f} ms, {verdict}", flush=True)
        return probes[streams] <= STREAM_MS * LATE

    low, high = 0, MOST
    streams = FEWEST
    while streams < MOST and keeps_up(streams):  # upwards first: an overloaded gateway takes long to recover
        low, streams = streams, streams * 2
    high = streams
    while low and high - low > NEAR * high:
        middle = (low + high) // 2
        if keeps_up(middle):
            low = middle
        else:
            high = middle
    return MostStreams(gateway.name, low, probes)


def idle_streams(gateway: Running, mock: Running, load: Path, *, streams: int, seconds: float) -> IdleStreams:
    """Hold streams that say nothing but `: ping` for some time, and ask new requests beside them."""
    pings = max(2, round(seconds / PING_S)) + round(IDLE_RAMP_S / PING_S)
    ask(mock.port, "GET", f"/cfg?chunks={pings + 1}&delay={PING_S * 1_000_000}&ttft=0&pad=0&pings=1")
    rss_before = gateway.rss_mb()
    lasts = pings * PING_S
    arguments = ["-c", streams, "-n", streams, "-d", IDLE_RAMP_S + lasts, "-r", IDLE_RAMP_S * 1000, "-s", "-e", 2]
    probes: list[float] = []
    with subprocess.Popen(
        [load, str(gateway.port), *map(str, arguments)], stdout=subprocess.PIPE, text=True
    ) as holding:
        begin = time.monotonic()
        try:
            time.sleep(IDLE_RAMP_S + 1.0)  # the measurement itself: all streams are under way then
            cpu, since = gateway.cpu_seconds(), time.monotonic()
            time.sleep(PING_S)
            cpu_ms_per_s = (gateway.cpu_seconds() - cpu) * 1000 / (time.monotonic() - since)
            rss = gateway.rss_mb()
            while time.monotonic() - begin < lasts - PROBE_S - 1:
                probes.append(_first_byte_p99(gateway, load))
                rss = max(rss, gateway.rss_mb())
            output, _ = holding.communicate(timeout=lasts + 60)
        except subprocess.TimeoutExpired as error:
            raise machine.NotReady(f"{gateway.name}: {streams} idle streams did not end") from error
        finally:
            holding.kill()
    printed = json.loads(output)
    print(f"{gateway.name}: {streams} idle streams for {lasts:g} s: {printed['ok']} alive at the end", flush=True)
    return IdleStreams(
        gateway.name,
        streams,
        lasts,
        printed["ok"],
        (rss - rss_before) * 1000 / streams,
        rss,
        cpu_ms_per_s,
        max(probes, default=-1.0),
    )


def _first_byte_p99(gateway: Running, load: Path) -> float:
    """New requests, not streamed, four at a time: the mock streams pings only."""
    command = [load, str(gateway.port), "-c", "4", "-n", "2000", "-d", str(PROBE_S)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed["request_ms_p99"] if not printed["errors"] else float("inf")


def growth(gateway_core: int, tools_core: int, load: Path, mock_program: Path) -> list[Growth]:
    """CPU per request of a kernel with 1 to 1,000 executors registered, each at an address of its own; and of nginx
    with as many servers.

    The leases are renewed between the rounds, not in them: what a renewal and what a request costs are two figures.
    """
    with contextlib.ExitStack() as running:
        mock = _many_models(mock_program, tools_core, running)
        grown = [(Growth("kuwa", count), _bare_kernel(count, gateway_core, running)) for count in REPLICAS]
        grown += [(Growth("nginx", count), _nginx(mock, count, gateway_core, running)) for count in REPLICAS]
        for turn in range(GROWTH_ROUNDS + 1):
            for each, gateway in grown:
                renewals = [_renew(gateway, mock, each.replicas)] if each.gateway == "kuwa" else []
                sample = workloads.measure(WHOLE_ANSWERS, gateway, GROWTH_S, mock=mock, load=load)
                if sample.load["errors"]:
                    raise machine.NotReady(f"{gateway.name}: {sample.load}\n{gateway.last_words()}")
                if turn:  # the first one warms up: it opens the connections
                    each.cpu_us_per_request.append(sample.cpu_us_per_unit)
                    each.cpu_us_per_renewal.extend(renewals)
                    print(f"growth {turn}/{GROWTH_ROUNDS} {gateway.name:12} {sample.cpu_us_per_unit:8.2f} µs/request")
                each.rss_mb = gateway.rss_mb()
        return [each for each, _ in grown]


def memory(gateway: Running, mock: Running, load: Path) -> Memory:
    """RSS before and after 100,000 requests that are answered in one piece."""
    ask(mock.port, "GET", "/cfg?chunks=50&delay=0&ttft=0&pad=0&pings=0")
    _send(gateway, load, MANY_REQUESTS // 10)
    before = gateway.rss_mb()
    sent = _send(gateway, load, MANY_REQUESTS)
    return Memory(sent, before, gateway.rss_mb())


def _send(gateway: Running, load: Path, requests: int) -> int:
    command = [load, str(gateway.port), "-c", "32", "-n", str(requests), "-d", "100"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=150)
    printed = json.loads(done.stdout)
    if printed["errors"]:
        raise machine.NotReady(f"{gateway.name} failed some of {requests} requests: {printed}")
    return printed["ok"]


def _many_models(program: Path, core: int, running: contextlib.ExitStack) -> Running:
    pace = ("50", "0", "0", "0", str(max(REPLICAS)))
    return gateways.serve("mock", lambda port, _: [program, str(port), *pace], core, running)


def _bare_kernel(count: int, core: int, running: contextlib.ExitStack) -> Running:
    def command(port: int, _: Path) -> list[str | Path]:
        return [machine.kuwa_command("kuwa-kernel"), "--port", str(port)]

    return gateways.serve(f"kuwa-{count}", command, core, running, method="GET", path="/livez")


def _nginx(mock: Running, count: int, core: int, running: contextlib.ExitStack) -> Running:
    servers = [f"{host}:{mock.port}" for host in _loopback_addresses(count)]
    return gateways.serve(
        f"nginx-{count}", lambda port, folder: gateways.nginx_command(port, servers, folder), core, running
    )


def _renew(kernel: Running, mock: Running, count: int) -> float:
    """Register or renew so many executors, in time for requests to be counted; the µs of CPU that each renewal cost."""
    for _ in range(RENEWALS):
        begin, used = time.monotonic(), kernel.cpu_seconds()
        _register(kernel, mock, count)
        if time.monotonic() - begin < SOON_S:
            return (kernel.cpu_seconds() - used) * 1e6 / count
    raise machine.NotReady(
        f"renewing {count} leases took more than {SOON_S} s, {RENEWALS} times, so that they would lapse while requests "
        "are counted: measure on a machine that is less busy"
    )


def _register(kernel: Running, mock: Running, count: int) -> None:
    """Register (or renew) so many executors, whose addresses are 127.0.0.1, 127.0.0.2 and so on.

    Several at a time: on a busy machine the waiting would take longer than the leases last.
    """
    numbered = list(enumerate(_loopback_addresses(count)))
    with ThreadPoolExecutor(REGISTERING) as threads:
        shares = [numbered[first::REGISTERING] for first in range(min(REGISTERING, count))]
        for done in [threads.submit(_register_these, kernel, mock, share) for share in shares]:
            done.result()


def _register_these(kernel: Running, mock: Running, numbered: Sequence[tuple[int, str]]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", kernel.port, timeout=10)
    with contextlib.closing(connection):
        for number, host in numbered:
            lease = {
                "executor_id": f"bench-{number}",
                "incarnation": 1,
                "access_codes": ["mock"],
                "dialects": {"openai": f"http://{host}:{mock.port}/v1"},
                "concurrency": 64,
            }
            form = {"name": "mock", "endpoint": f"http://{host}:{mock.port}/chat", "kuwa": json.dumps(lease)}
            headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
            connection.request("POST", "/v1.0/worker/register", urlencode(form), headers)
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                raise machine.NotReady(f"the kernel refuses a registration: {response.status} {body[:300]!r}")


def _loopback_addresses(count: int) -> Iterator[str]:
    for number in range(1, count + 1):
        yield f"127.0.{number >> 8}.{number & 255}"
