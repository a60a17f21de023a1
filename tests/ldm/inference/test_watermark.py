"""The watermark can be read back by the package that made it, and cannot be seen."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from PIL import Image

from ldm.errors import ConfigError
from ldm.inference.watermark import CONTENT, METHOD, load_stamp

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("imwatermark") is None, reason="the extra `watermark` is not installed"
)


def bits(text):
    return np.unpackbits(np.frombuffer(text, dtype=np.uint8))


@needs_package
def test_the_mark_is_read_back_and_changes_the_picture_little():
    from imwatermark import WatermarkDecoder

    draw = np.random.default_rng(0)
    coarse = np.asarray(Image.fromarray(draw.integers(60, 190, (16, 16, 3), dtype=np.uint8)).resize((512, 512)))
    picture = (coarse + draw.normal(0, 30, coarse.shape)).clip(0, 255).astype(np.uint8)
    stamped = load_stamp()(picture)
    assert stamped.shape == picture.shape
    assert stamped.dtype == np.uint8
    assert np.abs(stamped.astype(int) - picture).mean() < 10
    read = WatermarkDecoder("bytes", 8 * len(CONTENT)).decode(np.ascontiguousarray(stamped[:, :, ::-1]), METHOD)
    # The method loses bits to the rounding of colours, the more the smoother the picture; chance would be half.
    assert (bits(read) == bits(CONTENT)).mean() > 0.95


@pytest.mark.skipif(importlib.util.find_spec("imwatermark") is not None, reason="the extra `watermark` is installed")
def test_without_the_package_the_error_says_what_to_install():
    with pytest.raises(ConfigError, match="pip install invisible-watermark"):
        load_stamp()
