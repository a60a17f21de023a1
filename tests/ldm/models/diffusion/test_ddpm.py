"""The diffusion model noises as the papers say, keeps its tables, and lends its averaged weights."""

from __future__ import annotations

from typing import Any, List

import pytest
import torch
from omegaconf import OmegaConf

from ldm.errors import ConfigError
from ldm.models.diffusion.ddpm import SCHEDULE_BUFFERS, LatentDiffusion
from ldm.modules.recall import Recall
from ldm.util import instantiate_from_config
from tests.tiny import CONFIG, random_model


@pytest.fixture(scope="module")
def model() -> Any:
    return random_model()


def config(**params: Any) -> Any:
    return OmegaConf.merge(OmegaConf.load(CONFIG).model, {"params": params})


def test_noising_keeps_the_variance_of_unit_latents(model: LatentDiffusion) -> None:
    torch.manual_seed(0)
    clean = torch.randn(3, 4, 64, 64)
    noised = model.q_sample(clean, torch.tensor([0, 500, 999]))
    # 16,384 numbers a row: a variance is known to 2 %.
    assert torch.allclose(noised.flatten(1).var(dim=1), torch.ones(3), atol=0.05)
    assert torch.corrcoef(torch.stack([noised[0].flatten(), clean[0].flatten()]))[0, 1] > 0.99
    assert torch.corrcoef(torch.stack([noised[2].flatten(), clean[2].flatten()]))[0, 1] < 0.2


def test_the_tables_of_the_schedule_belong_together(model: LatentDiffusion) -> None:
    tables = {name: getattr(model, name).double() for name in SCHEDULE_BUFFERS}
    assert torch.allclose(torch.cumprod(1 - tables["betas"], 0), tables["alphas_cumprod"], atol=1e-5)
    assert torch.allclose(tables["sqrt_recip_alphas_cumprod"], tables["alphas_cumprod"].rsqrt(), rtol=1e-5)
    assert torch.equal(tables["alphas_cumprod_prev"][1:], tables["alphas_cumprod"][:-1])
    assert all(table.shape == (1000,) for table in tables.values())


def test_scaling_is_undone_on_the_way_back(model: LatentDiffusion) -> None:
    latent = model.encode_first_stage(torch.rand(1, 3, 64, 64)).mode()
    scaled = model.get_first_stage_encoding(latent)
    assert torch.allclose(scaled, latent * model.scale_factor)
    assert torch.allclose(model.decode_first_stage(scaled), model.first_stage_model.decode(latent), atol=1e-5)


def test_averaged_weights_are_kept_and_used_only_inside_their_scope() -> None:
    model = instantiate_from_config(config(use_ema=True))
    weight = model.model.diffusion_model.out[2].weight
    with torch.no_grad():
        weight.add_(1.0)
    with model.ema_scope():
        assert not weight.detach().any()
    assert torch.equal(weight, torch.ones_like(weight))


def test_the_schedule_is_real_in_a_model_without_memory() -> None:
    if not hasattr(torch.device("meta"), "__enter__"):
        pytest.skip("torch before 2.0 has no default device")
    with torch.device("meta"):
        model = instantiate_from_config(config())
    assert model.device.type == "meta"
    assert float(model.alphas_cumprod[-1]) == pytest.approx(0.004660, abs=1e-6)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"parameterization": "v"}, "parameterization must be 'eps', got 'v'"),
        ({"conditioning_key": "hybrid"}, "conditioning_key must be 'crossattn' or null, got 'hybrid'"),
        ({"chanels": 4}, "has no parameter 'chanels'; did you mean 'channels'"),
    ],
)
def test_a_config_that_asks_for_something_else_is_refused(params: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        instantiate_from_config(config(**params))


@pytest.mark.parametrize(
    ("part", "params", "message"),
    [
        ("unet_config", {"in_channels": 9}, "in_channels of unet_config must be 4, as channels is, got 9"),
        ("unet_config", {"out_channels": 8}, "out_channels of unet_config must be 4, as channels is, got 8"),
        ("first_stage_config", {"embed_dim": 3}, "embed_dim of first_stage_config must be 4, as channels is, got 3"),
        (
            "unet_config",
            {"context_dim": 1024},
            "context_dim of unet_config must be 32, as the width of cond_stage_config is, got 1024",
        ),
        ("unet_config", {"context_dim": None}, "must be 32, as the width of cond_stage_config is, got left out"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused_before_a_weight_is_read(
    part: str, params: Any, message: str
) -> None:
    changed = config()
    changed["params"][part]["params"].update(params)
    with pytest.raises(ConfigError, match=message):
        instantiate_from_config(changed)


def test_parts_that_tell_nothing_of_their_sizes_are_let_be() -> None:
    other = {"target": "torch.nn.Linear", "params": {"in_features": 1, "out_features": 1}}
    for part in ("unet_config", "first_stage_config", "cond_stage_config"):
        changed = config()
        changed["params"][part] = other
        assert isinstance(instantiate_from_config(changed), LatentDiffusion)


def test_the_network_recalls_where_it_is_told_to(model: LatentDiffusion, monkeypatch: Any) -> None:
    seen: List[Any] = []
    forward = model.model.forward
    monkeypatch.setattr(model.model, "forward", lambda *given: seen.append(given[3:]) or forward(*given))
    x, t, cond = torch.zeros(1, 4, 8, 8), torch.tensor([500]), model.get_learned_conditioning(["a cat"])
    recall = Recall()
    model.apply_model(x, t, cond)
    model.apply_model(x, t, cond, recall)
    assert seen == [(), (recall,)]
