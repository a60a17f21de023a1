"""The first stage: its sizes, its draws, and its divergence from a unit Gaussian."""

from __future__ import annotations

from typing import Any, Dict

import pytest
import torch

from ldm.errors import ConfigError
from ldm.models.autoencoder import AutoencoderKL
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution

DIMS: Dict[str, Any] = {
    "ch": 32, "out_ch": 3, "ch_mult": [1, 2], "num_res_blocks": 1, "in_channels": 3, "z_channels": 4, "resolution": 32,
    "attn_resolutions": [16], "dropout": 0.0, "double_z": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def first_stage() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(DIMS, embed_dim=3).eval().requires_grad_(False)


def test_a_picture_becomes_a_latent_smaller_by_the_factor(first_stage: AutoencoderKL) -> None:
    posterior = first_stage.encode(torch.zeros(2, 3, 32, 48))
    assert first_stage.factor == 2
    assert posterior.mode().shape == (2, 3, 16, 24)
    assert first_stage.decode(posterior.mode()).shape == (2, 3, 32, 48)


def test_the_mode_is_rebuilt_alike_every_time_and_a_draw_is_not(first_stage: AutoencoderKL) -> None:
    image = torch.rand(1, 3, 32, 32)
    rebuilt = [first_stage(image, sample_posterior=False)[0] for _ in range(2)]
    drawn = [first_stage(image)[0] for _ in range(2)]
    assert torch.equal(*rebuilt)
    assert not torch.equal(*drawn)


def test_levels_named_in_the_config_attend(first_stage: AutoencoderKL) -> None:
    names = set(first_stage.state_dict())
    assert "encoder.down.1.attn.0.q.weight" in names
    assert "decoder.up.1.attn.1.q.weight" in names
    assert not any(name.startswith("encoder.down.0.attn") for name in names)


def test_an_unknown_dimension_is_refused() -> None:
    with pytest.raises(ConfigError, match="ddconfig has no parameter 'z_chanels'; did you mean 'z_channels'"):
        AutoencoderKL({**DIMS, "z_chanels": 4}, embed_dim=4)
    with pytest.raises(ConfigError, match="attn_type must be 'vanilla' or 'none', got 'linear'"):
        AutoencoderKL({**DIMS, "attn_type": "linear"}, embed_dim=4)


def test_the_divergence_of_a_unit_gaussian_is_zero_and_of_others_is_not() -> None:
    unit = DiagonalGaussianDistribution(torch.zeros(2, 8, 4, 4))
    moved = DiagonalGaussianDistribution(torch.ones(2, 8, 4, 4))
    assert torch.equal(unit.kl(), torch.zeros(2))
    # Mean 1, log variance 1: 0.5 (1 + e - 1 - 1) nats in each of 4 * 4 * 4 numbers.
    assert torch.allclose(moved.kl(), torch.full((2,), 64 * 0.5 * (torch.e - 1)))


def test_draws_follow_the_moments() -> None:
    torch.manual_seed(0)
    parameters = torch.cat([torch.full((1, 1, 200, 200), 3.0), torch.full((1, 1, 200, 200), -1.0)], dim=1)
    posterior = DiagonalGaussianDistribution(parameters)
    draw = posterior.sample()
    # 40,000 draws: the mean is known to 0.003, the deviation to 0.002.
    assert float(draw.mean()) == pytest.approx(3.0, abs=0.02)
    assert float(draw.std()) == pytest.approx(float(torch.tensor(-0.5).exp()), abs=0.02)
    assert float(posterior.nll(posterior.mode())) < float(posterior.nll(draw))
