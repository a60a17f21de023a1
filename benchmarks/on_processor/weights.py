"""A model of random numbers, made once and kept: the same ones wherever the names are the same.

    python benchmarks/on_processor/weights.py CONFIG FOLDER SIZE ...

Writes model.safetensors, model.ckpt (4.3 GB each for SD v1) and inputs.safetensors, what the networks are given for
pictures of these sizes in px. The numbers are scaled so that every layer keeps the size of what goes through it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Dict, Sequence

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - found from any working directory, without installing
from omegaconf import OmegaConf  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import Tensor  # noqa: E402

from ldm.inference.runtime import without_init  # noqa: E402
from ldm.util import instantiate_from_config  # noqa: E402
from tests.parity.filling import filled, tensor  # noqa: E402

MADE = "made.json"  # written last: what the files of the folder were made of
GLOBAL_STEP = 470000
TIMESTEP = 500
SPARE = 1.1  # of the disk that both files take


def make(config: Path, folder: Path, sizes: Sequence[int]) -> bool:
    """The three files, unless the folder holds those of this config and these sizes; whether they had to be made.

    OSError where the disk has no room for them.
    """
    digest = hashlib.sha256(config.read_bytes() + Path(__file__).read_bytes()).hexdigest()
    recipe = {"config": digest, "sizes": list(sizes)}
    made = folder / MADE
    if made.exists() and json.loads(made.read_text(encoding="utf-8")) == recipe:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    for name in (MADE, "model.safetensors", "model.ckpt"):
        (folder / name).unlink(missing_ok=True)
    state = random_state(config)
    check_room(folder, int(2 * SPARE * sum(value.numel() * value.element_size() for value in state.values())))
    save_file(state, str(folder / "model.safetensors"))
    torch.save({"state_dict": state, "global_step": GLOBAL_STEP}, folder / "model.ckpt")
    save_file(inputs(config, sizes), str(folder / "inputs.safetensors"))
    made.write_text(json.dumps(recipe), encoding="utf-8")
    return True


def random_state(config: Path) -> Dict[str, Tensor]:
    """Every tensor of the config's model by its name: random where it is trained, the config's own where it is not."""
    with without_init():
        model = instantiate_from_config(OmegaConf.load(config).model)
    return {name: value.contiguous() for name, value in filled(model.state_dict()).items()}


def inputs(config: Path, sizes: Sequence[int]) -> Dict[str, Tensor]:
    """What the networks are given: latents of both guidance branches, one to decode, one to start from, and a text."""
    node = OmegaConf.load(config).model.params
    dimensions = node.first_stage_config.params.ddconfig
    factor = 2 ** (len(dimensions.ch_mult) - 1)
    found = {
        "text": tensor("text", 2, 77, int(node.unet_config.params.context_dim)),
        "timestep": torch.full((2,), TIMESTEP),
    }
    for size in sizes:
        for name, batch in (("noisy", 2), ("latent", 1), ("start", 1)):
            found[f"{name}-{size}"] = tensor(name, batch, int(node.channels), size // factor, size // factor)
    return found


def check_room(folder: Path, needed: int) -> None:
    """OSError where a folder's disk has fewer bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"{folder} must have {needed:,} bytes free, has {free:,}; try --folder")


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]), [int(size) for size in sys.argv[3:]])
