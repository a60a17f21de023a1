"""Our numbers against those of CompVis/stable-diffusion 21f890f on the same weights and inputs (CPU, float32).

`ldm_a.npz` holds its outputs, `config_a.yaml` the model. Random weights amplify rounding, so differences are counted in
standard deviations of the reference: 2e-3 is the promise, 1e-5 is what is seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.dpm_solver import DPMSolverSampler
from ldm.models.diffusion.plms import PLMSSampler
from ldm.util import instantiate_from_config
from tests.parity.filling import filled, tensor

HERE = Path(__file__).parent
TOLERANCE = 2e-3

x_T = tensor("devxT", 2, 4, 16, 16)
cond = tensor("devc", 2, 77, 40)
uncond = tensor("devuc", 1, 77, 40).repeat(2, 1, 1)
image = tensor("devimg", 1, 3, 128, 128, scale=0.5).clamp(-1, 1)
z0 = tensor("devz0", 2, 4, 16, 16)
noise = tensor("devn", 2, 4, 16, 16)
mask = (tensor("devm", 2, 1, 16, 16) > 0).float()


@pytest.fixture(scope="module")
def reference() -> Dict[str, np.ndarray]:
    return dict(np.load(HERE / "ldm_a.npz"))


@pytest.fixture(scope="module")
def model() -> Any:
    built = instantiate_from_config(OmegaConf.load(HERE / "config_a.yaml").model).eval()
    built.load_state_dict(filled(built.state_dict()))
    return built.requires_grad_(False)


def test_tensors_have_the_names_and_shapes_of_the_original(model: Any, reference: Dict[str, np.ndarray]) -> None:
    assert sorted(f"{name} {tuple(t.shape)}" for name, t in model.state_dict().items()) == list(reference["keys"])


def sample(sampler: Callable[[Any], Any], steps: int, **options: Any) -> Callable[[Any], Tensor]:
    def run(model: Any) -> Tensor:
        latents, _ = sampler(model).sample(
            S=steps,
            batch_size=2,
            shape=(4, 16, 16),
            conditioning=cond,
            unconditional_conditioning=uncond,
            unconditional_guidance_scale=7.5,
            verbose=False,
            **{"x_T": x_T, **options},
        )
        return latents

    return run


def seeded(seed: int, run: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
    def with_seed(model: Any) -> Tensor:
        torch.manual_seed(seed)
        return run(model)

    return with_seed


def encoded(model: Any) -> Tensor:
    sampler = DDIMSampler(model)
    sampler.make_schedule(20, ddim_eta=0.0, verbose=False)
    return sampler.stochastic_encode(z0, torch.tensor([15, 15]), noise)


def img2img(model: Any) -> Tensor:
    sampler = DDIMSampler(model)
    sampler.make_schedule(20, ddim_eta=0.0, verbose=False)
    return sampler.decode(encoded(model), cond, 15, unconditional_guidance_scale=5.0, unconditional_conditioning=uncond)


CASES: Dict[str, Callable[[Any], Tensor]] = {
    "eps": lambda model: model.apply_model(x_T, torch.tensor([981, 401]), cond),
    "enc_mean": lambda model: model.encode_first_stage(image).mean,
    "enc_std": lambda model: model.encode_first_stage(image).std,
    "dec": lambda model: model.decode_first_stage(x_T),
    "plms7": sample(PLMSSampler, 7),
    "plms50": sample(PLMSSampler, 50),
    "plms20_seed42": seeded(42, sample(PLMSSampler, 20, x_T=None)),
    "ddim10": sample(DDIMSampler, 10),
    "ddim10_eta": seeded(7, sample(DDIMSampler, 10, eta=0.6)),
    "dpm15": sample(DPMSolverSampler, 15),
    "img2img_enc": encoded,
    "img2img_dec": img2img,
    "inpaint_ddim10": seeded(3, sample(DDIMSampler, 10, mask=mask, x0=z0)),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_output_equals_the_original(name: str, model: Any, reference: Dict[str, np.ndarray]) -> None:
    expected = torch.from_numpy(reference[name])
    difference = (CASES[name](model) - expected).abs().max() / expected.std()
    assert difference < TOLERANCE


def test_no_reference_is_left_out(reference: Dict[str, np.ndarray]) -> None:
    assert set(CASES) | {"keys"} == set(reference)
