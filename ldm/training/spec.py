"""One training run as its YAML says it, with `key=value` overrides; typed, so that a wrong key or value is refused."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import List, Optional, Sequence

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ldm.errors import ConfigError


class Stage(enum.Enum):
    """What is trained: the first stage, or the diffusion in its latents with the text encoder."""

    autoencoder = "autoencoder"
    diffusion = "diffusion"


@dataclass
class LossSpec:
    """Weights of the first stage's loss (`ReconstructionLoss`)."""

    edge_weight: float = 1.0
    kl_weight: float = 5e-4
    disc_weight: float = 0.0
    disc_start: int = 0


@dataclass
class TrainSpec:
    """Everything a run depends on. It ends after `max_steps` batches or `max_minutes`, whichever comes first."""

    stage: Stage = MISSING
    model: str = MISSING
    outdir: str = MISSING
    seed: int = 1
    precision: str = "bf16"
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    batch_size: int = 16
    learning_rate: float = 1e-3
    max_steps: int = 10000
    max_minutes: Optional[float] = None
    warmup_steps: int = 100
    grid_every: int = 500
    checkpoint_every: int = 500
    loss: LossSpec = field(default_factory=LossSpec)
    crop_px: Optional[int] = None
    first_stage: Optional[str] = None
    cached_pictures: int = 100000
    unconditional_share: float = 0.1
    ema_decay: float = 0.999
    snr_gamma: float = 5.0


def read_spec(path: Path, overrides: Sequence[str]) -> TrainSpec:
    """The run that a YAML and overrides such as `batch_size=32` describe; ConfigError names what does not fit."""
    if not path.is_file():
        raise ConfigError(f"the training config must be a YAML file, found none at {path}")
    try:
        merged = OmegaConf.merge(
            OmegaConf.structured(TrainSpec), OmegaConf.load(path), OmegaConf.from_dotlist(_checked(overrides))
        )
        spec = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError, OSError, TypeError) as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from error
    assert isinstance(spec, TrainSpec)
    return spec


def _checked(overrides: Sequence[str]) -> List[str]:
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"an override must read key=value, got {override!r}; for example batch_size=32")
    return list(overrides)
