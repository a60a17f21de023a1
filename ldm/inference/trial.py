"""What a device computes rightly, found by computing it: what the networks are made of, on numbers whose sum is known.

A card's libraries may be wrong at one dtype or one order in memory and right at all others, so no list of cards and
versions is kept here. A trial takes milliseconds; it is small, so a fault at one size alone passes it, and is left to
the look that every picture gets.
"""

from __future__ import annotations

import functools
import logging
import math
from typing import Callable, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ldm.errors import first_line

log = logging.getLogger(__name__)

BATCH, CHANNELS, SIDE = 2, 64, 16
HEADS, PLACES, WIDTH = 8, 1024, 40  # of attention in SD v1 at 256 px
# Rounding at each of a dozen operators, some of which cancel; a wrong operator is off by a multiple of the numbers.
ROUNDINGS = 16


def is_right(device: torch.device, dtype: torch.dtype, *, channels_last: bool = False) -> bool:
    """Whether the trial's outcome is as near to the CPU's in float32 as rounding to `dtype` lets it be."""
    return distance(device, dtype, channels_last=channels_last) <= ROUNDINGS * torch.finfo(dtype).eps


def distance(device: torch.device, dtype: torch.dtype, *, channels_last: bool = False) -> float:
    """How far from the CPU's outcome in float32, in shares of it; inf where it is not finite or cannot be computed."""
    try:
        found = outcome(device, dtype, channels_last=channels_last)
    except RuntimeError as error:
        log.info("%s does not compute in %s: %s", device, dtype, first_line(error))
        return math.inf
    expected = _expected()
    apart = float((found - expected).norm() / expected.norm())
    return apart if math.isfinite(apart) else math.inf


class Numbers(NamedTuple):
    """What a trial computes with: (B,C,h,w), (C,C,3,3), (3C,C), (C,C)."""

    image: Tensor
    kernel: Tensor
    to_attend: Tensor
    last: Tensor


def outcome(device: torch.device, dtype: torch.dtype, *, channels_last: bool = False) -> Tensor:
    """The trial's outcome (B,N,C) on the CPU in float32."""
    return computed(numbers(device, dtype, channels_last=channels_last)).float().cpu()


def numbers(device: torch.device, dtype: torch.dtype, *, channels_last: bool = False) -> Numbers:
    """The same on every device."""
    generator = torch.Generator("cpu").manual_seed(0)

    def draw(*shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
        return drawn.to(device=device, dtype=dtype)

    image = draw(BATCH, CHANNELS, SIDE, SIDE) * SIDE * math.sqrt(CHANNELS)
    kernel = draw(CHANNELS, CHANNELS, 3, 3)
    if channels_last:
        image, kernel = (each.contiguous(memory_format=torch.channels_last) for each in (image, kernel))
    return Numbers(image, kernel, draw(3 * CHANNELS, CHANNELS), draw(CHANNELS, CHANNELS))


@torch.no_grad()
def computed(numbers: Numbers) -> Tensor:
    """(B,N,C) on their device: the operators of the networks, the later on the earlier."""
    image, kernel, to_attend, last = numbers
    image = functional.conv2d(image, kernel, padding=1)
    image = image + functional.silu(functional.group_norm(image, 8))
    image = functional.interpolate(functional.interpolate(image, size=2 * SIDE), size=SIDE)
    image = functional.conv2d(image, kernel, padding=1)  # of one shape with the first: MIOpen builds kernels for each
    words = image.flatten(2).transpose(1, 2)
    q, k, v = functional.linear(functional.layer_norm(words, (CHANNELS,)), to_attend).chunk(3, -1)
    words = words + (q @ k.transpose(1, 2)).softmax(dim=-1) @ v
    return words + functional.gelu(functional.linear(words, last))


@torch.no_grad()
def writes_all_scores(device: torch.device, dtype: torch.dtype, peak: Callable[[Callable[[], object]], int]) -> bool:
    """Whether torch's fused attention holds the scores of all places in memory at once, as plain operators do.

    Where its kernels do not know a card, torch computes with plain operators under the same name: 2 GiB of scores for
    four pictures of 512 px, 32 GiB for 1024 px. `peak` tells the bytes that some work takes. False where torch has no
    such attention.
    """
    if not hasattr(functional, "scaled_dot_product_attention"):
        return False
    q = torch.zeros(1, HEADS, PLACES, WIDTH, device=device, dtype=dtype)
    scores = HEADS * PLACES**2 * q.element_size()
    return peak(lambda: functional.scaled_dot_product_attention(q, q, q)) >= scores


@functools.lru_cache(maxsize=None)
def _expected() -> Tensor:
    return outcome(torch.device("cpu"), torch.float32)
