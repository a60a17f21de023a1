"""PLMS (Liu et al. 2022): DDIM's step along a noise estimate of fourth order, made from the last four."""

from __future__ import annotations

from typing import List

from torch import Tensor

from ldm.errors import RequestError
from ldm.models.diffusion.guidance import NoisePredictor
from ldm.models.diffusion.sampler import DrawNoise, Sampler, Step
from ldm.models.diffusion.steps import Stepped, adams_bashforth, follow
from ldm.modules.diffusionmodules.schedule import StepTable


class PLMSSampler(Sampler):
    """The first step has no past: it looks one step ahead and takes the mean of both estimates (improved Euler).

    Draws noise that it multiplies by zero, once a step and once more in the first, as the original does.
    """

    name = "PLMS"

    def steps(
        self, predict_noise: NoisePredictor, table: StepTable, *, eta: float, draw_noise: DrawNoise
    ) -> List[Step]:
        """One step an entry of the table; they share the history of estimates."""
        if eta:
            raise RequestError(f"eta must be 0 for PLMS, got {eta}; DDIM takes any")
        history: List[Tensor] = []

        def step(i: int) -> Step:
            t = float(table.timesteps[i])
            t_next = float(table.timesteps[min(i + 1, len(table) - 1)])
            alpha, alpha_next = float(table.alpha[i]), float(table.alpha_next[i])

            def take(x: Tensor) -> Stepped:
                history.insert(0, predict_noise(x, t))
                if len(history) == 1:
                    draw_noise(x)
                    noise = (history[0] + predict_noise(follow(x, history[0], alpha, alpha_next).x, t_next)) / 2
                else:
                    noise = adams_bashforth(history)
                del history[3:]
                draw_noise(x)
                return follow(x, noise, alpha, alpha_next)

            return take

        return [step(i) for i in range(len(table))]
