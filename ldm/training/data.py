"""Emoji pictures as torch data, drawn while they are needed; every index gives the same picture on every machine."""

from __future__ import annotations

from typing import Any, Dict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ldm.training.emoji import EmojiPictures, load_sprites


class EmojiDataset(Dataset):  # type: ignore[type-arg]  # not subscriptable at run time before torch 1.13
    """`length` examples `{"image": (3,H,W) in [-1,1], "caption": str}`, from index `first` on."""

    def __init__(self, length: int, first: int = 0, size_px: int = 64, seed: int = 0) -> None:
        self.length = length
        self.first = first
        self.pictures = EmojiPictures(load_sprites(), size_px=size_px, seed=seed)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Dict[str, Any]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        example = self.pictures.example(self.first + index)
        return {"image": to_image(example.pixels), "caption": example.caption}


def to_image(pixels: np.ndarray) -> Tensor:
    """pixels (H,W,3) uint8 -> image (3,H,W) float32 in [-1,1]."""
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1.0
