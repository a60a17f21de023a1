"""The page docs/benchmarks-cluster.md and its plot, from what was measured."""

from __future__ import annotations

import datetime
import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Sequence

from on_cluster.measure import ROOT, Row, markdown, processor
from on_cluster.scaling import Point, curve_table

PAGE = ROOT / "docs" / "benchmarks-cluster.md"
PLOT = ROOT / "docs" / "images" / "scaling.svg"
WIDTH, HEIGHT, MARGIN = 560, 360, 56  # px
INTRODUCTION = """# What the batch system costs

Measured by `python benchmarks/cluster.py --full`, which starts a private Slurm cluster of its own and wrote this page;
what happens to runs when nodes die is measured by `make chaos`. Values are medians, with the lowest and the highest of
the repeats behind them; a spread above 10 % is said.

{machine}
"""
EXPLANATION = """
The parts of a task are found by leaving one out after the other, and taken to a task of 15 minutes with a picture a
second. Loading the model and sampling are no part of them.

## More nodes

Each node has {seconds} s of work, one task of one card; the model sleeps a second a picture, so that this machine's
{cores} cores can stand for many nodes. They cannot start many at once: each task takes half a second of a core or
more until Python is up, which a cluster's nodes spend side by side and this machine in turns. `images/s` has that in
it and `images/s at work` leaves it out: there each process is counted from when it could begin.

![Images a second by simulated nodes](images/scaling.svg)

"""


def write(table: Sequence[Row], points: Sequence[Point], images_per_node: int, slurm: str) -> None:
    """Replace the page and the plot. `slurm` is its version."""
    explained = EXPLANATION.format(seconds=images_per_node, cores=os.cpu_count())
    lines = [INTRODUCTION.format(machine=machine(slurm)), *markdown(table), explained + "\n".join(curve_table(points))]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    PLOT.write_text(svg(points), encoding="utf-8")


def replace_rows(table: Sequence[Row]) -> None:
    """Put what was measured again in the place of what stands on the page; ValueError for what does not stand there."""
    lines = PAGE.read_text(encoding="utf-8").split("\n")
    for row, text in zip(table, markdown(table)[2:]):
        lines[[line.split(" |")[0] for line in lines].index(f"| {row.what}")] = text
    PAGE.write_text("\n".join(lines), encoding="utf-8")


def chaos_row(files: Sequence[Path]) -> Row:
    """What `benchmarks/chaos.py --json FILE` has found, with one seed each."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    events: Counter[str] = sum((Counter(each["events"]) for each in found), Counter())
    minutes = min(each["seconds"]["disturbed"] for each in found) // 60
    runs, faults = (sum(len(each[key]) for each in found) for key in ("runs", "faults"))
    listed = ", ".join(f"{name} {times}" for name, times in events.most_common())
    first = found[0]
    return Row(
        f"chaos: {first['images']:,} images on {first['nodes']} nodes, at least 15 min, three seeds",
        "each once, byte-equal, no partial file, no lost record",
        f"{len(found)} seeds of {minutes} min, {runs} runs with {first['model']}: {sum(events.values())} events "
        f"({listed}); {faults} faults",
        not faults,
    )


def machine(slurm: str) -> str:
    """What was measured on and when, without any name."""
    return f"{datetime.date.today():%Y-%m-%d}, {processor()}, {slurm}, simulated nodes on this one machine."


def svg(points: Sequence[Point]) -> str:
    """Images a second by nodes, both axes logarithmic, beside the ideal line."""
    ideal = points[0].throughput / points[0].nodes
    curves = {
        "ideal": ("#999999", [(point.nodes, ideal * point.nodes) for point in points]),
        "at work": ("#1b7837", [(point.nodes, point.at_work) for point in points]),
        "with start-up": ("#2166ac", [(point.nodes, point.throughput) for point in points]),
    }
    highest = max(value for _, values in curves.values() for _, value in values)
    lowest = min(value for _, values in curves.values() for _, value in values)

    def x(nodes: float) -> float:
        return MARGIN + (WIDTH - 2 * MARGIN) * _share(nodes, points[0].nodes, points[-1].nodes)

    def y(rate: float) -> float:
        return HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * _share(rate, lowest, highest)

    shapes = [_text(WIDTH / 2, HEIGHT - 12, "simulated nodes"), _text(MARGIN, 24, "images a second")]
    for point in points:
        shapes += [_text(x(point.nodes), HEIGHT - MARGIN + 20, f"{point.nodes}")]
        shapes += [_text(24, y(ideal * point.nodes) + 4, f"{ideal * point.nodes:.3g}")]
        shapes += [_line("#e5e5e5", [(x(point.nodes), MARGIN), (x(point.nodes), HEIGHT - MARGIN)])]
    for number, (name, (colour, values)) in enumerate(curves.items()):
        shapes.append(_line(colour, [(x(nodes), y(rate)) for nodes, rate in values]))
        shapes.append(_text(WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN - 20 * number, name, colour))
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    style = 'font-family="sans-serif" font-size="12" text-anchor="middle"'
    background = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>', background, *shapes, "</svg>", ""])


def _share(value: float, lowest: float, highest: float) -> float:
    """Where a value stands between two others on a logarithmic scale, from 0 to 1."""
    return math.log(value / lowest) / math.log(highest / lowest) if highest > lowest else 0.0


def _line(colour: str, places: Sequence[Sequence[float]]) -> str:
    points = " ".join(f"{across:.1f},{down:.1f}" for across, down in places)
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'


def _text(across: float, down: float, text: str, colour: str = "#333333") -> str:
    return f'<text x="{across:.1f}" y="{down:.1f}" fill="{colour}">{text}</text>'
