"""What every sampler must do, on a model whose best answer is known.

For Gaussian data of variance v the best noise estimate is exact, sqrt(1 - alpha) x / (alpha v + 1 - alpha), and the
latent it leads to is x_T times the ratio of the deviations at both ends. So the error and its order are known.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, List, Type

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm.errors import RequestError
from ldm.models.diffusion import steps
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.dpm_solver import DPMSolverSampler
from ldm.models.diffusion.lcm import LCMSampler
from ldm.models.diffusion.plms import PLMSSampler
from ldm.models.diffusion.sampler import Sampler
from ldm.modules.diffusionmodules.schedule import make_beta_schedule

VARIANCE = 0.25
ALPHAS = np.cumprod(1 - make_beta_schedule("linear", 1000, 0.00085, 0.012))
SAMPLERS = [DDIMSampler, PLMSSampler, DPMSolverSampler]


def gaussian_model() -> Any:
    """A stand-in for the network that answers exactly; float64, so that rounding hides nothing."""

    def apply_model(x: Tensor, t: Tensor, cond: Any) -> Tensor:
        alpha = np.exp(np.interp(t.double().numpy(), np.arange(1000), np.log(ALPHAS)))
        scale = torch.from_numpy(np.sqrt(1 - alpha) / (alpha * VARIANCE + 1 - alpha))
        return x * scale[:, None, None, None]

    return SimpleNamespace(
        apply_model=apply_model, num_timesteps=1000, alphas_cumprod=torch.from_numpy(ALPHAS), device=torch.device("cpu")
    )


def start(count: int = 2) -> Tensor:
    return torch.randn((count, 4, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def sample(cls: Type[Sampler], steps: int, x_T: Tensor, **options: Any) -> Tensor:
    latents, _ = cls(gaussian_model()).sample(
        S=steps, batch_size=len(x_T), shape=x_T.shape[1:], x_T=x_T, verbose=False, **options
    )
    return latents


def error(cls: Type[Sampler], steps: int) -> float:
    x_T = start()
    sampler = cls(gaussian_model())
    sampler.make_schedule(steps)
    first, last = float(sampler.table.alpha[0]), float(sampler.table.alpha_next[-1])

    def deviation(alpha: float) -> float:
        return math.sqrt(alpha * VARIANCE + 1 - alpha)

    return float((sample(cls, steps, x_T) - x_T * deviation(last) / deviation(first)).abs().max())


@pytest.mark.parametrize(
    ("cls", "steps", "least_ratio"), [(DDIMSampler, 25, 1.8), (PLMSSampler, 25, 3.0), (DPMSolverSampler, 200, 3.0)]
)
def test_error_shrinks_with_the_order_of_the_sampler(cls: Type[Sampler], steps: int, least_ratio: float) -> None:
    # Halving the step of a method of order n divides its error by 2^n; PLMS starts at second order. DPM-Solver's steps
    # are even in t and so long in log SNR at the end, which is why its order shows late.
    assert error(cls, steps) / error(cls, 2 * steps) > least_ratio


@pytest.mark.parametrize("cls", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 9, 27, 36, 110, 300, 1000])
def test_any_step_count_works(cls: Type[Sampler], steps: int) -> None:
    assert torch.isfinite(sample(cls, steps, start(1))).all()


@pytest.mark.parametrize("cls", SAMPLERS)
@pytest.mark.parametrize("steps", [0, 1001, -3])
def test_a_step_count_out_of_range_is_refused(cls: Type[Sampler], steps: int) -> None:
    with pytest.raises(RequestError, match=rf"steps must be in 1..1000, got {steps}"):
        sample(cls, steps, start(1))


@pytest.mark.parametrize("cls", SAMPLERS)
def test_the_same_start_gives_the_same_latent(cls: Type[Sampler]) -> None:
    assert torch.equal(sample(cls, 11, start()), sample(cls, 11, start()))


@pytest.mark.parametrize("cls", SAMPLERS)
def test_a_row_does_not_depend_on_its_batch(cls: Type[Sampler]) -> None:
    assert torch.equal(sample(cls, 11, start())[1:], sample(cls, 11, start()[1:]))


@pytest.mark.parametrize("cls", SAMPLERS)
def test_the_last_steps_from_the_middle_equal_the_end_of_a_whole_run(cls: Type[Sampler]) -> None:
    # First order remembers nothing; the others lose their history, so they agree only to the size of their error.
    seen: List[Tensor] = []
    model = gaussian_model()
    latents, intermediates = cls(model).sample(
        S=20, batch_size=2, shape=(4, 8, 8), x_T=start(), verbose=False, log_every_t=1
    )
    middle = intermediates["x_inter"][10]
    sampler = cls(model)
    sampler.make_schedule(20)
    again = sampler.decode(middle, None, 10, callback=lambda i: seen.append(middle))  # type: ignore[arg-type]
    tolerance = 0 if cls is DDIMSampler else 2 * error(cls, 20)
    assert float((again - latents).abs().max()) <= tolerance
    assert len(seen) == 10


@pytest.mark.parametrize("cls", SAMPLERS)
def test_what_the_mask_keeps_comes_back(cls: Type[Sampler]) -> None:
    torch.manual_seed(0)
    known = torch.full((2, 4, 8, 8), 0.7, dtype=torch.float64)
    mask = torch.zeros((2, 1, 8, 8), dtype=torch.float64)
    mask[..., :4] = 1
    latents = sample(cls, 50, start(), mask=mask, x0=known)
    # Blending ends before the last step, so that step's noise remains: most in DPM-Solver, whose last step is long.
    assert float((latents - known)[..., :4].abs().mean()) < (0.4 if cls is DPMSolverSampler else 0.1)
    assert float((latents - known)[..., 4:].abs().mean()) > 0.5


@pytest.mark.parametrize("cls", SAMPLERS)
def test_encoding_at_full_strength_is_the_noisiest_step(cls: Type[Sampler]) -> None:
    sampler = cls(gaussian_model())
    sampler.make_schedule(10)
    clean, noise = torch.ones((1, 4, 8, 8), dtype=torch.float64), start(1)
    assert torch.equal(sampler.stochastic_encode(clean, 10, noise), sampler.stochastic_encode(clean, 9, noise))


@pytest.mark.parametrize("cls", [PLMSSampler, DPMSolverSampler, LCMSampler])
def test_samplers_whose_noise_is_settled_refuse_eta(cls: Type[Sampler]) -> None:
    with pytest.raises(RequestError, match=r"eta must be 0 for .*, got 0.5; DDIM takes any"):
        sample(cls, 5, start(1), eta=0.5)


def test_a_conditioning_of_another_length_is_refused() -> None:
    with pytest.raises(RequestError, match="conditioning must have 2 rows"):
        sample(DDIMSampler, 5, start(), conditioning=torch.zeros(3, 77, 8))


def test_a_mask_without_a_picture_is_refused() -> None:
    with pytest.raises(RequestError, match="mask and x0 go together"):
        sample(DDIMSampler, 5, start(), mask=torch.ones(2, 1, 8, 8))


def test_an_option_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TypeError, match="quantize_denoised"):
        sample(DDIMSampler, 5, start(), quantize_denoised=True)


def test_a_step_is_the_papers_sum_and_changes_nothing_that_it_was_given() -> None:
    """Sums are written in place, but only over what the step itself has made."""
    x, *noises = torch.randn((5, 2, 4, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    given = [each.clone() for each in (x, *noises)]
    alpha, alpha_next, sigma = 0.3, 0.6, 0.2
    clean = (x - math.sqrt(0.7) * noises[0]) / math.sqrt(0.3)
    stepped = steps.follow(x, noises[0], alpha, alpha_next, sigma)
    assert torch.allclose(stepped.clean, clean)
    assert torch.allclose(stepped.x, math.sqrt(0.6) * clean + math.sqrt(0.4 - 0.2**2) * noises[0])
    assert torch.allclose(steps.add_noise(clean, noises[0], alpha), x)
    for count, weights in enumerate(steps.ADAMS_BASHFORTH, start=1):
        expected = sum(weight * noise for weight, noise in zip(weights, noises))
        assert torch.allclose(steps.adams_bashforth(noises[:count]), expected)
    c_skip, c_out = steps.boundary_scalings(3.0)
    expected = c_skip * x + c_out * clean
    assert torch.allclose(steps.consistent_clean(x, noises[0], 3.0, alpha), expected)
    h, of_past = (steps.half_log_snr(a) - steps.half_log_snr(b) for a, b in ((alpha_next, alpha), (alpha, 0.1)))
    for cleans, towards in (
        (noises[:1], noises[0]),
        (noises[:2], noises[0] + (noises[0] - noises[1]) * h / (2 * of_past)),
    ):
        expected = math.sqrt(0.4 / 0.7) * x - math.sqrt(alpha_next) * math.expm1(-h) * towards
        assert torch.allclose(steps.dpm_solver_2m(x, cleans, (alpha, 0.1), alpha_next), expected)
    assert all(torch.equal(now, before) for now, before in zip((x, *noises), given))


def test_guidance_is_a_straight_line_through_both_answers() -> None:
    from ldm.models.diffusion.guidance import guided

    def answer(x: Tensor, t: float, cond: Tensor) -> Tensor:
        return x.repeat(len(cond) // len(x), 1, 1, 1) * 0 + cond.mean(dim=(1, 2))[:, None, None, None]

    predict = guided(answer, torch.full((2, 3, 4), 2.0), torch.full((2, 3, 4), 1.0), 7.5)
    noise = predict(torch.zeros(2, 4, 8, 8), 0.0)
    assert torch.equal(noise, torch.full((2, 4, 8, 8), 1.0 + 7.5 * (2.0 - 1.0)))


def test_past_a_timestep_the_text_alone_is_asked() -> None:
    from ldm.models.diffusion.guidance import guided

    rows: List[int] = []

    def answer(x: Tensor, t: float, cond: Tensor) -> Tensor:
        rows.append(len(cond))
        return x.repeat(len(cond) // len(x), 1, 1, 1) * 0 + cond.mean(dim=(1, 2))[:, None, None, None]

    predict = guided(answer, torch.full((2, 3, 4), 2.0), torch.full((2, 3, 4), 1.0), 7.5, 500.0)
    noises = [predict(torch.zeros(2, 4, 8, 8), t) for t in (900.0, 500.0, 499.0)]
    assert rows == [4, 4, 2]
    assert [float(noise[0, 0, 0, 0]) for noise in noises] == [8.5, 8.5, 2.0]
