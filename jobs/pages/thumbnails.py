"""Small copies of pictures that stand inside a page, as data: URIs."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Tuple

from ldm.errors import RunError

if TYPE_CHECKING:
    from PIL.Image import Image

# Longest side in px by how many pictures there are, so that a page stays under about 20 MB.
SIDES = ((120, 256), (600, 192))
LEAST_SIDE = 144
PIXEL_ART = 96  # px: what is not larger is kept exactly, and shown with its pixels
QUALITY = 80


@dataclass(frozen=True)
class Thumbnail:
    """`width` and `height` in px are those of the small copy, `parameters` is the text inside the picture's file."""

    uri: str
    width: int
    height: int
    parameters: str


def side_for(pictures: int) -> int:
    """The longest side of each of so many small copies."""
    return next((side for most, side in SIDES if pictures <= most), LEAST_SIDE)


def thumbnail(data: bytes, side: int) -> Thumbnail:
    """The small copy of a picture's file as a page takes it; RunError if it is no picture that can be read."""
    from PIL import features

    image, parameters = _read(data, side)
    exact = max(image.size) <= PIXEL_ART
    file = io.BytesIO()
    if features.check("webp"):
        image.save(file, "WEBP", quality=QUALITY, lossless=exact)
    else:
        image.save(file, "PNG" if exact else "JPEG", quality=QUALITY)
    return Thumbnail(_uri(file.getvalue()), *image.size, parameters)


def small_copy(data: bytes, side: int) -> Image:
    """A picture's file as an RGB picture with no side over `side` px; RunError if it is no picture that can be read."""
    return _read(data, side)[0]


def _read(data: bytes, side: int) -> Tuple[Image, str]:
    """The small copy, and the parameters text inside the file."""
    from PIL import Image, ImageOps

    from ldm.inference.images import parameters_of

    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.draft("RGB", (side, side))  # a JPEG is decoded no larger than it has to be
            image = ImageOps.exif_transpose(opened).convert("RGB")
            parameters = parameters_of(opened)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RunError(f"it is no picture that can be read: {error}") from error
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image, parameters


def _uri(data: bytes) -> str:
    kind = "webp" if data[:4] == b"RIFF" else "png" if data[:4] == b"\x89PNG" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
