"""Feature maps by strips of rows, for pictures whose maps do not fit into memory one beside the other.

A map (1,C,H,W) is asked for its rows. It is in memory, or a layer makes them anew each time from the rows of another
map that it looks at. What the rows of two strips share is computed for both, so that no strip shows in the result. For
inference only: nothing here has gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Callable, Iterator, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional

Layer = Callable[[Tensor], Tensor]
Rows = Callable[[int, int], Tensor]


@dataclass(frozen=True)
class FeatureMap:
    """`rows(first, last)` are its rows (1,C,last-first,W), made from the maps `kept` in memory.

    `at_once` is how many numbers a strip should have: more of them compute fewer rows twice, and take more memory.
    """

    channels: int
    height: int
    width: int
    rows: Rows
    kept: Tuple[Kept, ...]
    at_once: int

    @property
    def row_elements(self) -> int:
        """The numbers in one row."""
        return self.channels * self.width

    @property
    def elements(self) -> int:
        """The numbers in all of it."""
        return self.row_elements * self.height

    def strips(self, height: Optional[int] = None) -> Iterator[Tensor]:
        """Its rows from the top, all or the first `height`, a strip at a time."""
        for first, last in spans(self.height if height is None else height, self.at_once // self.row_elements):
            yield self.rows(first, last)


class Kept:
    """The rows of a map in memory."""

    def __init__(self, strips: Sequence[Tensor]) -> None:
        self._strips: List[Optional[Tensor]] = list(strips)
        self._bottoms = [0]
        for strip in strips:
            self._bottoms.append(self._bottoms[-1] + strip.shape[2])
        self.elements = sum(strip.numel() for strip in strips)
        self._highest: Optional[int] = None

    def rows(self, first: int, last: int) -> Tensor:
        """As of a map."""
        self._highest = first if self._highest is None else min(first, self._highest)
        parts = []
        for strip, top, bottom in zip(self._strips, self._bottoms, self._bottoms[1:]):
            if top < last and first < bottom:
                assert strip is not None, "rows were asked for that had been let go"
                parts.append(strip[:, :, max(first - top, 0) : last - top])
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def release(self) -> None:
        """Let go what lies above all rows asked for since the last call: who goes down a map does not ask again."""
        if self._highest is not None:
            for i, bottom in enumerate(self._bottoms[1:]):
                if bottom <= self._highest:
                    self._strips[i] = None
        self._highest = None


def spans(height: int, most: int) -> List[Tuple[int, int]]:
    """First row and row behind the last of strips of equal, even height, about `most`; the last may be smaller.

    Equal, because packed layers are packed for one size; even, because a layer that halves a map takes rows by twos.
    """
    count = -(-height // max(most, 2))
    rows = -(-height // count)
    rows += rows % 2
    return [(first, min(first + rows, height)) for first in range(0, height, rows)]


def in_memory(strips: Sequence[Tensor], at_once: int) -> FeatureMap:
    """The map of these strips, from the top."""
    kept = Kept(strips)
    _, channels, _, width = strips[0].shape
    return FeatureMap(channels, sum(strip.shape[2] for strip in strips), width, kept.rows, (kept,), at_once)


def replaced(x: FeatureMap) -> FeatureMap:
    """x in memory instead of the maps that it is made from; nobody may ask those again."""
    strips = []
    for strip in x.strips():
        strips.append(_alone(strip))
        for kept in x.kept:
            kept.release()
    return in_memory(strips, x.at_once)


def remembered(x: FeatureMap) -> FeatureMap:
    """x, whose rows are not made anew if they are among those asked for last."""
    top = bottom = 0
    latest: Optional[Tensor] = None

    def rows(first: int, last: int) -> Tensor:
        nonlocal top, bottom, latest
        if latest is None or first < top or last > bottom:
            latest = None  # before there is another
            top, bottom, latest = first, last, x.rows(first, last)
        return latest[:, :, first - top : last - top]

    return replace(x, rows=rows)


def kept_within(x: FeatureMap, elements: int) -> FeatureMap:
    """x with as many of its upper rows in memory as may be; the others are made when they are asked for."""
    height = min(elements // x.row_elements, x.height)
    if height < 1:
        return x
    upper = in_memory([_alone(strip) for strip in x.strips(height)], x.at_once)

    def rows(first: int, last: int) -> Tensor:
        parts = [upper.rows(first, min(last, height))] if first < height else []
        parts += [x.rows(max(first, height), last)] if last > height else []
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    return replace(x, rows=rows, kept=upper.kept if height == x.height else x.kept + upper.kept)


def behind(layer: Layer, x: FeatureMap, channels: int, *, halo: int = 0, up: int = 1, down: int = 1) -> FeatureMap:
    """x behind a layer that makes `up` rows of every `down`, and looks `halo` times `down` rows further on both sides.

    The layer gets those rows too, and what it makes at a cut is dropped. It gets as many rows at the edges of the map,
    where its own padding is right, as elsewhere.
    """
    units = x.height // down

    def rows(first: int, last: int) -> Tensor:
        count = min((last - 1) // up - first // up + 1 + 2 * halo, units)
        start = min(max(first // up - halo, 0), units - count)
        made = layer(x.rows(start * down, (start + count) * down))
        return made[:, :, first - start * up : last - start * up]

    return replace(x, channels=channels, height=units * up, width=x.width // down * up, rows=rows)


def added(x: FeatureMap, branch: FeatureMap) -> FeatureMap:
    """The sum of two maps of one size. The branch is asked first, for it looks further."""

    def rows(first: int, last: int) -> Tensor:
        more = branch.rows(first, last)
        return x.rows(first, last) + more

    return replace(x, rows=rows, kept=tuple({*x.kept, *branch.kept}))


def normalised(norm: nn.GroupNorm, x: FeatureMap) -> Layer:
    """`norm` for some rows of x, by the statistics of all of x: those of a batch norm that is not trained."""
    mean, variance = group_statistics(x, norm.num_groups)
    weight, bias = norm.weight.to(mean.dtype), norm.bias.to(mean.dtype)
    return lambda rows: functional.batch_norm(rows, mean, variance, weight, bias, eps=norm.eps)


def group_statistics(x: FeatureMap, groups: int) -> Tuple[Tensor, Tensor]:
    """Mean and variance over the whole map of the group that each channel is in, (C,) each, at least float32."""
    found, shares = [], []
    for strip in x.strips():
        found.append(torch.stack(channel_statistics(strip)))
        shares.append(strip.shape[2] / x.height)
    dtype, each = found[0].dtype, x.channels // groups
    # (strips, groups, channels of a group), in float64: the groups' variance is that inside the parts and between them
    means, variances = torch.stack(found).double().view(len(found), 2, groups, each).unbind(1)
    weights = torch.tensor(shares, dtype=torch.float64, device=means.device).view(-1, 1, 1) / each
    mean = (means * weights).sum((0, 2))
    variance = ((variances + (means - mean[:, None]) ** 2) * weights).sum((0, 2))
    return mean.to(dtype).repeat_interleave(each), variance.to(dtype).repeat_interleave(each)


def channel_statistics(strip: Tensor) -> Tuple[Tensor, Tensor]:
    """Mean and variance of each channel of (1,C,H,W), (C,) each: what a batch norm that is trained notes down.

    There it is quick in every layout and dtype, which torch's reductions are not.
    """
    dtype = torch.promote_types(strip.dtype, torch.float32)
    mean, variance = torch.zeros(2, strip.shape[1], dtype=dtype, device=strip.device)
    functional.batch_norm(strip, mean, variance, training=True, momentum=1.0)
    places = strip.shape[2] * strip.shape[3]
    return mean, variance * ((places - 1) / places)


def _alone(strip: Tensor) -> Tensor:
    """The strip without the rows that it was cut from, which would stay in memory with it."""
    return strip.clone() if strip.storage_offset() else strip
