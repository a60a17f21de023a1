"""Weights and inputs that depend on names and shapes only, so that two programs can hold the same ones."""

from __future__ import annotations

import math
import zlib
from typing import Dict

import numpy as np
import torch
from torch import Tensor

NETWORKS = ("model.diffusion_model", "first_stage_model", "cond_stage_model")


def tensor(name: str, *shape: int, scale: float = 1.0) -> Tensor:
    """Normal numbers of this shape, float32, the same wherever the name is the same."""
    return torch.from_numpy(_normal(name, shape) * np.float32(scale))


def filled(state: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """The state dict with every network tensor replaced; tables of the schedule stay."""
    return {
        name: _weight(name, tuple(old.shape))
        if old.is_floating_point() and any(network in name for network in NETWORKS)
        else old
        for name, old in state.items()
    }


def _weight(name: str, shape: tuple) -> Tensor:  # type: ignore[type-arg]  # any length
    values = _normal(name, shape)
    if len(shape) >= 2:
        fan_in = int(np.prod(shape[1:]))
        values *= 1.0 / math.sqrt(fan_in)
        if "embedding" in name:
            values *= 0.5 * math.sqrt(fan_in)
    elif name.endswith("weight"):
        values = 1 + 0.1 * values
    else:
        values *= 0.1
    return torch.from_numpy(values)


def _normal(name: str, shape: tuple) -> np.ndarray:  # type: ignore[type-arg]  # any length
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return generator.standard_normal(shape).astype(np.float32)
