"""A small copy keeps what can be seen: the shape, the way up, and every pixel of a picture that is small already."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from jobs.pages.thumbnails import LEAST_SIDE, side_for, small_copy, thumbnail
from ldm.errors import RunError
from ldm.inference.images import encode


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_a_large_picture_is_made_smaller_and_keeps_its_parameters(format):
    small = thumbnail(encode(noise(200, 400), format, "a cat\nSteps: 3"), 100)
    assert (small.width, small.height, small.parameters) == (100, 50, "a cat\nSteps: 3")
    with opened(small.uri) as image:
        assert image.size == (100, 50)


def test_a_picture_that_is_small_already_keeps_every_pixel():
    pixels = noise(64, 64)
    with opened(thumbnail(encode(pixels, "png"), 256).uri) as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), pixels)


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", encode(noise(64, 64), "png")[:-400]])
def test_what_is_no_picture_is_an_error(data):
    with pytest.raises(RunError, match="it is no picture that can be read"):
        small_copy(data, 64)


def test_many_pictures_get_less_room_each():
    sides = [side_for(count) for count in (1, 120, 121, 600, 601, 10**6)]
    assert sides == [256, 256, 192, 192, LEAST_SIDE, LEAST_SIDE]
