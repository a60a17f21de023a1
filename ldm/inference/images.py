"""Pictures: between files, pixels (H,W,3) uint8 and the tensors (B,3,H,W) in [-1,1] that the first stage works on.

torch is imported by `to_tensor` alone, so that a login node can make grids and read parameters without it.
"""

from __future__ import annotations

import io
import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Sequence

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from ldm.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from torch import Tensor

Pixels = Any  # numpy array (H,W,3) uint8; numpy has no type for it on Python 3.8

PARAMETERS = "parameters"  # the text chunk that A1111 and its followers read
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286  # where those read it in other formats
TIFF_LONG, TIFF_UNDEFINED = 4, 7
UNICODE_COMMENT, ASCII_COMMENT = b"UNICODE\0", b"ASCII\0\0\0"
JPEG_EXIF_LIMIT = 65533  # bytes, as a JPEG's segment counts its length in 16 bits
LOSSLESS_QUALITY = 100  # of WebP
GRID_PADDING = 2  # black pixels around each picture of a grid


def to_pixels(image: Tensor) -> list[Pixels]:
    """image (B,3,H,W), cut to [-1,1], as B pictures. Fractions are dropped, as in the original, not rounded.

    A card makes bytes of the numbers before it hands them out: a quarter of what float32 would be.
    """
    scaled = (image.float() + 1.0).div_(2.0).clamp_(0.0, 1.0).mul_(255.0)
    return list(scaled.permute(0, 2, 3, 1).byte().contiguous().cpu().numpy())


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


def encode(pixels: Pixels, format: str, parameters: str = "", *, quality: int = 95) -> bytes:
    """A file of the format png, jpeg or webp, with `parameters` inside; `quality` 100 makes a WebP lossless.

    Raises RequestError for more parameters than a JPEG can hold, ConfigError where Pillow was built without the format.
    """
    if format == "png":
        return encode_png(pixels, parameters)
    exif = _exif(parameters) if parameters else b""
    if format == "jpeg" and len(exif) > JPEG_EXIF_LIMIT:
        raise RequestError(
            f"prompt and parameters must fit into {JPEG_EXIF_LIMIT} bytes of a JPEG, got {len(exif)}; "
            "shorten the prompt, or take format=png"
        )
    lossless = {"lossless": True} if format == "webp" and quality == LOSSLESS_QUALITY else {}
    file = io.BytesIO()
    try:
        Image.fromarray(pixels).save(file, format=format.upper(), quality=quality, exif=exif, **lossless)
    except (KeyError, OSError) as error:
        raise ConfigError(f"Pillow cannot write {format} here ({error}); take format=png") from error
    return file.getvalue()


def _exif(parameters: str) -> bytes:
    """EXIF that holds a UserComment as piexif writes it, of type UNDEFINED and in big-endian UTF-16.

    Made here, as Pillow gives the tag another type, which piexif does not read.
    """
    comment = UNICODE_COMMENT + parameters.encode("utf_16_be")
    header = struct.pack(">2sHL", b"MM", 42, 8)
    first = struct.pack(">HHHLLL", 1, EXIF_IFD, TIFF_LONG, 1, 26, 0)
    second = struct.pack(">HHHLLL", 1, USER_COMMENT, TIFF_UNDEFINED, len(comment), 44, 0)
    return b"Exif\0\0" + header + first + second + comment


def read_parameters(file: Path | BinaryIO) -> str:
    """The parameters text inside a PNG (tEXt, iTXt or zTXt), a JPEG or a WebP (EXIF), empty if it has none."""
    with Image.open(file) as image:
        return parameters_of(image)


def parameters_of(image: Image.Image) -> str:
    """As `read_parameters`, of an open picture, which is decoded."""
    image.load()  # the text of a PNG may stand behind the pixels
    text = image.info.get(PARAMETERS)
    return _user_comment(image) if text is None else str(text)


def _user_comment(image: Image.Image) -> str:
    comment = image.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT, b"")
    if isinstance(comment, str):
        return comment
    charset, text = bytes(comment[:8]), bytes(comment[8:])
    if charset == UNICODE_COMMENT:
        return text.decode("utf_16_be", "replace")
    return text.decode("ascii", "replace") if charset == ASCII_COMMENT else ""
