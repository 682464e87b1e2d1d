"""Bar charts of a run as SVG, for the README: written by hand, since a plotting library would outweigh the rest.

`python benchmarks/plots.py [results/FILE.json]` draws the charts of a stored run (default: the one behind README).
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import machine

FIGURES = machine.HERE / "figures"
CHARTS = {
    "requests.svg": ("CPU per request (W1, 32 connections, 13 headers)", "µs", "W1 c32, 13 headers"),
    "chunks.svg": ("CPU per chunk (W2, streams without delay)", "µs", "W2 c32"),
    "streams.svg": ("CPU per chunk (W3, 1,000 streams at 50 chunks a second)", "µs", "W3-1000"),
    "chats.svg": ("CPU per chunk (W4, 1,000 realistic chats)", "µs", "W4"),
}
OURS = "kuwa"
WIDTH, ROW, LEFT, TOP = 640, 28, 120, 44


def draw(run: dict[str, Any], folder: Path = FIGURES) -> list[Path]:
    """Write a chart for each workload of `CHARTS` that the run has; returns their files."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn: list[Path] = []
    for name, (title, unit, workload) in CHARTS.items():
        costs: dict[str, list[float]] = {}
        for sample in run["samples"]:
            if sample["workload"] == workload:
                costs.setdefault(sample["gateway"], []).append(sample["cpu_us_per_unit"])
        if costs:
            path = folder / name
            path.write_text(bars(title, unit, [(who, statistics.median(of)) for who, of in costs.items()]))
            drawn.append(path)
    return drawn


def bars(title: str, unit: str, values: Sequence[tuple[str, float]]) -> str:
    """A chart of horizontal bars, the shortest first; on a logarithmic scale where they differ a lot."""
    ordered = sorted(values, key=lambda each: each[1])
    low, high = ordered[0][1], ordered[-1][1]
    logarithmic = high > 20 * low
    room = WIDTH - LEFT - 110

    def length(value: float) -> float:
        if not logarithmic:
            return room * value / high
        floor = low / 2
        return room * math.log(value / floor) / math.log(high / floor)

    height = TOP + ROW * len(ordered) + 12
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
        "<style>text { font-size: 13px } .title { font-size: 15px; font-weight: bold }</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="24" class="title">{escape(title)}</text>',
    ]
    if logarithmic:
        lines.append(f'<text x="{WIDTH - 12}" y="24" text-anchor="end" fill="#666666">logarithmic scale</text>')
    for row, (name, value) in enumerate(ordered):
        y = TOP + row * ROW
        colour = "#1b7f5c" if name == OURS else "#9aa5b1"
        shown = f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"
        lines += [
            f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{LEFT}" y="{y}" width="{length(value):.1f}" height="{ROW - 8}" fill="{colour}"/>',
            f'<text x="{LEFT + length(value) + 6:.1f}" y="{y + 15}">{shown} {escape(unit)}</text>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else machine.HERE / "results" / "readme.json"
    for written in draw(json.loads(source.read_text())):
        print(written)
