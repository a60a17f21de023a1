"""What the network is told beside its latent, how noisy that is and how many texts there are for it; and its sums."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def timestep_embedding(timesteps: Tensor, dim: int, max_period: int = 10000) -> Tensor:
    """(B,) timesteps, whole or not, to (B,dim): cosines then sines of geometrically spaced frequencies.

    The sinusoidal position code of Vaswani et al. 2017, section 3.5. An odd dim ends with a zero.
    """
    half = dim // 2
    frequencies = torch.exp(
        torch.arange(half, dtype=torch.float32, device=timesteps.device) * (-math.log(max_period) / half)
    )
    angles = timesteps[:, None].float() * frequencies
    code = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return torch.nn.functional.pad(code, (0, dim - 2 * half))


def rows_like(x: Tensor, other: Tensor) -> Tensor:
    """x (B,...) again and again until it has the rows of `other`, n*B."""
    times = other.shape[0] // x.shape[0]
    return x if times == 1 else torch.cat([x] * times)


def add_into(result: Tensor, x: Tensor) -> Tensor:
    """result + x, for a result that nobody else has: written over it where nothing is trained, to need no new map."""
    if result.requires_grad or result.dtype is not x.dtype:  # as where autocast computes
        return result + x
    return result.add_(x)
