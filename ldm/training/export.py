"""The trained model as one file in the layout of an SD v1 checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Dict

from torch import Tensor

from ldm.training.diffusion import DiffusionTraining


def export_weights(module: DiffusionTraining, path: Path) -> None:
    """Write the averaged weights as half-precision safetensors; the schedule's tables keep their precision."""
    from safetensors.torch import save_file

    with module.ema.swapped_into(module.trained):
        save_file(halved(module.model.state_dict()), str(path), metadata={"format": "pt"})


def halved(state: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Weights (two dimensions or more, and biases of networks) in float16; tables and whole numbers as they are."""
    networks = ("model.", "first_stage_model.", "cond_stage_model.")
    return {
        name: (tensor.half() if name.startswith(networks) and tensor.is_floating_point() else tensor)
        .contiguous()
        .clone()
        for name, tensor in state.items()
    }
