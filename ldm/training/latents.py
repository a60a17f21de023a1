"""Pictures turned into latents once, so that training the diffusion never runs the first stage."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Dict, List

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldm.models.autoencoder import AutoencoderKL

log = logging.getLogger(__name__)


class LatentDataset(Dataset):  # type: ignore[type-arg]  # not subscriptable at run time before torch 1.13
    """Latents (N,C,h,w), unscaled, with their captions."""

    def __init__(self, latents: Tensor, captions: List[str]) -> None:
        self.latents = latents
        self.captions = captions

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> Dict[str, Any]:
        return {"latent": self.latents[index].float(), "caption": self.captions[index]}

    @property
    def deviation(self) -> float:
        """The standard deviation over all numbers; a model's `scale_factor` is its inverse."""
        return float(self.latents.float().std())


def encode_once(first_stage: AutoencoderKL, pictures: Any, path: Path) -> LatentDataset:
    """The latents of a picture data set, from `path` if a run that is resumed has left them there."""
    if path.exists():
        kept = torch.load(path, map_location="cpu")
        if len(kept["captions"]) == len(pictures):
            log.info("%d latents from %s", len(pictures), path)
            return LatentDataset(kept["latents"], kept["captions"])
    encoded = encode_pictures(first_stage, pictures)
    torch.save({"latents": encoded.latents, "captions": encoded.captions}, path)
    return encoded


@torch.no_grad()
def encode_pictures(first_stage: AutoencoderKL, pictures: Any, batch_size: int = 64) -> LatentDataset:
    """The posterior means of a picture data set, kept in half precision. bfloat16 products where the CPU has them."""
    latents: List[Tensor] = []
    captions: List[str] = []
    first_stage.eval()
    for count, batch in enumerate(DataLoader(pictures, batch_size)):
        with torch.autocast(batch["image"].device.type, torch.bfloat16):
            latents.append(first_stage.encode(batch["image"]).mode().half())
        captions += batch["caption"]
        if count % 100 == 0:
            log.info("encoded %d of %d pictures", len(captions), len(pictures))
    return LatentDataset(torch.cat(latents), captions)
