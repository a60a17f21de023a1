"""The one loop that every sampler runs in, and the CompVis face they share.

A sampler is a list of `Step`s: pure closures from x to the next x. The loop adds what all have in common: keeping the
unmasked part of a picture, progress, and stopping nowhere in between.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from ldm.errors import RequestError
from ldm.inference.spec import NO_SHORTCUTS, Shortcuts
from ldm.models.diffusion.guidance import NoisePredictor, guided, last_guided, network
from ldm.models.diffusion.steps import Stepped, add_noise
from ldm.modules.diffusionmodules.schedule import StepTable, make_step_table

Step = Callable[[Tensor], Stepped]
# Draws unit noise of x's shape; jobs draw each picture's from its own generator.
DrawNoise = Callable[[Tensor], Tensor]
# Mixes the known part of a picture back into x before step i.
Blend = Callable[[Tensor, int], Tensor]
OnStep = Callable[[int, Stepped], None]


def run(steps: Sequence[Step], x: Tensor, blend: Optional[Blend] = None, on_step: Optional[OnStep] = None) -> Tensor:
    """x (B,C,h,w) taken through the steps, noisiest first."""
    for i, step in enumerate(steps):
        if blend is not None:
            x = blend(x, i)
        stepped = step(x)
        x = stepped.x
        if on_step is not None:
            on_step(i, stepped)
    return x


def keep_known(mask: Tensor, known: Tensor, table: StepTable, draw_noise: DrawNoise) -> Blend:
    """Where mask (B,1,h,w) is 1 the known clean latent stays, at the step's level of noise (RePaint, eq. 8)."""

    def blend(x: Tensor, i: int) -> Tensor:
        noised = add_noise(known, draw_noise(known), float(table.alpha[i]))
        return noised * mask + (1 - mask) * x

    return blend


class Sampler:
    """The sampler classes of CompVis: built on a model, `sample(...)` gives `(latents, intermediates)`.

    Subclasses say which steps to take. Nothing here knows a prompt; conditionings are tensors (B,L,D).
    """

    name = ""
    adds_noise = False  # whatever its eta

    def __init__(self, model: Any, schedule: str = "linear") -> None:
        self.model = model
        self.schedule = schedule
        self.ddpm_num_timesteps = model.num_timesteps

    def make_schedule(
        self, ddim_num_steps: int, ddim_discretize: str = "uniform", ddim_eta: float = 0.0, verbose: bool = True
    ) -> None:
        """Choose the steps; `stochastic_encode` and `decode` need it first, `sample` calls it itself."""
        self.table = self._table(self.model.alphas_cumprod.double().cpu().numpy(), ddim_num_steps, ddim_discretize)
        self.eta = ddim_eta

    @property
    def ddim_timesteps(self) -> np.ndarray:
        """The chosen timesteps, least noisy first, as the original keeps them."""
        return self.table.timesteps[::-1]

    def _table(self, alphas_cumprod: np.ndarray, steps: int, spacing: str) -> StepTable:
        return make_step_table(alphas_cumprod, steps, spacing)

    def steps(
        self, predict_noise: NoisePredictor, table: StepTable, *, eta: float, draw_noise: DrawNoise
    ) -> List[Step]:
        """The steps of one run: a list is used once, for multistep samplers remember in it."""
        raise TypeError("Sampler is a base; use DDIMSampler, PLMSSampler, DPMSolverSampler or LCMSampler")

    @torch.no_grad()
    def sample(
        self,
        S: int,
        batch_size: int,
        shape: Sequence[int],
        conditioning: Optional[Tensor] = None,
        callback: Optional[Callable[[int], None]] = None,
        img_callback: Optional[Callable[[Tensor, int], None]] = None,
        eta: float = 0.0,
        mask: Optional[Tensor] = None,
        x0: Optional[Tensor] = None,
        temperature: float = 1.0,
        verbose: bool = True,
        x_T: Optional[Tensor] = None,
        log_every_t: int = 100,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Optional[Tensor] = None,
        draw_noise: Optional[DrawNoise] = None,
        strength_steps: Optional[int] = None,
        shortcuts: Shortcuts = NO_SHORTCUTS,
    ) -> Tuple[Tensor, Dict[str, List[Tensor]]]:
        """Latents (batch_size, *shape) from noise x_T, drawn from the device's global generator where none is given.

        mask (B,1,h,w) with x0 (B,C,h,w) keeps x0 where the mask is 1. `strength_steps` starts that many steps before
        the end, from x_T already noised (img2img). Intermediates hold every `log_every_t`-th x and clean estimate.
        """
        if conditioning is not None and conditioning.shape[0] != batch_size:
            raise RequestError(f"conditioning must have {batch_size} rows (batch_size), got {conditioning.shape[0]}")
        if (mask is None) != (x0 is None):
            raise RequestError("mask and x0 go together: the mask says where x0 is kept")
        self.make_schedule(S, ddim_eta=eta, verbose=verbose)
        table = self.table if strength_steps is None else self.table.last(strength_steps)
        device = self.model.device
        draw = draw_noise or (lambda x: torch.randn(x.shape, device=x.device, dtype=x.dtype) * temperature)
        x = torch.randn((batch_size, *shape), device=device) if x_T is None else x_T
        predict = guided(
            network(self.model, shortcuts),
            conditioning,  # type: ignore[arg-type]  # None for a model without text
            unconditional_conditioning,
            unconditional_guidance_scale,
            last_guided(table, shortcuts.guidance_until),
        )
        blend = None if mask is None or x0 is None else keep_known(mask, x0, table, draw)
        seen: Dict[str, List[Tensor]] = {"x_inter": [x], "pred_x0": [x]}

        def on_step(i: int, stepped: Stepped) -> None:
            if callback:
                callback(i)
            if img_callback:
                img_callback(stepped.clean, i)
            if (len(table) - i - 1) % log_every_t == 0 or i == len(table) - 1:
                seen["x_inter"].append(stepped.x)
                seen["pred_x0"].append(stepped.clean)

        steps = self.steps(predict, table, eta=eta, draw_noise=draw)
        return run(steps, x, blend, on_step), seen

    @torch.no_grad()
    def stochastic_encode(self, x0: Tensor, t: Any, noise: Optional[Tensor] = None) -> Tensor:
        """x0 (B,C,h,w) noised to step t of the chosen schedule, counted from the clean end; t = S is the noisiest."""
        index = self._noised_to(int(t if isinstance(t, int) else t.reshape(-1)[0]))
        noise = torch.randn_like(x0) if noise is None else noise
        return add_noise(x0, noise, float(self.table.alpha[::-1][index]))

    def _noised_to(self, steps: int) -> int:
        """The entry, counted from the clean end, whose noise `steps` steps from there begin with."""
        return min(steps, len(self.table) - 1)

    @torch.no_grad()
    def decode(
        self,
        x_latent: Tensor,
        cond: Tensor,
        t_start: int,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Optional[Tensor] = None,
        callback: Optional[Callable[[int], None]] = None,
    ) -> Tensor:
        """The last t_start steps of the chosen schedule, from x_latent (B,C,h,w)."""
        predict = guided(network(self.model), cond, unconditional_conditioning, unconditional_guidance_scale)
        steps = self.steps(predict, self.table.last(t_start), eta=self.eta, draw_noise=torch.randn_like)
        return run(steps, x_latent, on_step=None if callback is None else lambda i, _: callback(i))
