"""Feature maps by strips of rows, for pictures whose maps do not fit into memory one beside the other.

A map (1,C,H,W) is asked for its rows. It is in memory, or a layer makes them anew each time from the rows of another
map that it looks at. What the rows of two strips share is computed for both, so that no strip shows in the result. For
inference only: nothing here has gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Callable, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ldm.modules.diffusionmodules.slots import Kept, Layer, Slots, pieces
from ldm.modules.memory import trim_memory

Rows = Callable[[int, int], List[Tensor]]


@dataclass(frozen=True)
class FeatureMap:
    """`rows(first, last)` are its rows from the top, in parts (1,C,h,W), made from the maps `kept` in memory.

    Of each row `at_once` numbers are there together, in one of the maps on the way. A strip has as many rows as make
    that the size of a slot: with more of them fewer rows are computed twice, and there is more in memory.
    """

    channels: int
    height: int
    width: int
    rows: Rows
    kept: Tuple[Kept, ...]
    slots: Slots
    at_once: float

    @property
    def row_elements(self) -> int:
        """The numbers in one row."""
        return self.channels * self.width

    @property
    def elements(self) -> int:
        """The numbers in all of it."""
        return self.row_elements * self.height

    def spans(self) -> List[Tuple[int, int]]:
        """First row and row behind the last of its strips, from the top."""
        return spans(self.height, int(self.slots.size / self.at_once))

    def strip(self, first: int, last: int) -> Tensor:
        """Its rows (1,C,last-first,W) in one."""
        parts = self.rows(first, last)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def spans(height: int, most: int) -> List[Tuple[int, int]]:
    """First row and row behind the last of strips of equal, even height, about `most`; the last may be smaller.

    Equal, because packed layers are packed for one size; even, because a layer that halves a map takes rows by twos.
    """
    count = -(-height // max(most, 2))
    rows = -(-height // count)
    rows += rows % 2
    return [(first, min(first + rows, height)) for first in range(0, height, rows)]


def in_memory(strips: Sequence[Tensor], slots: Slots) -> FeatureMap:
    """The map of these strips, from the top."""
    kept = Kept(slots)
    for strip in strips:
        kept.add(strip)
    _, channels, _, width = strips[0].shape
    height = sum(strip.shape[2] for strip in strips)
    return FeatureMap(channels, height, width, kept.rows, (kept,), slots, at_once=channels * width)


def replaced(x: FeatureMap) -> FeatureMap:
    """x in memory instead of the maps that it is made from; nobody may ask those again."""
    new = Kept(x.slots)
    for first, last in x.spans():
        new.append(x.rows(first, last))
        for kept in x.kept:
            kept.release()
    for kept in x.kept:
        kept.release_all()
    trim_memory()  # of what came and went, the holes that are left
    return replace(x, rows=new.rows, kept=(new,), at_once=x.row_elements)


def remembered(x: FeatureMap) -> FeatureMap:
    """x, whose rows are not made anew if they are among those asked for last."""
    top = bottom = 0
    latest: Optional[Tensor] = None

    def rows(first: int, last: int) -> List[Tensor]:
        nonlocal top, bottom, latest
        if latest is None or first < top or last > bottom:
            latest = None  # before there is another
            top, bottom, latest = first, last, x.strip(first, last)
        return [latest[:, :, first - top : last - top]]

    return replace(x, rows=rows)


def kept_within(x: FeatureMap, elements: int) -> FeatureMap:
    """x with as many of its upper strips in memory as may be; the others are made when they are asked for."""
    spans_kept = [span for span in x.spans() if span[1] * x.row_elements <= elements]
    if not spans_kept:
        return x
    height, new = spans_kept[-1][1], Kept(x.slots)
    for span in spans_kept:
        new.append(x.rows(*span))

    def rows(first: int, last: int) -> List[Tensor]:
        upper = new.rows(first, min(last, height)) if first < height else []
        return upper + (x.rows(max(first, height), last) if last > height else [])

    if height == x.height:
        return replace(x, rows=new.rows, kept=(new,), at_once=x.row_elements)
    return replace(x, rows=rows, kept=(*x.kept, new))


@dataclass(frozen=True)
class Reach:
    """A layer makes `up` rows of every `down`, and looks `halo` times `down` rows further on both sides."""

    halo: int = 0
    up: int = 1
    down: int = 1


def behind(
    layer: Layer, x: FeatureMap, channels: int, *, reach: Reach = Reach(), activation: Optional[Layer] = None
) -> FeatureMap:
    """x behind a layer, whose result may not be the tensor that it is given.

    The layer gets the rows that it looks at too, and what it makes at a cut is dropped. It gets as many rows at the
    edges of the map, where its own padding is right, as elsewhere. `activation` changes each place of x beforehand.
    """
    halo, up, down = reach.halo, reach.up, reach.down
    units = x.height // down

    def rows(first: int, last: int) -> List[Tensor]:
        count = min((last - 1) // up - first // up + 1 + 2 * halo, units)
        start = min(max(first // up - halo, 0), units - count)
        made = layer(x.slots.joined(x.rows(start * down, (start + count) * down), activation))
        return [made[:, :, first - start * up : last - start * up]]

    width = x.width // down * up
    at_once = max(channels * width, x.at_once * down / up)
    return replace(x, channels=channels, height=units * up, width=width, rows=rows, at_once=at_once)


def added(x: FeatureMap, branch: FeatureMap) -> FeatureMap:
    """The sum of two maps of one size. The branch, which is not in memory, is asked first: it looks further."""

    def rows(first: int, last: int) -> List[Tensor]:
        total = branch.strip(first, last)
        row = 0
        for part in x.rows(first, last):
            total[:, :, row : row + part.shape[2]] += part
            row += part.shape[2]
        return [total]

    return replace(x, rows=rows, kept=tuple({*x.kept, *branch.kept}), at_once=max(x.at_once, branch.at_once))


def normalised(norm: nn.GroupNorm, x: FeatureMap) -> Layer:
    """`norm` for some rows of x, by the statistics of all of x: those of a batch norm that is not trained."""
    mean, variance = group_statistics(x, norm.num_groups)
    weight, bias = norm.weight.to(mean.dtype), norm.bias.to(mean.dtype)
    return lambda rows: functional.batch_norm(rows, mean, variance, weight, bias, eps=norm.eps)


def group_statistics(x: FeatureMap, groups: int) -> Tuple[Tensor, Tensor]:
    """Mean and variance over the whole map of the group that each channel is in, (C,) each, at least float32."""
    found, shares = [], []
    for first, last in x.spans():
        for piece in pieces(x.rows(first, last)):
            found.append(torch.stack(channel_statistics(piece)))
            shares.append(piece.shape[2] / x.height)
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
