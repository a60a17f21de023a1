"""From a config and a file of weights to a model that is ready to paint.

The file is looked at first, so that a wrong one costs nothing. The model is built without values, and each of its
tensors becomes the file's own, mapped rather than copied where nothing has to be converted at once.
"""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from ldm.errors import ConfigError
from ldm.inference.contents import StoredTensor, read_contents
from ldm.inference.names import Match, match_names
from ldm.inference.runtime import without_init
from ldm.inference.tensors import TensorReader
from ldm.inference.transfer import sender_to
from ldm.inference.weightfile import UseEma
from ldm.util import get_obj_from_str, instantiate_from_config

log = logging.getLogger(__name__)

Leave = Callable[[nn.Module], bool]


@dataclass(frozen=True)
class LoadReport:
    """What was loaded. `global_step` is None where the file does not say.

    `parameters` counts numbers, not tensors; `network_parameters` those of the U-Net alone.
    """

    file: Path
    global_step: int | None
    has_ema: bool
    uses_ema: bool
    schedule_from_file: bool
    parameters: int
    network_parameters: int
    left_aside: int

    @property
    def which_weights(self) -> str:
        """Which of the file's weights were taken, in words."""
        if self.uses_ema:
            return "the averaged (EMA) weights"
        return "the plain weights, its averaged (EMA) ones not used" if self.has_ema else "the plain weights"

    def __str__(self) -> str:
        step = "" if self.global_step is None else f", step {self.global_step:,}"
        schedule = "from the file" if self.schedule_from_file else "from the config"
        size = f"{self.parameters / 1e6:,.1f} M parameters"
        return f"{self.file}: {size}{step}; {self.which_weights}; noise schedule {schedule}"


def load_model(
    config_path: Path,
    checkpoint: Path,
    *,
    use_ema: str = "auto",
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    leave: Leave | None = None,
) -> tuple[nn.Module, LoadReport]:
    """The model of a v1-style YAML with the weights of a `.ckpt` or `.safetensors`, in eval mode, without gradients.

    use_ema  'auto' takes the averaged weights where the file has them all, 'yes' insists on them, 'no' takes the plain.
    dtype    of the parameters; None keeps what the model is built with, float32. Tables such as the noise schedule
             keep theirs.
    device   where each tensor goes as it is read; None leaves them on the CPU.
    leave    says of a layer that its `weight` is to stay the file's own, of whatever dtype, where the file is mapped:
             for who converts it when it is first used.

    Raises ConfigError for a YAML that does not describe a model, WeightsError for a file that is no checkpoint or does
    not fit it. Weights mapped from a local file must not be written over while the model lives.
    """
    node = read_model_config(config_path)
    wish = _use_ema(use_ema)
    contents = read_contents(checkpoint)
    with without_init():
        model = instantiate_from_config(node)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    match = match_names(wanted, contents, use_ema=wish, config=str(config_path))
    with TensorReader(contents) as reader:
        fill(model, match.tensors, reader, dtype=dtype, device=device, leave=leave)
    model.eval().requires_grad_(False)
    report = _report(checkpoint, contents.global_step, match, model)
    log.info("%s", report)
    return model, report


def read_state_dict(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All named tensors of a `.ckpt` or `.safetensors`, as stored, and {'global_step': steps trained or None}."""
    contents = read_contents(path)
    with TensorReader(contents) as reader:
        tensors = {name: reader.read(stored) for name, stored in in_file_order(contents.tensors)}
    return tensors, {"global_step": contents.global_step}


def read_model_config(path: Path) -> DictConfig:
    """The `model` node of a YAML in the CompVis schema, set for generating: nothing is kept for training."""
    try:
        config = OmegaConf.load(path)
        node = config.get("model") if isinstance(config, DictConfig) else None
        if not isinstance(node, DictConfig):
            raise ConfigError(
                f"{path} must have the key 'model' with 'target' and 'params'; "
                "see configs/stable-diffusion/v1-inference.yaml"
            )
        OmegaConf.resolve(node)
    except FileNotFoundError as error:
        raise ConfigError(f"no config at {path}: looked for {path.absolute()}; give the path of a YAML") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    if "use_ema" in inspect.signature(get_obj_from_str(str(node.get("target")))).parameters:
        # The averaged weights are read in place of the plain ones, so a second copy would only cost memory.
        OmegaConf.update(node, "params.use_ema", False, force_add=True)
    return node


def fill(
    model: nn.Module,
    places: Mapping[str, StoredTensor],
    reader: TensorReader,
    *,
    dtype: torch.dtype | None,
    device: torch.device | None,
    leave: Leave | None = None,
) -> None:
    """Make each named tensor of the model the stored one, and move what is not named to the device."""
    owners = {
        f"{prefix}.{name}" if prefix else name: (module, name)
        for prefix, module in model.named_modules()
        for name in (*module._parameters, *module._buffers)
    }
    sender = sender_to(device)
    for full_name, stored in in_file_order(places):
        module, name = owners[full_name]
        own = module._parameters.get(name)
        to = module._buffers[name].dtype if own is None else dtype or own.dtype
        value = reader.read(stored)
        if name != "weight" or leave is None or not leave(module) or not reader.is_view(stored):
            value = sender.send(value, to)
        if own is None:
            module._buffers[name] = value
        else:
            module._parameters[name] = nn.Parameter(value, requires_grad=False)
    if device is not None:
        model.to(device)


def in_file_order(places: Mapping[str, StoredTensor]) -> list[tuple[str, StoredTensor]]:
    """Names and places by their offset: a disk and a network are fastest from the first byte to the last."""
    return sorted(places.items(), key=lambda item: item[1].offset)


def _use_ema(wanted: str) -> UseEma:
    try:
        return UseEma(wanted)
    except ValueError:
        known = ", ".join(choice.value for choice in UseEma)
        raise ConfigError(f"use_ema must be one of {known}, got {wanted!r}") from None


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _report(file: Path, global_step: int | None, match: Match, model: nn.Module) -> LoadReport:
    return LoadReport(
        file=file,
        global_step=global_step,
        has_ema=match.has_ema,
        uses_ema=match.uses_ema,
        schedule_from_file=match.schedule_from_file,
        parameters=_count(model),
        network_parameters=_count(getattr(model, "model", nn.Module())),
        left_aside=match.left_aside,
    )
