"""One step of each sampler, as pure functions in the papers' letters.

x (B,C,h,w) is the noisy latent, `noise` the estimate of the noise in it, `clean` of what is left without it. alpha is
the signal power at x, alpha_next after the step: x = sqrt(alpha) * clean + sqrt(1 - alpha) * noise.

A sum is taken up with `alpha=`, torch's name for the weight of what is added, and where nobody else sees it in place:
latents are small, and what a step costs beside the network is the number of its operators.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Sequence, Tuple

import torch
from torch import Tensor

# Adams-Bashforth weights, newest first: row n is used once n + 1 noise estimates are known (PLMS, Liu 2022, eq. 12).
ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


# sigma_data of consistency models, and by how much LCM stretches the timesteps in its scalings.
LCM_DATA_DEVIATION = 0.5
LCM_TIMESTEP_SCALE = 10.0


class Stepped(NamedTuple):
    """x (B,C,h,w) after a step, and the clean latent (B,C,h,w) that the step saw in it."""

    x: Tensor
    clean: Tensor


def add_noise(clean: Tensor, noise: Tensor, alpha: float) -> Tensor:
    """x at signal power alpha (DDPM eq. 4)."""
    return torch.add(math.sqrt(alpha) * clean, noise, alpha=math.sqrt(1 - alpha))


def clean_estimate(x: Tensor, noise: Tensor, alpha: float) -> Tensor:
    """What x would be without its noise (DDIM eq. 9)."""
    return x.sub(noise, alpha=math.sqrt(1 - alpha)).div_(math.sqrt(alpha))


def follow(x: Tensor, noise: Tensor, alpha: float, alpha_next: float, sigma: float = 0.0) -> Stepped:
    """x at alpha_next along a noise estimate, leaving room for fresh noise of deviation sigma (DDIM eq. 12)."""
    clean = clean_estimate(x, noise, alpha)
    return Stepped((math.sqrt(alpha_next) * clean).add_(noise, alpha=math.sqrt(1 - alpha_next - sigma**2)), clean)


def adams_bashforth(history: Sequence[Tensor]) -> Tensor:
    """The noise to follow, from up to four estimates, newest first."""
    weights = ADAMS_BASHFORTH[min(len(history), 4) - 1]
    summed = weights[0] * history[0]
    for weight, noise in zip(weights[1:], history[1:]):
        summed.add_(noise, alpha=weight)
    return summed


def boundary_scalings(t: float) -> Tuple[float, float]:
    """c_skip and c_out: how much of x and of its clean estimate a consistency model answers (Song et al. 2023)."""
    scaled = LCM_TIMESTEP_SCALE * t
    c_skip = LCM_DATA_DEVIATION**2 / (scaled**2 + LCM_DATA_DEVIATION**2)
    return c_skip, scaled / math.sqrt(scaled**2 + LCM_DATA_DEVIATION**2)


def consistent_clean(x: Tensor, noise: Tensor, t: float, alpha: float) -> Tensor:
    """The clean latent that a consistency model answers at timestep t; at t = 0 it is x itself."""
    c_skip, c_out = boundary_scalings(t)
    return (c_skip * x).add_(clean_estimate(x, noise, alpha), alpha=c_out)


def half_log_snr(alpha: float) -> float:
    """lambda = log(sqrt(alpha) / sqrt(1 - alpha)), which DPM-Solver's steps are even in (Lu et al. 2022a, eq. 3.2)."""
    return 0.5 * (math.log(alpha) - math.log1p(-alpha))


def dpm_solver_2m(x: Tensor, clean: Sequence[Tensor], alphas: Sequence[float], alpha_next: float) -> Tensor:
    """x at alpha_next by DPM-Solver++ (Lu et al. 2022b, algorithm 2).

    `clean` are one or two estimates of the clean latent, newest first, made at `alphas`; one makes it first order.
    """
    h = half_log_snr(alpha_next) - half_log_snr(alphas[0])
    towards = clean[0]
    if len(clean) > 1:
        r = (half_log_snr(alphas[0]) - half_log_snr(alphas[1])) / h
        towards = clean[0].add(clean[0] - clean[1], alpha=1 / (2 * r))
    shrink = math.sqrt((1 - alpha_next) / (1 - alphas[0]))
    return (shrink * x).sub_(towards, alpha=math.sqrt(alpha_next) * math.expm1(-h))
