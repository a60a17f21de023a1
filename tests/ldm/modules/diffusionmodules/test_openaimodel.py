"""The U-Net has the names of an SD v1 checkpoint, heeds time and text, and refuses what it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Tuple

import pytest
import torch
from omegaconf import OmegaConf

from ldm.errors import ConfigError
from ldm.inference.runtime import without_init
from ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel
from ldm.modules.diffusionmodules.util import timestep_embedding
from ldm.util import instantiate_from_config

ROOT = Path(__file__).resolve().parents[4]
SMALL: Dict[str, Any] = {
    "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": 1, "attention_resolutions": [2],
    "channel_mult": [1, 2], "num_heads": 2, "use_spatial_transformer": True, "context_dim": 16,
}  # fmt: skip


def unet(**changes: Any) -> UNetModel:
    torch.manual_seed(0)
    built = UNetModel(**{**SMALL, **changes})
    for parameter in built.parameters():  # it is born with zeros that would hide what flows through
        if not parameter.detach().any():
            torch.nn.init.normal_(parameter, std=0.1)
    return built.eval().requires_grad_(False)


def predict(built: UNetModel, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((2, 4, height, width), generator=generator)
    context = torch.randn((2, 7, 16), generator=generator)
    return built(x, torch.tensor([10, 900]), context)


def test_the_v1_config_gives_the_names_and_shapes_of_an_sd_v1_checkpoint() -> None:
    listed = (ROOT / "tests/golden/sd_v1_keys.tsv").read_text().splitlines()
    expected: Dict[str, Tuple[int, ...]] = {}
    for line in listed:
        name, _, shape = line.partition("\t")
        expected[name] = tuple(int(side) for side in shape.split(",") if side)
    config = OmegaConf.load(ROOT / "configs/stable-diffusion/v1-inference.yaml")
    with without_init():
        model = instantiate_from_config(config.model)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == expected


@pytest.mark.parametrize("more", [{}, {"resblock_updown": True}, {"conv_resample": False}])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 8), (7, 5), (1, 1), (13, 3)])
def test_any_latent_size_comes_back_as_it_went_in(height: int, width: int, more: Any) -> None:
    assert predict(unet(channel_mult=[1, 1, 2], **more), height, width).shape == (2, 4, height, width)


@pytest.mark.parametrize("texts", [1, 2, 3])
@pytest.mark.parametrize("attention_resolutions", [[1, 2], [2], []])
@pytest.mark.parametrize("more", [{}, {"resblock_updown": True}, {"use_scale_shift_norm": True, "num_res_blocks": 2}])
def test_several_texts_of_a_latent_are_as_many_latents(texts: int, attention_resolutions: Any, more: Any) -> None:
    built = unet(attention_resolutions=attention_resolutions, **more)
    generator = torch.Generator().manual_seed(2)
    x, t = torch.randn((2, 4, 8, 12), generator=generator), torch.tensor([10, 900])
    context = torch.randn((2 * texts, 7, 16), generator=generator)
    expected = built(torch.cat([x] * texts), torch.cat([t] * texts), context)
    # The same sums; a kernel may order them otherwise for fewer rows.
    assert torch.allclose(built(x, t, context), expected, rtol=1e-4, atol=1e-5)


def test_what_has_not_seen_the_words_is_computed_once() -> None:
    built = unet()  # attention on its second level
    rows: Dict[str, int] = {}
    for name, block in built.named_modules():
        if isinstance(block, ResBlock):
            block.register_forward_hook(lambda _, given, __, name=name: rows.update({name: len(given[0])}))
    built(torch.zeros(1, 4, 8, 8), torch.tensor([10]), torch.zeros(2, 7, 16))
    assert rows["input_blocks.1.0"] == 1
    assert rows["input_blocks.3.0"] == 1
    assert all(count == 2 for name, count in rows.items() if not name.startswith("input_blocks")), rows


@pytest.mark.parametrize(
    "changes",
    [
        {"use_scale_shift_norm": True},
        {"resblock_updown": True},
        {"conv_resample": False},
        {"transformer_depth": 2},
        {"num_heads": -1, "num_head_channels": 16},
        {"norm_groups": 8},
        {"num_res_blocks": 2, "channel_mult": [1, 2, 3], "attention_resolutions": [1, 4]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_variant_of_the_schema_runs_and_heeds_time_and_text(changes: Dict[str, Any]) -> None:
    built = unet(**changes)
    x, context = torch.randn(1, 4, 8, 8), torch.randn(1, 7, 16)
    here = built(x, torch.tensor([10]), context)
    assert here.shape == x.shape
    assert not torch.allclose(here, built(x, torch.tensor([900]), context))
    assert not torch.allclose(here, built(x, torch.tensor([10]), context * 2))


def test_a_new_network_predicts_nothing() -> None:
    noise = UNetModel(**SMALL)(torch.randn(1, 4, 8, 8), torch.tensor([1]), torch.randn(1, 7, 16))
    assert not noise.detach().any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_spatial_transformer": False}, "needs use_spatial_transformer: True"),
        ({"num_heads": -1}, "needs one of num_heads and num_head_channels"),
        ({"num_head_channels": 8}, "needs one of num_heads and num_head_channels"),
        ({"num_heads": 0}, "num_heads of unet_config must be at least 1, got 0"),
        ({"num_heads": 65}, "too large for a level of 64 channels: num_heads is 65"),
        (
            {"num_heads": -1, "num_head_channels": 128},
            "too large for a level of 64 channels: num_heads is -1",
        ),
        ({"num_heads": -1, "num_head_channels": 0}, "num_head_channels of unet_config must be at least 1, got 0"),
        ({"channel_mult": []}, r"needs one channel_mult or more, .* got \[\], 32 and 1"),
        ({"channel_mult": [1, 0]}, "those, model_channels and num_res_blocks at least 1"),
        ({"model_channels": -32}, "got .*, -32 and 1"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(changes: Dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        UNetModel(**{**SMALL, **changes})


def test_half_steps_lie_between_whole_ones() -> None:
    # DPM-Solver asks at fractional timesteps.
    codes = timestep_embedding(torch.tensor([10.0, 10.5, 11.0]), 32)
    assert torch.allclose(codes[1], (codes[0] + codes[2]) / 2, atol=0.13)
    assert not torch.equal(codes[1], codes[0])


def test_whole_timesteps_may_be_integers() -> None:
    assert torch.equal(
        timestep_embedding(torch.tensor([3, 981]), 32), timestep_embedding(torch.tensor([3.0, 981.0]), 32)
    )


def test_an_odd_width_ends_with_a_zero() -> None:
    assert timestep_embedding(torch.tensor([5]), 33)[0, -1] == 0
