"""The first stage: its sizes, its draws, and its divergence from a unit Gaussian."""

from __future__ import annotations

from typing import Any, Dict, List

import pytest
import torch

from ldm.errors import ConfigError
from ldm.models import autoencoder
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


@pytest.fixture
def _everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoder, "LARGE_MAP_BYTES", 0)


@pytest.fixture
def in_strips(monkeypatch: pytest.MonkeyPatch) -> List[str]:
    """The halves that were worked on in strips."""
    done: List[str] = []
    for name in ("decode_in_strips", "encode_in_strips"):
        real = getattr(autoencoder, name)
        monkeypatch.setattr(autoencoder, name, lambda *args, name=name, real=real: (done.append(name), real(*args))[1])
    return done


def test_a_picture_is_large_by_the_bytes_of_its_largest_map(
    first_stage: AutoencoderKL, in_strips: List[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoencoder, "LARGE_MAP_BYTES", 64 * 32 * 32 * 4)  # the decoder's, at the picture's size
    with torch.no_grad():
        for side in (16, 17):
            first_stage.decode(torch.zeros(1, 3, side, side))
            first_stage.encode(torch.zeros(1, 3, 64, 2 * side))  # twice the places, for half the channels
    assert in_strips == ["decode_in_strips", "encode_in_strips"]


def test_what_is_not_large_is_made_as_ever_to_the_bit(first_stage: AutoencoderKL, in_strips: List[str]) -> None:
    z = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(first_stage.decode(z), first_stage.decoder(first_stage.post_quant_conv(z)))
    assert in_strips == []


@pytest.mark.usefixtures("_everything_is_large")
def test_large_pictures_are_the_same_within_rounding(first_stage: AutoencoderKL, in_strips: List[str]) -> None:
    image = torch.randn(2, 3, 24, 16)
    with torch.no_grad():
        moments = first_stage.encode(image)
        rebuilt = first_stage.decode(moments.mode())
        assert torch.allclose(moments.mode(), first_stage.quant_conv(first_stage.encoder(image))[:, :3], atol=1e-4)
        plain = first_stage.decoder(first_stage.post_quant_conv(moments.mode()))
    assert torch.allclose(rebuilt, plain, atol=1e-4)  # twenty layers in float32
    assert in_strips == ["encode_in_strips", "decode_in_strips"]


@pytest.mark.usefixtures("_everything_is_large")
def test_what_has_gradients_and_what_the_factor_does_not_divide_are_never_cut(
    first_stage: AutoencoderKL, in_strips: List[str]
) -> None:
    z = torch.randn(1, 3, 4, 4, requires_grad=True)
    first_stage.decode(z).sum().backward()
    assert z.grad is not None
    with torch.no_grad():
        first_stage.encode(torch.zeros(1, 3, 9, 8))
    assert in_strips == []
