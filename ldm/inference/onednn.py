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


def linear_weight(weight: Tensor) -> Tensor:
    """A matrix (out,in) in oneDNN's blocks."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return packed


def linear(x: Tensor, packed: Tensor, bias: Optional[Tensor], behind: Any = NOTHING_BEHIND) -> Tensor:
    """x (...,in) -> (...,out) with a weight of `linear_weight`."""
    summed: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, *behind)
    return summed


def convolution_weight(weight: Tensor, numbers: Sequence[Any], size: Sequence[int], batch: int) -> Tensor:
    """A convolution's weight (C',C,kh,kw) in oneDNN's blocks, for maps (h,w), so many at once.

    `numbers`: padding, stride and dilation, a list each, and groups.
    """
    shape = [batch, weight.shape[1] * numbers[-1], *size]
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(weight, *numbers, shape)
    return packed


def layout(packed: Tensor) -> bytes:
    """In which blocks a packed weight lies, by oneDNN's own description; empty where this torch does not tell."""
    operators = torch.ops.mkldnn
    if not hasattr(operators, "_get_mkldnn_serialized_md"):
        return b""
    return bytes(operators._get_mkldnn_serialized_md(packed).tolist())


def convolution(x: Tensor, packed: Tensor, bias: Optional[Tensor], numbers: Sequence[Any]) -> Tensor:
    """x (B,C,h,w) -> (B,C',h',w') with a weight of `convolution_weight`, which was given the same numbers.

    Where that was for another size or batch, the weight may be put in other blocks first, in every call.
    """
    summed: Tensor = torch.ops.mkldnn._convolution_pointwise(x, packed, bias, *numbers, *NOTHING_BEHIND)
    return summed
