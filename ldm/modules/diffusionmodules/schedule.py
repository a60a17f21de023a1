"""The noise schedule: signal power over the training timesteps, and the tables that samplers walk down.

Letters as in DDIM (Song et al. 2020): alpha(t) is the signal power, the running product of 1 - beta, so that
x(t) = sqrt(alpha) * clean + sqrt(1 - alpha) * noise. T = training timesteps, S = sampling steps. All in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple

import numpy as np

from ldm.errors import ConfigError, RequestError


def make_beta_schedule(
    schedule: str, n_timestep: int, linear_start: float = 1e-4, linear_end: float = 2e-2, cosine_s: float = 8e-3
) -> np.ndarray:
    """beta (T,) float64. "linear" is linear in sqrt(beta), as SD v1 was trained; "cosine" is Nichol (2021), eq. 17."""
    if schedule == "linear":
        return np.linspace(linear_start**0.5, linear_end**0.5, n_timestep, dtype=np.float64) ** 2
    if schedule == "cosine":
        t = np.arange(n_timestep + 1, dtype=np.float64) / n_timestep
        alpha = np.cos((t + cosine_s) / (1 + cosine_s) * np.pi / 2) ** 2
        return np.clip(1 - alpha[1:] / alpha[:-1], 0, 0.999)
    if schedule == "sqrt_linear":
        return np.linspace(linear_start, linear_end, n_timestep, dtype=np.float64)
    if schedule == "sqrt":
        return np.linspace(linear_start, linear_end, n_timestep, dtype=np.float64) ** 0.5
    raise ConfigError(f"beta_schedule must be linear, cosine, sqrt_linear or sqrt, got {schedule!r}")


@dataclass(frozen=True)
class StepTable:
    """Where a sampler stops going down: `timesteps` (S,) int64, noisiest first; `alpha`, `alpha_next` (S,) float64.

    Step i takes x from signal power alpha[i] to alpha_next[i].
    """

    timesteps: np.ndarray
    alpha: np.ndarray
    alpha_next: np.ndarray

    def __len__(self) -> int:
        return len(self.timesteps)

    def last(self, steps: int) -> StepTable:
        """The table of the `steps` least noisy steps: where img2img begins. More than there are means all."""
        start = max(len(self) - steps, 0)
        return StepTable(self.timesteps[start:], self.alpha[start:], self.alpha_next[start:])


def make_step_table(alphas_cumprod: np.ndarray, steps: int, spacing: str = "uniform") -> StepTable:
    """The steps from alphas_cumprod (T,) as the original spaces them; the real count may differ from the asked one."""
    timesteps = spread_timesteps(len(alphas_cumprod), steps, spacing)
    alpha = np.asarray(alphas_cumprod, dtype=np.float64)[timesteps]
    alpha_next = np.concatenate([alpha[1:], np.asarray(alphas_cumprod[:1], dtype=np.float64)])
    return StepTable(timesteps, alpha, alpha_next)


def spread_timesteps(total: int, steps: int, spacing: str = "uniform") -> np.ndarray:
    """Training timesteps (S',) int64, noisiest first, all in 1..T-1 (DDIM appendix D.2, one step late).

    The original strides by T // S and adds one. Where T // S does not divide T this runs more steps than asked (30
    gives 31), and for some S its last entry is T itself, one past the schedule: that entry is dropped, so any S works.
    """
    if not 1 <= steps <= total:
        raise RequestError(f"steps must be in 1..{total}, got {steps}")
    if spacing == "uniform":
        chosen = np.arange(0, total, total // steps)
    elif spacing == "quad":
        chosen = (np.linspace(0, np.sqrt(total * 0.8), steps) ** 2).astype(np.int64)
    else:
        raise RequestError(f"schedule must be 'uniform' or 'quad', got {spacing!r}")
    chosen = chosen + 1
    return np.ascontiguousarray(chosen[chosen < total][::-1], dtype=np.int64)


def ddim_sigmas(table: StepTable, eta: float) -> np.ndarray:
    """Standard deviation (S,) of the fresh noise at each step (DDIM eq. 16)."""
    return eta * np.sqrt((1 - table.alpha_next) / (1 - table.alpha) * (1 - table.alpha / table.alpha_next))


def posterior_tables(betas: np.ndarray, v_posterior: float = 0.0) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Variance (T,) and the two mean coefficients (T,) of q(x(t-1) | x(t), clean) (DDPM eq. 7)."""
    alpha = np.cumprod(1 - betas)
    previous = np.append(1.0, alpha[:-1])
    variance = (1 - v_posterior) * betas * (1 - previous) / (1 - alpha) + v_posterior * betas
    of_clean = betas * np.sqrt(previous) / (1 - alpha)
    of_noisy = (1 - previous) * np.sqrt(1 - betas) / (1 - alpha)
    return variance, of_clean, of_noisy
