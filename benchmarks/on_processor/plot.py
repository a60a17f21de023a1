"""The plot of the page: how much of what the processor can do the U-Net reaches, each way."""

from __future__ import annotations

from typing import List

from on_cluster.measure import Measured

from jobs.pages.plots import Axis, round_values
from on_processor.rows import WORKS, Found, share_of_limit

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 720, 150, 110, 56, 44  # px
BAR, GAP = 20, 18
COLOURS = {"ours": "#2166ac", "plain": "#92c5de", "diffusers": "#b2182b"}


def svg(found: Found) -> str:
    """A bar for each way of each U-Net forward, as a share of the limit, with its seconds behind it."""
    drawn = [(work, way) for work in WORKS if work.series.startswith("unet") for way in COLOURS]
    drawn = [(work, way) for work, way in drawn if share_of_limit(work, found.get(work.series, {}), way)]
    works = list(dict.fromkeys(work for work, _ in drawn))
    height = TOP + BOTTOM + len(drawn) * BAR + max(0, len(works) - 1) * GAP
    axis = Axis(0.0, 1.0, round_values(1.0))
    shapes = [_grid(axis, height), _legend()]
    down = TOP
    for work in works:
        ways = [way for each, way in drawn if each == work]
        middle = down + len(ways) * BAR / 2 + 4
        shapes.append(f'<text x="{LEFT - 12}" y="{middle:.0f}" text-anchor="end">{work.what.split(", ", 1)[1]}</text>')
        for way in ways:
            series = found[work.series]
            share = share_of_limit(work, series, way)
            assert share is not None
            text = f"{share.median:.0%}, {Measured(series[way]).median:.2f} s"
            shapes += _bar(axis, down, way, share.median, text)
            down += BAR
        down += GAP
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    style = 'font-family="sans-serif" font-size="12" fill="#333333"'
    background = f'<rect width="{WIDTH}" height="{height}" fill="white"/>'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>', background, *shapes, "</svg>", ""])


def _bar(axis: Axis, down: float, way: str, share: float, text: str) -> List[str]:
    length = float(axis.at(share).rstrip("%")) / 100 * (WIDTH - LEFT - RIGHT)
    shape = f'<rect x="{LEFT}" y="{down + 1:.0f}" width="{length:.1f}" height="{BAR - 3}" fill="{COLOURS[way]}"/>'
    return [shape, f'<text x="{LEFT + length + 6:.1f}" y="{down + 14:.0f}">{text}</text>']


def _grid(axis: Axis, height: int) -> str:
    shapes = []
    for tick in axis.ticks:
        x = LEFT + tick * (WIDTH - LEFT - RIGHT)
        shapes.append(f'<path d="M{x:.1f} {TOP - 6}V{height - BOTTOM + 6}" stroke="#dddddd"/>')
        shapes.append(f'<text x="{x:.1f}" y="{height - BOTTOM + 22}" text-anchor="middle">{tick:.0%}</text>')
    return "\n".join(shapes)


def _legend() -> str:
    shapes = [f'<text x="{LEFT}" y="20">share of what the processor can do, U-Net with guidance</text>']
    for number, (way, colour) in enumerate(COLOURS.items()):
        x = LEFT + 120 * number
        shapes.append(f'<rect x="{x}" y="30" width="12" height="12" fill="{colour}"/>')
        shapes.append(f'<text x="{x + 18}" y="40">{way}</text>')
    return "\n".join(shapes)
