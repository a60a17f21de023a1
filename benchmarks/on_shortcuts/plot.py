"""The plot of speed against difference: a panel for each model, a dot for each setting, labels where there is room."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Iterator, List, Mapping, Sequence, Tuple

WIDTH, LEFT, RIGHT = 760, 60, 24  # px
LEGEND, TITLE, PANEL, AXIS = 72, 34, 310, 46  # px, from top to bottom; the last three for each panel
COLOURS = {
    "feature cache": "#2166ac",
    "guidance ends early": "#b2182b",
    "fewer steps": "#1b7837",
    "two at once": "#762a83",
    "LCM, weights not distilled": "#888888",
}
RADIUS, LINE = 5.0, 12.0  # px
LETTER = 6.2  # px: no label of 10 px is wider a letter, whatever the font
HALO = 'stroke="white" stroke-width="3" paint-order="stroke"'  # or the grid goes through the letters
FAR = 7  # lines that a label may be away from its dot
ROUND = (1, 1.5, 2, 3, 4, 5, 7)

Box = Tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Dot:
    """A setting: how many times faster, how far from all of the work, what it is called, its kind."""

    faster: float
    distance: float
    label: str
    kind: str


@dataclass(frozen=True)
class Scale:
    """A logarithmic axis: where in px the values from `low` to `high` stand."""

    low: float
    high: float
    first: float
    last: float

    def at(self, value: float) -> float:
        return self.first + (self.last - self.first) * math.log(value / self.low) / math.log(self.high / self.low)

    @property
    def ticks(self) -> List[float]:
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)))
        values = [value * 10.0**power for power in powers for value in ROUND]
        return [value for value in values if self.low <= value <= self.high]


def svg(panels: Mapping[str, Sequence[Dot]], yardstick: float, yardstick_name: str) -> str:
    """A panel for each title. The yardstick is a distance that a line is drawn at."""
    height = LEGEND + len(panels) * (TITLE + PANEL + AXIS)
    dots = [dot for each in panels.values() for dot in each]
    fastest = 1.25 * max(dot.faster for dot in dots)
    slowest = 0.92 * min(1.0, *(dot.faster for dot in dots))
    nearest, farthest = 0.8 * min(dot.distance for dot in dots), 1.15 * max(yardstick, *(dot.distance for dot in dots))
    across = Scale(slowest, fastest, LEFT, WIDTH - RIGHT)
    shapes = _legend()
    for number, (title, each) in enumerate(panels.items()):
        top = LEGEND + number * (TITLE + PANEL + AXIS) + TITLE
        up = Scale(nearest, farthest, top + PANEL, top)
        shapes += _frame(title, across, up)
        y = up.at(yardstick)
        shapes.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#888888" stroke-dasharray="4 4"/>')
        shapes.append(f'<text x="{LEFT + 6}" y="{y - 4:.1f}" font-size="10">{yardstick_name}</text>')
        shapes += _dots(each, across, up)
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    style = 'font-family="sans-serif" font-size="12" fill="#333333"'
    background = f'<rect width="{WIDTH}" height="{height}" fill="white"/>'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>', background, *shapes, "</svg>", ""])


def _dots(dots: Sequence[Dot], across: Scale, up: Scale) -> List[str]:
    places = [(across.at(dot.faster), up.at(dot.distance)) for dot in dots]
    shapes = []
    for dot, (x, y), box in zip(dots, places, label_boxes([dot.label for dot in dots], places, across, up)):
        nearest = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
        if math.dist((x, y), nearest) > 2 * RADIUS:
            shapes.append(
                f'<path d="M{x:.1f} {y:.1f}L{nearest[0]:.1f} {nearest[1]:.1f}" stroke="{COLOURS[dot.kind]}"/>'
            )
        shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS:.0f}" fill="{COLOURS[dot.kind]}"/>')
        anchor, at = _anchor(x, box)
        written = f'x="{at:.1f}" y="{box[3] - 3:.1f}" font-size="10" text-anchor="{anchor}"'
        shapes.append(f"<text {written} {HALO}>{dot.label}</text>")
    return shapes


def _anchor(x: float, box: Box) -> Tuple[str, float]:
    """Where in its box a text begins, for the gap between it and the dot at x depends on the font otherwise."""
    if box[0] > x:
        return "start", box[0]
    return ("end", box[2]) if box[2] < x else ("middle", (box[0] + box[2]) / 2)


def label_boxes(labels: Sequence[str], places: Sequence[Tuple[float, float]], across: Scale, up: Scale) -> List[Box]:
    """A box for the label of each dot, near it and on no dot or other label; a lone dot's is to its right."""
    frame = (across.first, up.last, across.last, up.first)
    taken = [(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y in places]
    found = []
    for label, place in zip(labels, places):
        boxes = list(_around(place, LETTER * len(label)))
        free = (box for box in boxes if inside(box, frame) and not any(overlap(box, other) for other in taken))
        box = next(free, boxes[0])
        taken.append(box)
        found.append(box)
    return found


def _around(place: Tuple[float, float], width: float) -> Iterator[Box]:
    """Boxes beside a dot, the nearest first."""
    for step in range(1, FAR + 1):
        gap = RADIUS + 2 + (step - 1) * LINE
        for right, down in ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1)):
            left = place[0] + right * gap + (right - 1) * width / 2
            top = place[1] + down * (gap + LINE / 2) - LINE / 2
            yield left, top, left + width, top + LINE


def overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def inside(box: Box, frame: Box) -> bool:
    return box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]


def _frame(title: str, across: Scale, up: Scale) -> List[str]:
    shapes = [f'<text x="{LEFT}" y="{up.last - 12:.0f}" font-weight="bold">{title}</text>']
    for tick in across.ticks:
        x = across.at(tick)
        shapes.append(f'<path d="M{x:.1f} {up.last}V{up.first}" stroke="#e5e5e5"/>')
        shapes.append(f'<text x="{x:.1f}" y="{up.first + 16:.0f}" text-anchor="middle">{tick:g}</text>')
    for tick in up.ticks:
        y = up.at(tick)
        shapes.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#e5e5e5"/>')
        shapes.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    middle = (up.first + up.last) / 2
    shapes.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{up.first + 34:.0f}" text-anchor="middle">times faster</text>'
    )
    turned = f'transform="rotate(-90 14 {middle:.0f})"'
    shapes.append(f'<text x="14" y="{middle:.0f}" text-anchor="middle" {turned}>distance in latents</text>')
    return shapes


def _legend() -> List[str]:
    shapes = []
    for number, (kind, colour) in enumerate(COLOURS.items()):
        x, y = LEFT + 6 + 220 * (number % 3), 22 + 22 * (number // 3)
        shapes.append(f'<circle cx="{x}" cy="{y}" r="{RADIUS:.0f}" fill="{colour}"/>')
        shapes.append(f'<text x="{x + 12}" y="{y + 4}">{kind}</text>')
    return shapes
