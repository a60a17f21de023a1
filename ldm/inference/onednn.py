"""oneDNN's products with weights that lie in blocks of its own, as torch's CPU builds have them.

These operators are private to torch and may move: they are named in this module alone. `packing.can_pack` tries them.
"""

from __future__ import annotations

import ctypes
from typing import Any, Optional, Sequence

import torch
from torch import Tensor

# The operators can apply an activation to their sums, before they round them.
NOTHING_BEHIND: Any = ("none", [], "")
GELU_BEHIND: Any = ("gelu", [], "none")  # the exact one
# Some weights lie in other blocks for one map or two than for more, which are all packed for as for eight.
FEW, MANY = 2, 8


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


def packed_as(batch: int) -> int:
    """The batch for which weights are packed to be used with this one."""
    return batch if batch <= FEW else MANY


def lie_alike(one: Tensor, other: Tensor) -> bool:
    """Whether a weight that was packed twice lies in the same blocks; not, where this torch does not tell."""
    operators = torch.ops.mkldnn
    if not hasattr(operators, "_nbytes") or not hasattr(operators, "data_ptr"):
        return False
    count = operators._nbytes(one)
    if count != operators._nbytes(other):
        return False
    found = [ctypes.c_void_p(operators.data_ptr(each)) for each in (one, other)]
    return not ctypes.CDLL(None).memcmp(*found, ctypes.c_size_t(count))


def convolution(x: Tensor, packed: Tensor, bias: Optional[Tensor], numbers: Sequence[Any]) -> Tensor:
    """x (B,C,h,w) -> (B,C',h',w') with a weight of `convolution_weight`, which was given the same numbers.

    Where that was for another size or batch, the weight may be put in other blocks first, in every call.
    """
    summed: Tensor = torch.ops.mkldnn._convolution_pointwise(x, packed, bias, *numbers, *NOTHING_BEHIND)
    return summed
