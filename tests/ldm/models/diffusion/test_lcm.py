"""LCM jumps to the clean latent and noises it again: right for a model whose answer is consistent, and as others do it.

For Gaussian data of variance v the consistent answer at signal power alpha is x times sqrt(v / (alpha v + 1 - alpha)).
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, List

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm.errors import RequestError
from ldm.models.diffusion.lcm import LCMSampler, taught_table
from ldm.models.diffusion.steps import boundary_scalings, consistent_clean
from ldm.modules.diffusionmodules.schedule import make_beta_schedule

VARIANCE = 0.25
ALPHAS = np.cumprod(1 - make_beta_schedule("linear", 1000, 0.00085, 0.012))


def model(apply_model: Any) -> Any:
    return SimpleNamespace(
        apply_model=apply_model, num_timesteps=1000, alphas_cumprod=torch.from_numpy(ALPHAS), device=torch.device("cpu")
    )


def consistent(x: Tensor, t: Tensor, cond: Any) -> Tensor:
    """The noise whose clean estimate is the consistent answer."""
    alpha = torch.from_numpy(ALPHAS)[t][:, None, None, None]
    clean = x * (VARIANCE / (alpha * VARIANCE + 1 - alpha)).sqrt()
    return (x - alpha.sqrt() * clean) / (1 - alpha).sqrt()


def start(count: int, seed: int = 0) -> Tensor:
    return torch.randn((count, 4, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sample(steps: int, x_T: Tensor, apply_model: Any = consistent, **options: Any) -> Tensor:
    latents, _ = LCMSampler(model(apply_model)).sample(
        S=steps, batch_size=len(x_T), shape=x_T.shape[1:], x_T=x_T, verbose=False, **options
    )
    return latents


def test_a_consistent_model_needs_one_step() -> None:
    x_T = start(2)
    expected = x_T * math.sqrt(VARIANCE / (ALPHAS[999] * VARIANCE + 1 - ALPHAS[999]))
    # The boundary condition mixes in 2.5e-9 of x.
    assert torch.allclose(sample(1, x_T), expected, atol=1e-7)


@pytest.mark.parametrize("steps", [2, 4, 8, 50])
def test_more_steps_keep_the_deviation_of_the_data(steps: int) -> None:
    torch.manual_seed(9)  # not that of the start, or the noises would be one
    latents = sample(steps, start(64))
    # 16,384 numbers tell a deviation to 0.6 % (one standard error).
    assert float(latents.std()) == pytest.approx(math.sqrt(VARIANCE), rel=0.03)
    assert float(latents.mean()) == pytest.approx(0.0, abs=0.02)


def test_at_the_clean_end_the_answer_is_the_latent_itself() -> None:
    assert boundary_scalings(0.0) == (1.0, 0.0)
    x = start(1)
    assert torch.equal(consistent_clean(x, torch.full_like(x, 9.0), 0.0, float(ALPHAS[0])), x)


def test_the_last_step_adds_no_noise() -> None:
    drawn: List[Tensor] = []

    def draw(x: Tensor) -> Tensor:
        drawn.append(x)
        return torch.randn_like(x)

    sample(4, start(1), draw_noise=draw)
    assert len(drawn) == 3


@pytest.mark.parametrize(
    ("steps", "timesteps"), [(1, [999]), (4, [999, 759, 499, 259]), (50, list(range(999, 0, -20)))]
)
def test_steps_fall_on_what_was_taught(steps: int, timesteps: List[int]) -> None:
    assert taught_table(ALPHAS, steps).timesteps.tolist() == timesteps


@pytest.mark.parametrize("steps", [0, 51])
def test_more_steps_than_were_taught_are_refused(steps: int) -> None:
    with pytest.raises(RequestError, match=rf"steps must be in 1..50 for LCM, got {steps}"):
        sample(steps, start(1))


def test_img2img_is_noised_to_the_level_at_which_it_begins() -> None:
    sampler = LCMSampler(model(consistent))
    sampler.make_schedule(4)
    clean, noise = torch.zeros((1, 4, 8, 8), dtype=torch.float64), start(1)
    noised = sampler.stochastic_encode(clean, 2, noise)
    assert torch.allclose(noised, math.sqrt(1 - ALPHAS[499]) * noise)
    assert sampler.table.last(2).timesteps[0] == 499


def test_a_row_does_not_depend_on_its_batch() -> None:
    x_T, noises = start(2), [start(2, seed) for seed in range(1, 4)]
    both, alone = iter(noises), iter(noises)
    together = sample(4, x_T, draw_noise=lambda x: next(both))
    assert torch.equal(together[1:], sample(4, x_T[1:], draw_noise=lambda x: next(alone)[1:]))


@pytest.mark.slow  # importing diffusers
@pytest.mark.parametrize("steps", [1, 2, 4, 7, 50])
def test_every_step_is_that_of_diffusers(steps: int) -> None:
    """Ours and theirs step by step with one network that is not consistent, and the same fresh noise."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.LCMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )
    theirs.set_timesteps(steps)

    def network(x: Tensor, t: float) -> Tensor:
        return torch.sin(3 * x) + t / 1000

    fresh, again = (torch.Generator().manual_seed(1) for _ in range(2))
    steps_taken = LCMSampler(model(None)).steps(
        network,
        taught_table(ALPHAS, steps),
        eta=0.0,
        draw_noise=lambda x: torch.randn(x.shape, generator=again, dtype=x.dtype),
    )
    x = start(2)
    for t, step in zip(theirs.timesteps, steps_taken):
        ours, x = step(x), theirs.step(network(x, float(t)), t, x, generator=fresh)
        # Their tables are float32: 7 digits, of which the noisy end, where alpha is small, costs one.
        assert torch.allclose(ours.x, x.prev_sample, rtol=1e-5, atol=1e-5)
        assert torch.allclose(ours.clean, x.denoised, rtol=1e-5, atol=1e-5)
        x = x.prev_sample
