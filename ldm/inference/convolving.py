"""Ways to convolve on a CPU, each with the weights laid out for it, and which one is the quickest where."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Optional, Protocol, Sequence, Tuple

import torch
from torch import Tensor
from torch.nn import functional

from ldm.inference.onednn import convolution, convolution_weight, layout, linear, linear_weight
from ldm.inference.scratch import freed
from ldm.modules.diffusionmodules import winograd
from ldm.modules.processor import AMX_BF16, processor_flags

# With matrix units, oneDNN's convolution in bfloat16 takes a row of the map at a time, in pieces of 16 places and more:
# on rows this narrow most of a piece is empty, and one product over all places is up to three times as fast, the
# gathering of its windows included. Without them, and in float32, the product takes 10 to 25 % longer.
NARROW = 8
# Minimal filtering, in float32: the side m of its tiles by the places of the map from which on it is quickest. Below
# that its weights, four times as many with m = 4 and nearly twice with m = 2, take longer to read than it saves; with
# fewer channels it takes longer beside the products.
FILTERED_PLACES = {4: 24 * 24, 2: 12 * 12}
FILTERED_CHANNELS = 128
USUAL = [(3, 3), (1, 1), (1, 1), (1, 1)]  # kernel, padding, stride, dilation
CHANNELS_LAST, TAPS_FIRST = (0, 2, 3, 1), (2, 3, 0, 1)  # orders of a weight (C',C,kh,kw)


class Place(NamedTuple):
    """What a convolution is besides its numbers. `shape`: (C',C,kh,kw)."""

    shape: Sequence[int]
    padding: Any
    stride: Sequence[int]
    dilation: Sequence[int]
    groups: int

    def is_product(self, size: Sequence[int], dtype: torch.dtype) -> bool:
        """Whether one matrix product is the quicker convolution for maps of this size (h,w)."""
        if self.groups != 1 or tuple(self.dilation) != (1, 1):
            return False
        pointwise = tuple(self.shape[2:]) == (1, 1) and tuple(self.stride) == (1, 1)
        return pointwise or size[1] <= narrow(dtype) * self.stride[1]

    def tile(self, size: Sequence[int], dtype: torch.dtype) -> int:
        """The side of the tiles in which minimal filtering is the quickest for maps of this size, or 0."""
        if dtype is not torch.float32 or self.groups != 1 or min(self.shape[:2]) < FILTERED_CHANNELS:
            return 0
        if [tuple(each) for each in (self.shape[2:], self.padding, self.stride, self.dilation)] != USUAL:
            return 0
        places = size[0] * size[1]
        return next((m for m, least in FILTERED_PLACES.items() if places >= least), 0)


class Way(Protocol):
    """How a convolution is computed, with the weights laid out for it."""

    def __call__(self, x: Tensor, bias: Optional[Tensor]) -> Tensor:
        """x (B,C,h,w) -> (B,C',h',w')."""

    def plain_weight(self) -> Tensor:
        """The weight (C',C,kh,kw): bit for bit, once it is in the dtype that it is computed with."""


class Blocks:
    """oneDNN's own convolution; its weight comes as (C',kh,kw,C), to which torch would copy any other order.

    In which blocks that lies depends on the batch, too, and on the number of threads; where it lies in others, oneDNN
    puts it in order in every call, which can take longer than the convolution. So it is kept once for all batches that
    want the same blocks, and packed once more for those that want others.
    """

    def __init__(self, weight: Tensor, place: Place, size: Sequence[int], batch: int) -> None:
        self._numbers = (tuple(place.padding), tuple(place.stride), tuple(place.dilation), place.groups)
        self._size = tuple(size)
        self._weights = {batch: self._packed(weight.permute(0, 3, 1, 2), batch)}

    def __call__(self, x: Tensor, bias: Optional[Tensor]) -> Tensor:
        batch = len(x)
        if batch not in self._weights:
            self._weights[batch] = self._weight_for(batch)
        return convolution(x, self._weights[batch], bias, self._numbers)

    def plain_weight(self) -> Tensor:
        weight: Tensor = next(iter(self._weights.values())).to_dense()
        return weight

    def _packed(self, weight: Tensor, batch: int) -> Tensor:
        return convolution_weight(weight, self._numbers, self._size, batch)

    def _weight_for(self, batch: int) -> Tensor:
        first, *_ = held = list(self._weights.values())
        wanted = layout_for(tuple(first.shape), first.dtype, self._numbers, self._size, batch, torch.get_num_threads())
        fit = next((each for each in held if layout(each) == wanted), None)
        if fit is not None:
            return fit
        plain = self.plain_weight()
        packed = self._packed(plain, batch)
        for each in (plain, packed):
            freed.add(each)
        return packed


class Product:
    """One matrix product over what each place sees; its weight comes as (C',kh,kw,C)."""

    def __init__(self, weight: Tensor, place: Place) -> None:
        self._place = place
        self._weight = linear_weight(weight.flatten(1))

    def __call__(self, x: Tensor, bias: Optional[Tensor]) -> Tensor:
        places = windows(x, self._place.shape[2:], self._place.padding, self._place.stride)
        return linear(places.flatten(3), self._weight, bias).permute(0, 3, 1, 2)

    def plain_weight(self) -> Tensor:
        outputs, inputs, *kernel = self._place.shape
        return self._weight.to_dense().view(outputs, *kernel, inputs).permute(0, 3, 1, 2).contiguous()


class Filtered:
    """Minimal filtering in tiles of m x m, a matrix product for each of their (m+2)^2 places.

    Its weight comes as it is to be kept, in any dtype, and as (kh,kw,C',C) in that to be computed with.
    """

    def __init__(self, kept: Tensor, taps: Tensor, m: int) -> None:
        self._kept = kept  # as it cannot be had back to the last bit; often the file's own, mapped
        packed = map(linear_weight, winograd.transformed(taps, m))
        self._products = [functools.partial(linear, packed=each, bias=None) for each in packed]

    def __call__(self, x: Tensor, bias: Optional[Tensor]) -> Tensor:
        return winograd.convolve(x, self._products, self._kept.shape[0], bias)

    def plain_weight(self) -> Tensor:
        return self._kept


@functools.lru_cache(maxsize=None)
def layout_for(
    shape: Tuple[int, ...],
    dtype: torch.dtype,
    numbers: Tuple[Any, ...],
    size: Tuple[int, ...],
    batch: int,
    threads: int,
) -> bytes:
    """In which blocks a convolution wants its weight; `threads` is how many torch computes with.

    Asked by packing an empty one, once for all layers of a kind, as a network has many of each.
    """
    return layout(convolution_weight(torch.empty(shape, dtype=dtype), numbers, size, batch))


def narrow(dtype: torch.dtype) -> int:
    """The width up to which a map is convolved by one product on this processor; 0: none is."""
    return NARROW if dtype is torch.bfloat16 and AMX_BF16 in processor_flags() else 0


def windows(x: Tensor, kernel: Sequence[int], padding: Sequence[int], stride: Sequence[int]) -> Tensor:
    """(B,C,h,w) -> (B,h',w',kh,kw,C): what each place of a convolution's output sees, a view of x with its margins."""
    x = x.permute(0, 2, 3, 1)
    if any(padding):
        vertical, horizontal = padding
        x = functional.pad(x, (0, 0, horizontal, horizontal, vertical, vertical))
    return x.unfold(1, kernel[0], stride[0]).unfold(2, kernel[1], stride[1]).permute(0, 1, 2, 4, 5, 3)
