"""Bind the text to the network, so that a sampler sees nothing but x and t."""

from __future__ import annotations

from typing import Callable, Optional

import torch
from torch import Tensor

# (x (B,C,h,w), t (B,)) -> noise (B,C,h,w)
NoisePredictor = Callable[[Tensor, Tensor], Tensor]
# (x (B,C,h,w), t (B,), cond (B,L,D)) -> noise (B,C,h,w)
ApplyModel = Callable[[Tensor, Tensor, Tensor], Tensor]


def guided(apply_model: ApplyModel, cond: Tensor, uncond: Optional[Tensor], scale: float) -> NoisePredictor:
    """Classifier-free guidance (Ho & Salimans 2021, eq. 6); both branches run as one batch. Scale 1.0 is none."""
    if scale == 1.0 or uncond is None:
        return lambda x, t: apply_model(x, t, cond)
    both = torch.cat([uncond, cond])

    def predict_noise(x: Tensor, t: Tensor) -> Tensor:
        without, with_text = apply_model(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return without + scale * (with_text - without)

    return predict_noise
