"""Bind the text to the network, so that a sampler sees nothing but x and t; and leave out what it was asked to."""

from __future__ import annotations

from typing import Any, Callable, Optional

import torch
from torch import Tensor

from ldm.inference.spec import NO_SHORTCUTS, Shortcuts
from ldm.modules.diffusionmodules.schedule import StepTable
from ldm.modules.diffusionmodules.util import rows_like
from ldm.modules.recall import Recall

# (x (B,C,h,w), t) -> noise (B,C,h,w); the timestep is the same for the whole batch
NoisePredictor = Callable[[Tensor, float], Tensor]
# (x (B,C,h,w), t, cond (n*B,L,D)) -> noise (n*B,C,h,w), for n texts a row
Network = Callable[[Tensor, float, Tensor], Tensor]


def network(model: Any, shortcuts: Shortcuts = NO_SHORTCUTS) -> Network:
    """The network of a model, with what is left out of it. It is for one run: it recalls the calls before.

    A model that does not say that it `recalls` is any function of as many latents as texts.
    """
    if not getattr(model, "recalls", False):
        return lambda x, t, cond: _apply_plain(model, x, t, cond)
    recall = Recall(shortcuts.cache_interval, shortcuts.merge_tokens)

    def apply(x: Tensor, t: float, cond: Tensor) -> Tensor:
        recall.prepare(x, t, len(x) if cond is None else len(cond))
        return model.apply_model(x, everywhere(t, x), cond, recall)

    return apply


def _apply_plain(model: Any, x: Tensor, t: float, cond: Tensor) -> Tensor:
    x = x if cond is None else rows_like(x, cond)
    return model.apply_model(x, everywhere(t, x), cond)


def guided(
    network: Network, cond: Tensor, uncond: Optional[Tensor], scale: float, until: float = 0.0
) -> NoisePredictor:
    """Classifier-free guidance (Ho & Salimans 2021, eq. 6); both branches run as one batch. Scale 1.0 is none.

    Below timestep `until` there is none either: late steps need it least (Kynkäänniemi et al. 2024).
    """
    if scale == 1.0 or uncond is None:
        return lambda x, t: network(x, t, cond)
    both = torch.cat([uncond, cond])

    def predict_noise(x: Tensor, t: float) -> Tensor:
        if t < until:
            return network(x, t, cond)
        without, with_text = network(x, t, both).chunk(2)
        return torch.lerp(without, with_text, scale)  # without + scale * (with_text - without)

    return predict_noise


def last_guided(table: StepTable, share: float) -> float:
    """The timestep of the last of the first steps of a table, at least one, that make up this share of it."""
    return float(table.timesteps[max(1, round(share * len(table))) - 1])


def everywhere(t: float, x: Tensor) -> Tensor:
    """A timestep for each row of x (B,C,h,w). A whole one is int64, as in training."""
    dtype = torch.int64 if float(t).is_integer() else torch.float32
    return torch.full((x.shape[0],), t, dtype=dtype, device=x.device)
