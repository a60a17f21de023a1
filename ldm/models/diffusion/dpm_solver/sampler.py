"""DPM-Solver++ of second order, multistep (Lu et al. 2022b): the clean latent is extrapolated, few steps do."""

from __future__ import annotations

from typing import List, Tuple

import numpy as np
from torch import Tensor

from ldm.errors import RequestError
from ldm.models.diffusion.guidance import NoisePredictor
from ldm.models.diffusion.sampler import DrawNoise, Sampler, Step
from ldm.models.diffusion.steps import Stepped, clean_estimate, dpm_solver_2m
from ldm.modules.diffusionmodules.schedule import StepTable


class DPMSolverSampler(Sampler):
    """Steps are even in continuous time and need not fall on training timesteps."""

    name = "DPM-Solver++"

    def _table(self, alphas_cumprod: np.ndarray, steps: int, spacing: str) -> StepTable:
        return continuous_table(alphas_cumprod, steps)

    def steps(
        self, predict_noise: NoisePredictor, table: StepTable, *, eta: float, draw_noise: DrawNoise
    ) -> List[Step]:
        """One step an entry of the table; the first is of first order, and so is the last of a short run."""
        if eta:
            raise RequestError(f"eta must be 0 for DPM-Solver++, got {eta}; DDIM takes any")
        history: List[Tuple[Tensor, float]] = []

        def step(i: int) -> Step:
            t = float(table.timesteps[i])
            alpha, alpha_next = float(table.alpha[i]), float(table.alpha_next[i])
            order = 1 if i == len(table) - 1 and len(table) < LOWER_ORDER_BELOW else 2

            def take(x: Tensor) -> Stepped:
                history.insert(0, (clean_estimate(x, predict_noise(x, t), alpha), alpha))
                clean, alphas = zip(*history[:order])
                del history[1:]
                return Stepped(dpm_solver_2m(x, clean, alphas, alpha_next), clean[0])

            return take

        return [step(i) for i in range(len(table))]


# A last step of second order overshoots when steps are long (the authors' rule).
LOWER_ORDER_BELOW = 15


def continuous_table(alphas_cumprod: np.ndarray, steps: int) -> StepTable:
    """S steps from the noisiest timestep to the cleanest, even in t; log alpha is linear between training timesteps.

    `timesteps` are float: what the network is told is 0 at the cleanest training timestep.
    """
    total = len(alphas_cumprod)
    if not 1 <= steps <= total:
        raise RequestError(f"steps must be in 1..{total}, got {steps}")
    t = np.linspace(total - 1.0, 0.0, steps + 1)
    alpha = np.exp(np.interp(t, np.arange(total), np.log(alphas_cumprod)))
    return StepTable(t[:-1], alpha[:-1], alpha[1:])
