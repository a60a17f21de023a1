"""DDIM (Song et al. 2020): one noise estimate a step, followed straight down; eta mixes in fresh noise."""

from __future__ import annotations

from typing import List

from torch import Tensor

from ldm.models.diffusion.guidance import NoisePredictor
from ldm.models.diffusion.sampler import DrawNoise, Sampler, Step
from ldm.models.diffusion.steps import Stepped, follow
from ldm.modules.diffusionmodules.schedule import StepTable, ddim_sigmas


class DDIMSampler(Sampler):
    """Draws noise at every step even at eta 0, as the original does: seeds of the compat scripts depend on it."""

    name = "DDIM"

    def steps(
        self, predict_noise: NoisePredictor, table: StepTable, *, eta: float, draw_noise: DrawNoise
    ) -> List[Step]:
        """One step an entry of the table."""
        sigmas = ddim_sigmas(table, eta)

        def step(i: int) -> Step:
            t = float(table.timesteps[i])
            alpha, alpha_next, sigma = float(table.alpha[i]), float(table.alpha_next[i]), float(sigmas[i])

            def take(x: Tensor) -> Stepped:
                x_next, clean = follow(x, predict_noise(x, t), alpha, alpha_next, sigma)
                return Stepped(x_next.add_(draw_noise(x), alpha=sigma), clean)

            return take

        return [step(i) for i in range(len(table))]
