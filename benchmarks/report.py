"""What a run found, as Markdown for people and as JSON for everything else."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import machine
import plots
from endurance import Growth, IdleStreams, Memory, MostStreams
from gateways import Gateway
from startup import StartUp
from workloads import Sample, Workload

BASELINE = "nginx"
RESULTS = machine.HERE / "results"
README = machine.HERE / "README.md"
SHOWN = RESULTS / "readme.json"  # every single figure behind README's tables; the only result kept in git
FIGURES = ("<!-- figures: written by run.py --readme -->\n", "<!-- end of figures -->\n")
NOISE_LIMIT = 0.1  # CPU seconds of others per second; above it the report says that the machine was not quiet


@dataclass(frozen=True, slots=True)
class Outcome:
    machine: dict[str, str]
    gateways: Sequence[Gateway]
    workloads: Sequence[Workload]
    samples: Sequence[Sample]
    start_ups: Sequence[StartUp]
    most: Sequence[MostStreams] = ()
    idle: Sequence[IdleStreams] = ()
    grown: Sequence[Growth] = ()
    memory: Sequence[Memory] = ()
    left_out: Mapping[str, str] = field(default_factory=dict[str, str])  # name, or "name, workload" -> why

    def as_markdown(self) -> str:
        facts = [f"- {key}: {value}" for key, value in self.machine.items()]
        facts += [f"- {each.name} {each.version}: {each.switched_on}" for each in self.gateways]
        facts.append(f"- {time.strftime('%Y-%m-%d')}, {self._turns()} turns of each; {self._noise()}")
        facts += [f"- left out: {name}: {why}" for name, why in self.left_out.items()]
        facts += [f"- **FAILED**: {failure}" for failure in self.failures()]
        parts = [self._cost_table(), self._most_table(), self._idle_table(), self._growth_table()]
        parts.append("\n".join(f"- {self._memory_line(each)}" for each in self.memory))
        parts.append(self._start_up_table())
        return "\n\n".join(["\n".join(facts), *(part for part in parts if part)])

    def failures(self) -> list[str]:
        """Turns in which a request failed or never ended: their figures are not to be believed."""
        return [
            f"{each.workload}, {each.gateway}: {each.load['errors']} errors, {each.load['hung']} without an end"
            for each in self.samples
            if each.load["errors"] or each.load["hung"]
        ]

    def write(self, path: Path | None) -> Path:
        path = path or RESULTS / time.strftime("%Y-%m-%dT%H%M%S.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = {
            "machine": self.machine,
            "gateways": {each.name: {"version": each.version, "on": each.switched_on} for each in self.gateways},
            "workloads": [asdict(each) for each in self.workloads],
            "start_up": [asdict(each) for each in self.start_ups],
            "most_streams": [asdict(each) for each in self.most],
            "idle_streams": [asdict(each) for each in self.idle],
            "growth": [asdict(each) for each in self.grown],
            "memory": [asdict(each) for each in self.memory],
            "left_out": dict(self.left_out),
            "samples": [asdict(each) for each in self.samples],
        }
        path.write_text(json.dumps(whole) + "\n")
        return path

    def write_readme(self) -> None:
        """Put these tables in the place of README's, and their figures and charts beside them."""
        self.write(SHOWN)
        charts = [path.name for path in plots.draw(json.loads(SHOWN.read_text()))]
        shown = "".join(f"![{plots.CHARTS[name][0]}](figures/{name})\n" for name in charts)
        begin, end = FIGURES
        before, _, rest = README.read_text().partition(begin)
        _, _, after = rest.partition(end)
        README.write_text(f"{before}{begin}{self.as_markdown()}\n\n{shown}{end}{after}")

    def _of(self, workload: Workload, gateway: Gateway) -> list[Sample]:
        return [each for each in self.samples if (each.workload, each.gateway) == (workload.name, gateway.name)]

    def _turns(self) -> int:
        return len(self._of(self.workloads[0], self.gateways[0]))

    def _noise(self) -> str:
        share = statistics.median(each.others_cpu_seconds / each.load["seconds"] for each in self.samples)
        verdict = "NOT a quiet machine" if share > NOISE_LIMIT else "a quiet machine"
        return f"{verdict}: others used {share:.2f} cores meanwhile (median)"

    def _cost_table(self) -> str:
        rows = [
            self._cost_row(workload, gateway, baseline)
            for workload in self.workloads
            for baseline in [next((each for each in self.gateways if each.name == BASELINE), None)]
            for gateway in self.gateways
            if self._of(workload, gateway)
        ]
        head = (
            "workload", "gateway", "µs of CPU", "per", f"× {BASELINE}", "per second",
            "request ms p50 / p99", "chunk ms p50 / p99", "chunks a read", "RSS MB",
        )  # fmt: skip
        return table(head, rows)

    def _cost_row(self, workload: Workload, gateway: Gateway, baseline: Gateway | None) -> tuple[str, ...]:
        samples = self._of(workload, gateway)
        of_baseline = self._of(workload, baseline) if baseline is not None and gateway != baseline else []
        costs = [each.cpu_us_per_unit for each in samples]
        ratio = ""
        if of_baseline:
            pairs = zip(costs, of_baseline, strict=True)
            ratio = spread((cost / base.cpu_us_per_unit for cost, base in pairs), "{:.2f}")
        rate = "requests_per_s" if workload.unit == "request" else "chunks_per_s"
        latency = "{:.2f} / {:.2f}"
        return (
            workload.name,
            gateway.name,
            spread(costs, "{:.1f}"),
            workload.unit,
            ratio,
            f"{_median(samples, lambda each: each.load[rate]):,.0f}",
            latency.format(*(_median(samples, lambda each, k=key: each.load[k]) for key in _percentiles("request"))),
            latency.format(*(_median(samples, lambda each, k=key: each.load[k]) for key in _percentiles("chunk")))
            if workload.chunks
            else "",
            f"{_median(samples, lambda each: each.load['chunks'] / each.load['reads']):.1f}" if workload.chunks else "",
            f"{max(each.peak_rss_mb for each in samples):.0f}",
        )

    def _most_table(self) -> str:
        rows = [(each.gateway, f"{each.streams:,}") for each in self.most]
        return table(("gateway", "most W3 streams that keep up"), rows) if rows else ""

    def _idle_table(self) -> str:
        head = (
            "gateway", "idle streams", "for s", "alive at the end", "KB a stream", "RSS MB", "CPU ms/s",
            "new request ms p99 (worst)",
        )  # fmt: skip
        rows = [
            (
                each.gateway,
                f"{each.streams:,}",
                f"{each.seconds:.0f}",
                f"{each.alive:,}",
                f"{each.kb_a_stream:.1f}",
                f"{each.rss_mb:.0f}",
                f"{each.cpu_ms_per_s:.0f}",
                f"{each.first_byte_p99_ms:.1f}",
            )
            for each in self.idle
        ]
        return table(head, rows) if rows else ""

    def _growth_table(self) -> str:
        rows: list[tuple[str, ...]] = []
        for each in self.grown:
            first = next(one for one in self.grown if one.gateway == each.gateway)
            one = statistics.median(first.cpu_us_per_request)
            rows.append(
                (
                    each.gateway,
                    f"{each.replicas:,}",
                    spread(each.cpu_us_per_request, "{:.1f}"),
                    f"{statistics.median(each.cpu_us_per_request) / one:.2f}",
                    spread(each.cpu_us_per_renewal, "{:.0f}") if each.cpu_us_per_renewal else "",
                    f"{each.rss_mb:.0f}",
                )
            )
        head = ("gateway", "replicas", "µs of CPU per request", "× one replica", "µs of CPU per renewal", "RSS MB")
        return table(head, rows) if rows else ""

    def _memory_line(self, each: Memory) -> str:
        return f"RSS over {each.requests:,} requests: {each.before_mb:.1f} MB before, {each.after_mb:.1f} MB after"

    def _start_up_table(self) -> str:
        if not self.start_ups:
            return ""
        head = ("start", "CPU s", "wall s", "idle RSS MB", "idle CPU ms/s")
        return table(
            head,
            [
                (
                    each.what,
                    f"{each.cpu_s:.2f}",
                    f"{each.wall_s:.2f}",
                    "" if each.rss_mb is None else f"{each.rss_mb:.0f}",
                    "" if each.idle_cpu_ms_per_s is None else f"{each.idle_cpu_ms_per_s:.1f}",
                )
                for each in self.start_ups
            ],
        )


def spread(values: Iterable[float], form: str) -> str:
    """Median and, in brackets, the range."""
    ordered = sorted(values)
    low, high = form.format(ordered[0]), form.format(ordered[-1])
    return f"{form.format(statistics.median(ordered))} ({low}–{high})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose source is aligned, so that it reads well in a terminal too."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def _percentiles(what: str) -> tuple[str, str]:
    return f"{what}_ms_p50", f"{what}_ms_p99"


def _median(samples: Sequence[Sample], of: Callable[[Sample], float]) -> float:
    return statistics.median(of(each) for each in samples)
