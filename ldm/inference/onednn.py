"""oneDNN's products with weights that lie in blocks of its own, as torch's CPU builds have them.

These operators are private to torch and may move: they are named in this module alone. `packing.can_pack` tries them.
"""

from __future__ import annotations

from typing import Any, Optional, Sequence

import torch
from torch import Tensor

# The operators can apply an activation to their sums, before they round them.
NOTHING_BEHIND: Any = ("none", [], "")
GELU_BEHIND: Any = ("gelu", [], "none")  # the exact one
# Weights are packed as for so many rows, however many come: then a batch of another size packs nothing anew, and no
# picture depends on the batch before. What suits eight suits one, too, but not always the other way round.
ROWS = 8


def linear_weight(weight: Tensor) -> Tensor:
    """A matrix (out,in) in oneDNN's blocks."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return packed


def linear(x: Tensor, packed: Tensor, bias: Optional[Tensor], behind: Any = NOTHING_BEHIND) -> Tensor:
    """x (...,in) -> (...,out) with a weight of `linear_weight`."""
    summed: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, *behind)
    return summed


def convolution_weight(weight: Tensor, numbers: Sequence[Any], size: Sequence[int]) -> Tensor:
    """A convolution's weight (C',C,kh,kw) in oneDNN's blocks, for maps (h,w).

    `numbers`: padding, stride and dilation, a list each, and groups.
    """
    shape = [ROWS, weight.shape[1] * numbers[-1], *size]
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(weight, *numbers, shape)
    return packed


def convolution(x: Tensor, packed: Tensor, bias: Optional[Tensor], numbers: Sequence[Any]) -> Tensor:
    """x (B,C,h,w) -> (B,C',h',w') with a weight of `convolution_weight`, which was given the same numbers."""
    summed: Tensor = torch.ops.mkldnn._convolution_pointwise(x, packed, bias, *numbers, *NOTHING_BEHIND)
    return summed
