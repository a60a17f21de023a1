"""LCM (Luo et al. 2023): a few jumps to the clean latent, each noised again to the level of the next.

For weights that were distilled for it, such as SD v1 with an LCM-LoRA merged in; others give a blurred picture.
"""

from __future__ import annotations

from typing import List

import numpy as np
from torch import Tensor

from ldm.errors import RequestError
from ldm.inference.spec import LCM_STEPS
from ldm.models.diffusion.guidance import NoisePredictor
from ldm.models.diffusion.sampler import DrawNoise, Sampler, Step
from ldm.models.diffusion.steps import Stepped, add_noise, consistent_clean
from ldm.modules.diffusionmodules.schedule import StepTable


class LCMSampler(Sampler):
    """Steps fall on the timesteps that the weights were taught; fresh noise is drawn after every step but the last."""

    name = "LCM"
    adds_noise = True

    def _table(self, alphas_cumprod: np.ndarray, steps: int, spacing: str) -> StepTable:
        return taught_table(alphas_cumprod, steps)

    def _noised_to(self, steps: int) -> int:
        # The original noises to one step above the first that it takes, which is too far where steps are few.
        return steps - 1

    def steps(
        self, predict_noise: NoisePredictor, table: StepTable, *, eta: float, draw_noise: DrawNoise
    ) -> List[Step]:
        """One step an entry of the table; none remembers another."""
        if eta:
            raise RequestError(f"eta must be 0 for LCM, got {eta}; DDIM takes any")

        def step(i: int) -> Step:
            t = float(table.timesteps[i])
            alpha, alpha_next = float(table.alpha[i]), float(table.alpha_next[i])

            def take(x: Tensor) -> Stepped:
                clean = consistent_clean(x, predict_noise(x, t), t, alpha)
                is_last = i == len(table) - 1
                return Stepped(clean if is_last else add_noise(clean, draw_noise(x), alpha_next), clean)

            return take

        return [step(i) for i in range(len(table))]


def taught_table(alphas_cumprod: np.ndarray, steps: int) -> StepTable:
    """S of the timesteps that distillation teaches, evenly from the noisiest; the last ends without noise.

    Every 20th of 1000: 19, 39 ... 999.
    """
    if not 1 <= steps <= LCM_STEPS:
        raise RequestError(f"steps must be in 1..{LCM_STEPS} for LCM, got {steps}")
    taught = np.arange(LCM_STEPS, 0, -1) * (len(alphas_cumprod) // LCM_STEPS) - 1
    timesteps = taught[np.arange(steps) * LCM_STEPS // steps]
    alpha = np.asarray(alphas_cumprod, dtype=np.float64)[timesteps]
    return StepTable(timesteps, alpha, np.append(alpha[1:], 1.0))
