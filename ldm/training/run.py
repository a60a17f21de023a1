"""Put a training run together from its spec, and run it."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import Any, Dict, List, Optional

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import default_collate  # where torch 1.10 has it too

from ldm.errors import ConfigError, OutputError
from ldm.modules.losses.reconstruction import ReconstructionLoss
from ldm.training.autoencoder import AutoencoderTraining
from ldm.training.data import EmojiDataset
from ldm.training.diffusion import DiffusionTraining
from ldm.training.export import export_weights
from ldm.training.latents import encode_once
from ldm.training.pace import Pace
from ldm.training.spec import Stage, TrainSpec
from ldm.training.watch import LogLines, SampleGrids
from ldm.util import instantiate_from_config

log = logging.getLogger(__name__)

LATENTS = "latents.pt"
SHOWN = 10  # pictures in a row of a sample grid


def train(spec: TrainSpec, root: Path, *, resume: bool = False) -> Path:
    """Run to the end of the budget; gives the folder with `last.ckpt`, sample grids and the log."""
    outdir = prepare(spec, resume=resume)
    pl.seed_everything(spec.seed, workers=True)
    module, data = SETUPS[spec.stage](spec, root, outdir)
    trainer = pl.Trainer(
        accelerator=spec.accelerator,
        devices=spec.devices,
        num_nodes=spec.num_nodes,
        precision=_precision(spec.precision),
        max_epochs=-1,
        default_root_dir=str(outdir),
        callbacks=callbacks(spec, outdir),
        logger=pl.loggers.CSVLogger(str(outdir), name="metrics"),
        log_every_n_steps=50,
        enable_model_summary=False,
    )
    last = outdir / "last.ckpt"
    trainer.fit(module, data, ckpt_path=str(last) if resume else None)
    trainer.save_checkpoint(str(last))
    if isinstance(module, DiffusionTraining):
        export_weights(module, outdir / "model.safetensors")
    log.info("trained %d steps; %s", module.step, last)
    return outdir


def prepare(spec: TrainSpec, *, resume: bool) -> Path:
    """The run's folder with its spec written down; a folder that already holds a run is only taken to resume it."""
    outdir = Path(spec.outdir)
    there = (outdir / "last.ckpt").exists()
    if there and not resume:
        raise OutputError(f"{outdir} holds a run already; go on with --resume, or choose another outdir=")
    if resume and not there:
        raise OutputError(f"there is no {outdir / 'last.ckpt'} to resume from; leave out --resume")
    try:
        outdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {outdir}: {error.strerror}; choose another outdir=") from error
    if not resume:  # a start that failed may have left latents of another first stage
        (outdir / LATENTS).unlink(missing_ok=True)
    OmegaConf.save(OmegaConf.structured(spec), outdir / "train.yaml")
    handler = logging.FileHandler(outdir / "train.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logging.getLogger("ldm").addHandler(handler)
    logging.getLogger("ldm").setLevel(logging.INFO)
    return outdir


def callbacks(spec: TrainSpec, outdir: Path) -> List[Callback]:
    """Learning rate, checkpoints, grids and log lines."""
    shown = default_collate([EmojiDataset(SHOWN, first=0, seed=spec.seed + 1)[i] for i in range(SHOWN)])
    # Lightning 1.9 has no such option, and overwrites the file that it resumed from without being told.
    known = "enable_version_counter" in inspect.signature(ModelCheckpoint).parameters
    overwrite: Dict[str, Any] = {"enable_version_counter": False} if known else {}
    saved = ModelCheckpoint(
        dirpath=str(outdir), filename="last", every_n_train_steps=spec.checkpoint_every, **overwrite
    )
    return [
        Pace(spec.max_steps, spec.max_minutes, spec.warmup_steps),
        saved,
        SampleGrids(outdir, shown, spec.grid_every),
        LogLines(),
    ]


def model_config(spec: TrainSpec, root: Path) -> Any:
    """The `model` node of the YAML that the spec names, looked for from here and from the project's root."""
    for place in (Path(spec.model), root / spec.model):
        if place.is_file():
            return OmegaConf.load(place).model
    raise ConfigError(f"model must name a YAML file, found none at {spec.model}")


def set_up_autoencoder(spec: TrainSpec, root: Path, outdir: Path) -> Any:
    """The first stage with its loss, and pictures drawn as they are needed."""
    first_stage = instantiate_from_config(model_config(spec, root).params.first_stage_config)
    loss = ReconstructionLoss(**vars(spec.loss))
    pictures = EmojiDataset(spec.max_steps * spec.batch_size, seed=spec.seed)
    module = AutoencoderTraining(first_stage, loss, spec.learning_rate, spec.crop_px)
    return module, DataLoader(pictures, spec.batch_size)


def set_up_diffusion(spec: TrainSpec, root: Path, outdir: Path) -> Any:
    """The whole model around a trained first stage, and latents encoded by it beforehand."""
    model = instantiate_from_config(model_config(spec, root))
    model.first_stage_model.load_state_dict(trained_first_stage(spec.first_stage))
    pictures = EmojiDataset(spec.cached_pictures, seed=spec.seed)
    latents = encode_once(model.first_stage_model, pictures, outdir / LATENTS)
    check_scale_factor(model.scale_factor, latents.deviation, spec.model)
    module = DiffusionTraining(
        model,
        spec.learning_rate,
        unconditional_share=spec.unconditional_share,
        ema_decay=spec.ema_decay,
        snr_gamma=spec.snr_gamma,
    )
    return module, DataLoader(latents, spec.batch_size, shuffle=True, drop_last=True)


def trained_first_stage(checkpoint: Optional[str]) -> Dict[str, torch.Tensor]:
    """The first stage's tensors out of the checkpoint of an autoencoder run."""
    if checkpoint is None or not Path(checkpoint).is_file():
        raise ConfigError(f"first_stage must name the last.ckpt of an autoencoder run, got {checkpoint!r}")
    # Written by this program's own training run; torch before 2.6 reads it without limits, so take no stranger's.
    state = torch.load(checkpoint, map_location="cpu")["state_dict"]
    prefix = "first_stage."
    return {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}


def check_scale_factor(scale_factor: float, deviation: float, config: str) -> None:
    """The diffusion starts from unit noise, so scaled latents must have about unit deviation."""
    if abs(scale_factor * deviation - 1) > 0.05:
        raise ConfigError(
            f"scale_factor must be 1 / (deviation of the latents) = {1 / deviation:.4f}, got {scale_factor}; "
            f"write it into {config}"
        )


SETUPS: Dict[Stage, Any] = {Stage.autoencoder: set_up_autoencoder, Stage.diffusion: set_up_diffusion}


def _precision(name: str) -> Any:
    # Lightning 1.x and 2.x both take "bf16"; full precision is the number 32 in both.
    return 32 if name == "full" else name
