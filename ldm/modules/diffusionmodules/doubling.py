"""Twice the size by repeating pixels, then a convolution: both as one layer, so that it can be computed as one."""

from __future__ import annotations

from typing import List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class DoublingConv2d(nn.Conv2d):
    """x (B,C,h,w) -> (B,C',2h,2w), or of another `size` (H,W) in place of (2h,2w)."""

    def forward(self, x: Tensor, size: Optional[Sequence[int]] = None) -> Tensor:
        return super().forward(repeated(x, size))


def repeated(x: Tensor, size: Optional[Sequence[int]] = None) -> Tensor:
    """Every pixel of x (B,C,h,w) twice in each direction, or as often as `size` (H,W) needs."""
    size = [2 * side for side in x.shape[2:]] if size is None else list(size)
    return functional.interpolate(x, size=size, mode="nearest")


def phase_weights(weight: Tensor) -> Tensor:
    """The 3x3 weights (C',C,3,3) of a DoublingConv2d as those of four 2x2 convolutions of the small map (4C',C,2,2).

    Of the three rows that an output row sees, two are equal: the two below it at even rows, the two above at odd ones.
    So their weights can be added beforehand, and likewise the columns', which leaves 16 products of 36. Phases are in
    the order (even, even), (even, odd), (odd, even), (odd, odd).
    """
    exact = weight.float()
    phases = [column for row in _merged(exact, 2) for column in _merged(row, 3)]
    return torch.cat(phases).to(weight.dtype)


def interleaved(phases: Tensor) -> Tensor:
    """(B,4C,h+1,w+1), the 2x2 convolution with `phase_weights` and a margin of 1 -> (B,C,2h,2w), channels last."""
    batch, channels, height, width = phases.shape[0], phases.shape[1] // 4, phases.shape[2] - 1, phases.shape[3] - 1
    out = phases.new_empty(batch, height, 2, width, 2, channels)
    for number, phase in enumerate(phases.permute(0, 2, 3, 1).split(channels, dim=3)):
        i, j = divmod(number, 2)
        out[:, :, i, :, j] = phase[:, i : i + height, j : j + width]
    return out.view(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)


def _merged(weight: Tensor, dim: int) -> Tuple[Tensor, Tensor]:
    first, middle, last = weight.unbind(dim)
    pairs: List[List[Tensor]] = [[first, middle + last], [first + middle, last]]
    even, odd = (torch.stack(pair, dim) for pair in pairs)
    return even, odd
