"""Axes for the plots of a page: where a value stands, and which round numbers are written beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import List, Sequence, Tuple

from jobs.pages.figures import Figures

TICKS = 5  # about so many on an axis
FAR = 2.5  # times the 95th percentile: what lies beyond stands at the edge
STEPS_OF_TIME = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)


@dataclass(frozen=True)
class Axis:
    """From `start` to `end`, with round values between."""

    start: float
    end: float
    ticks: Tuple[float, ...]

    def at(self, value: float) -> str:
        """The place of a value in per cent of the axis, as SVG takes it; one that is off the axis is at its edge."""
        share = (value - self.start) / (self.end - self.start)
        return f"{100 * min(1.0, max(0.0, share)):.2f}%"

    def span(self, start: float, end: float) -> str:
        """The length between two values, in per cent of the axis; never so short that it cannot be seen."""
        first, last = (min(self.end, max(self.start, value)) for value in (start, end))
        return f"{max(0.3, 100 * (last - first) / (self.end - self.start)):.2f}%"

    def holds(self, value: float) -> bool:
        return self.start <= value <= self.end


def seconds_axis(rows: Sequence[Figures]) -> Axis:
    """From 0 to the longest of the rows, unless that is far from all others."""
    found = [row.seconds for row in rows if row.seconds is not None]
    longest = max((each.longest for each in found), default=0.0)
    usual = FAR * max((each.p95 for each in found), default=0.0)
    end = 1.05 * min(longest, usual) or 1.0
    return Axis(0.0, end, round_values(end))


def time_axis(rows: Sequence[Figures]) -> Axis:
    """From the first start to the last sign of life; ticks are so many seconds after the start."""
    times = [time for row in rows for interval in row.busy for time in interval]
    start, end = min(times, default=0.0), max(times, default=0.0)
    length = max(1.0, end - start)
    rough = length / TICKS
    step = next((step for step in STEPS_OF_TIME if step >= rough), 86400 * math.ceil(rough / 86400))
    return Axis(start, start + length, tuple(start + step * n for n in range(int(length / step) + 1)))


def round_values(end: float) -> Tuple[float, ...]:
    """Multiples of 1, 2 or 5 times a power of ten from 0 to `end`, about TICKS of them."""
    rough = end / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= rough)
    values: List[float] = [step * n for n in range(int(end / step) + 1)]
    return tuple(values)
