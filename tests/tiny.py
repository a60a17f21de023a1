"""A whole SD v1 model, small enough to load and sample in a blink, with random weights: a pytest plugin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ldm.inference.models import ModelFiles

if TYPE_CHECKING:
    from torch import nn

CONFIG = Path(__file__).with_name("tiny.yaml")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    """Its files: 64 px pictures, the same weights in every session, the tokenizer that ships with the project."""
    from safetensors.torch import save_file

    checkpoint = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in random_model().state_dict().items()}, str(checkpoint))
    return ModelFiles(name="tiny", config=CONFIG, checkpoint=checkpoint)


def random_model(seed: int = 0) -> nn.Module:
    """The model with random weights, of a scale at which its noise depends on the prompt, the step and the latent.

    A U-Net as it is constructed ends in zeros, and would answer zero to everything.
    """
    import torch
    from omegaconf import OmegaConf

    from ldm.util import instantiate_from_config

    model: nn.Module = instantiate_from_config(OmegaConf.load(CONFIG).model)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            weight.data = torch.randn(weight.shape, generator=generator) * weight[0].numel() ** -0.5
        elif name.endswith("bias"):
            weight.data.zero_()
    return model.eval().requires_grad_(False)
