"""The invisible watermark of the original, by its package `invisible-watermark`, which is an extra."""

from __future__ import annotations

from typing import Callable

from ldm.errors import ConfigError
from ldm.inference.images import Pixels

CONTENT, METHOD = b"StableDiffusionV1", "dwtDct"

# A picture (H,W,3) uint8 to the same with the mark in it.
Stamp = Callable[[Pixels], Pixels]


def load_stamp() -> Stamp:
    """What marks a picture. ConfigError without the package."""
    try:
        from imwatermark import WatermarkEncoder
    except ImportError as error:
        raise ConfigError(
            f"a watermark needs the package invisible-watermark: pip install invisible-watermark ({error})"
        ) from error
    encoder = WatermarkEncoder()
    encoder.set_watermark("bytes", CONTENT)

    def stamp(pixels: Pixels) -> Pixels:
        # The package works on OpenCV's order of channels: blue, green, red.
        return encoder.encode(pixels[:, :, ::-1], METHOD)[:, :, ::-1]

    return stamp
