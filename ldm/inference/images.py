"""Pictures: between files, pixels (H,W,3) uint8 and the tensors (B,3,H,W) in [-1,1] that the first stage works on.

torch is imported by `to_tensor` alone, so that a login node can make grids and read parameters without it.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from ldm.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor

Pixels = Any  # numpy array (H,W,3) uint8; numpy has no type for it on Python 3.8

PARAMETERS = "parameters"  # the text chunk that A1111 and its followers read
GRID_PADDING = 2  # black pixels around each picture of a grid


def to_pixels(image: Tensor) -> list[Pixels]:
    """image (B,3,H,W), cut to [-1,1], as B pictures. Fractions are dropped, as in the original, not rounded."""
    scaled = 255.0 * ((image.float() + 1.0) / 2.0).clamp(0.0, 1.0)
    return list(scaled.permute(0, 2, 3, 1).cpu().numpy().astype(np.uint8))


def to_tensor(pixels: Pixels) -> Tensor:
    """A picture as (1,3,H,W) float32 in [-1,1]."""
    import torch

    return torch.from_numpy(pixels.astype(np.float32) / 255.0).permute(2, 0, 1)[None] * 2.0 - 1.0


def read_picture(path: Path) -> Pixels:
    """The picture of a file as RGB, upright as a viewer shows it (EXIF orientation; the original ignores it)."""
    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except FileNotFoundError as error:
        raise RequestError(f"init image not found: {path}") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RequestError(f"init image must be a picture that Pillow can read, {path} is not: {error}") from error


def resize(pixels: Pixels, *, height: int, width: int) -> Pixels:
    """The picture at another size, by Lanczos as in the original; the same picture if it has that size."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def make_grid(pictures: Sequence[Pixels], *, per_row: int) -> Pixels:
    """The pictures side by side, `per_row` at most, on black with 2 pixels around each; one alone is returned as it is.

    The layout is that of torchvision's `make_grid`. Smaller pictures stand at the top left of a cell of the largest.
    """
    if len(pictures) == 1:
        return pictures[0]
    columns = min(per_row, len(pictures))
    height = max(picture.shape[0] for picture in pictures) + GRID_PADDING
    width = max(picture.shape[1] for picture in pictures) + GRID_PADDING
    rows = math.ceil(len(pictures) / columns)
    grid = np.zeros((rows * height + GRID_PADDING, columns * width + GRID_PADDING, 3), dtype=np.uint8)
    for i, picture in enumerate(pictures):
        top = i // columns * height + GRID_PADDING
        left = i % columns * width + GRID_PADDING
        grid[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return grid


def encode_png(pixels: Pixels, parameters: str = "") -> bytes:
    """A PNG file; `parameters` is kept inside, as UTF-8 where Latin-1 does not suffice (iTXt instead of tEXt)."""
    chunks = PngImagePlugin.PngInfo()
    if parameters:
        chunks.add_text(PARAMETERS, parameters)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", pnginfo=chunks)
    return file.getvalue()


def read_parameters(path: Path) -> str:
    """The parameters text inside a PNG (tEXt, iTXt or zTXt), empty if it has none."""
    with Image.open(path) as image:
        image.load()  # the text may stand behind the pixels
        return str(image.info.get(PARAMETERS, ""))
