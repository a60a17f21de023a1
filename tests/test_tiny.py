"""The tiny model of the tests: what they rely on it for."""

from __future__ import annotations

import pytest
import torch

from ldm.models.diffusion.plms import PLMSSampler
from tests.tiny import random_model


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return random_model()


def picture(model: torch.nn.Module, prompt: str, seed: int) -> torch.Tensor:
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        cond, uncond = model.get_learned_conditioning([prompt]), model.get_learned_conditioning([""])
        latent, _ = PLMSSampler(model).sample(
            S=2,
            batch_size=1,
            shape=(4, 8, 8),
            conditioning=cond,
            unconditional_conditioning=uncond,
            unconditional_guidance_scale=7.5,
            x_T=noise,
        )
        return model.decode_first_stage(latent)


def test_picture_is_64_px_and_mostly_in_range(model: torch.nn.Module) -> None:
    made = picture(model, "a cat", 1)
    assert made.shape == (1, 3, 64, 64)
    assert (made.abs() < 1).float().mean() > 0.8


@pytest.mark.parametrize(("prompt", "seed"), [("a dog", 1), ("a cat", 2)])
def test_prompt_and_seed_show_in_the_picture(model: torch.nn.Module, prompt: str, seed: int) -> None:
    """By far more than a step of 8 bits."""
    assert (picture(model, prompt, seed) - picture(model, "a cat", 1)).std() > 0.05


def test_weights_are_the_same_every_time(model: torch.nn.Module) -> None:
    again = random_model().state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())
