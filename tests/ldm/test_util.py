"""A config's targets are built with their params, and what does not fit is named."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from ldm.errors import ConfigError
from ldm.util import get_obj_from_str, instantiate_from_config, without_fixed


def test_a_target_is_built_with_its_params() -> None:
    built = instantiate_from_config(
        OmegaConf.create({"target": "torch.nn.Linear", "params": {"in_features": 2, "out_features": 3}})
    )
    assert isinstance(built, torch.nn.Linear)
    assert built.out_features == 3


@pytest.mark.parametrize("placeholder", ["__is_first_stage__", "__is_unconditional__"])
def test_the_placeholders_of_the_schema_build_nothing(placeholder: str) -> None:
    assert instantiate_from_config(placeholder) is None


@pytest.mark.parametrize(
    "target",
    [
        "ldm.models.diffusion.ddpm.LatentDiffusion",
        "ldm.models.autoencoder.AutoencoderKL",
        "ldm.modules.diffusionmodules.openaimodel.UNetModel",
        "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
        "ldm.lr_scheduler.LambdaLinearScheduler",
        "torch.nn.Identity",
    ],
)
def test_every_target_of_a_v1_config_resolves(target: str) -> None:
    assert get_obj_from_str(target).__name__ == target.rpartition(".")[2]


@pytest.mark.parametrize("target", ["os.system", "subprocess.Popen", "builtins.eval", "torch.load", "ldm.util.Mapping"])
def test_a_config_cannot_call_what_is_not_a_network(target: str) -> None:
    with pytest.raises(ConfigError, match=r"target must be a torch\.nn\.Module or a class of ldm"):
        instantiate_from_config({"target": target, "params": {}})


@pytest.mark.parametrize("target", ["ldm.models.nothing.Here", "ldm.models.autoencoder.VQModel", "NoDots", ""])
def test_a_target_that_is_not_there_is_named(target: str) -> None:
    with pytest.raises(ConfigError, match="target must be the import path of a class"):
        get_obj_from_str(target)


def test_an_unknown_param_is_refused_with_the_nearest_known_one() -> None:
    node = {"target": "ldm.lr_scheduler.LambdaLinearScheduler", "params": {"warmup_steps": [1]}}
    with pytest.raises(ConfigError, match="has no parameter 'warmup_steps'; did you mean 'warm_up_steps'"):
        instantiate_from_config(node)


def test_an_unknown_key_beside_target_and_params_is_refused() -> None:
    node = {"target": "torch.nn.Identity", "parms": {"version": "x"}}
    with pytest.raises(ConfigError, match=r"of torch\.nn\.Identity must have only target, params, .* got 'parms'"):
        instantiate_from_config(node)


def test_params_that_nothing_can_be_built_from_are_named_with_the_reason() -> None:
    node = {"target": "torch.nn.Linear", "params": {"in_features": "many", "out_features": 3}}
    with pytest.raises(ConfigError, match=r"torch\.nn\.Linear cannot be built from these params: .*str"):
        instantiate_from_config(node)


@pytest.mark.parametrize(
    ("target", "params", "said"),
    [
        ("torch.nn.Conv2d", {"in_channels": -1, "out_channels": 4, "kernel_size": 3}, ".*negative"),
        ("torch.nn.MultiheadAttention", {"embed_dim": 4, "num_heads": 3}, "embed_dim must be divisible by num_heads"),
        ("torch.nn.MultiheadAttention", {"embed_dim": 4, "num_heads": 0}, ".*"),
        (
            "torch.nn.TransformerEncoderLayer",
            {"d_model": 4, "nhead": 2, "activation": "x"},
            "activation should be relu",
        ),
    ],
)
def test_params_at_which_the_building_itself_fails_are_refused_too(target: str, params: Any, said: str) -> None:
    """As a division by zero, or torch's own error: a YAML may name any network."""
    with pytest.raises(ConfigError, match=rf"{re.escape(target)} cannot be built from these params: {said}"):
        instantiate_from_config({"target": target, "params": params})


def test_params_that_have_to_do_with_memory_are_refused_as_any_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("memory_format must be channels_last")

    monkeypatch.setattr(torch.nn.Linear, "__init__", refuse)
    with pytest.raises(ConfigError, match="cannot be built from these params: memory_format must be channels_last"):
        instantiate_from_config({"target": "torch.nn.Linear", "params": {}})


def test_a_lack_of_memory_is_none_of_the_params(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4"

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(torch.nn.Linear, "__init__", full)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        instantiate_from_config({"target": "torch.nn.Linear", "params": {"in_features": 1, "out_features": 1}})


def test_what_the_schema_allows_and_nothing_needs_may_stand_with_its_one_value() -> None:
    target = "ldm.modules.diffusionmodules.openaimodel.UNetModel"
    assert without_fixed(target, get_obj_from_str(target), {"dims": 2, "in_channels": 4}) == {"in_channels": 4}
    with pytest.raises(ConfigError, match=rf"{target} is built with dims: 2 only, got 3"):
        without_fixed(target, get_obj_from_str(target), {"dims": 3})


def test_a_missing_param_is_named() -> None:
    node = {"target": "ldm.lr_scheduler.LambdaLinearScheduler", "params": {"warm_up_steps": [1]}}
    with pytest.raises(ConfigError, match="needs the parameter 'f_min'"):
        instantiate_from_config(node)


@pytest.mark.parametrize("node", [{"params": {}}, "ldm.util", None, 3])
def test_a_node_without_a_target_is_refused(node: object) -> None:
    with pytest.raises(ConfigError, match="must have the key 'target'"):
        instantiate_from_config(node)
