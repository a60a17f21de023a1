"""Pixels, tensors and files say the same picture; grids are laid out as torchvision lays them."""

from __future__ import annotations

import io
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from ldm.errors import ConfigError, RequestError
from ldm.inference.images import (
    encode,
    encode_png,
    make_grid,
    read_parameters,
    read_picture,
    resize,
    to_pixels,
    to_tensor,
)


def picture(height=8, width=12, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_fractions_are_dropped_as_in_the_original():
    values = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 0.999, 1.0, 7.0])
    image = values.view(1, 1, 1, -1).repeat(1, 3, 1, 1)
    assert to_pixels(image)[0][0, :, 0].tolist() == [0, 0, 63, 127, 191, 254, 255, 255]


def test_a_batch_keeps_its_order_and_channels():
    batch = torch.cat([to_tensor(picture(seed=1)), to_tensor(picture(seed=2))])
    assert batch.shape == (2, 3, 8, 12)
    for pixels, seed in zip(to_pixels(batch), (1, 2)):
        # Dropping fractions of x / 255 * 255 in float32 may lose one level.
        assert np.abs(pixels.astype(int) - picture(seed=seed)).max() <= 1


def test_half_precision_is_widened_before_it_is_scaled():
    image = torch.linspace(-1, 1, 256).view(1, 1, 1, -1).repeat(1, 3, 1, 1)
    assert np.array_equal(to_pixels(image.bfloat16())[0], to_pixels(image.bfloat16().float())[0])


def test_a_picture_lies_in_memory_as_a_file_has_it():
    image = torch.randn(2, 3, 16, 8, generator=torch.Generator().manual_seed(0))
    for order in (torch.contiguous_format, torch.channels_last):
        for pixels, each in zip(to_pixels(image.contiguous(memory_format=order)), image):
            assert pixels.flags.c_contiguous
            scaled = (255.0 * ((each.clamp(-1, 1) + 1.0) / 2.0)).permute(1, 2, 0).numpy()
            assert np.array_equal(pixels, scaled.astype(np.uint8))


def test_tensors_span_minus_one_to_one():
    pixels = np.array([[[0, 255, 51]]], dtype=np.uint8)
    assert to_tensor(pixels).flatten().tolist() == pytest.approx([-1.0, 1.0, -0.6])
    assert to_tensor(pixels).dtype is torch.float32


@pytest.mark.slow  # importing torchvision
@pytest.mark.parametrize(("count", "per_row"), [(1, 3), (2, 3), (3, 3), (4, 3), (6, 2), (5, 1)])
def test_a_grid_is_that_of_torchvision(count, per_row):
    torchvision = pytest.importorskip("torchvision")
    pictures = [picture(seed=i) for i in range(count)]
    stack = torch.stack([torch.from_numpy(p).permute(2, 0, 1) for p in pictures])
    expected = torchvision.utils.make_grid(stack, nrow=per_row).permute(1, 2, 0).numpy()
    assert np.array_equal(make_grid(pictures, per_row=per_row), expected)


def test_a_grid_has_black_lines_of_two_pixels():
    white = np.full((4, 6, 3), 255, dtype=np.uint8)
    grid = make_grid([white] * 3, per_row=2)
    assert grid.shape == (2 * 6 + 2, 2 * 8 + 2, 3)
    assert grid[2:6, 2:8].min() == 255
    assert grid[6:8].max() == 0
    assert grid[8:12, 10:].max() == 0, "the place of the missing fourth stays black"


def test_pictures_of_different_sizes_share_a_grid():
    grid = make_grid([picture(4, 6), picture(8, 4)], per_row=2)
    assert grid.shape == (12, 18, 3)
    assert np.array_equal(grid[2:6, 2:8], picture(4, 6))
    assert np.array_equal(grid[2:10, 10:14], picture(8, 4))


# A busy machine draws examples slowly, which says nothing about the code.
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(st.characters(blacklist_categories=("Cs",)), min_size=1))
def test_any_parameters_come_back_from_a_png(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any-parameters.png"
    path.write_bytes(encode_png(picture(), text))
    assert read_parameters(path) == text
    assert np.array_equal(read_picture(path), picture())


def test_latin_text_is_a_plain_chunk_and_chinese_an_international_one():
    assert b"tEXtparameters\0cat" in encode_png(picture(), "cat")
    assert b"iTXtparameters" in encode_png(picture(), "一只猫")
    assert b"parameters" not in encode_png(picture())


def test_compressed_text_is_read_too(tmp_path):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", "cat " * 100, zip=True)
    Image.fromarray(picture()).save(tmp_path / "x.png", pnginfo=chunks)
    assert b"zTXt" in (tmp_path / "x.png").read_bytes()
    assert read_parameters(tmp_path / "x.png") == "cat " * 100


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(st.characters(blacklist_categories=("Cs",)), min_size=1))
def test_any_parameters_come_back_from_every_format(format, text):
    assert read_parameters(io.BytesIO(encode(picture(), format, text))) == text


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_the_reader_of_the_web_ui_finds_the_parameters(format):
    piexif_helper = pytest.importorskip("piexif.helper")
    import piexif

    text = "a cat, 一只猫, \N{LION FACE}\nSteps: 20, Seed: 1"
    with Image.open(io.BytesIO(encode(picture(), format, text))) as image:
        assert image.format == format.upper()
        comment = piexif.load(image.info["exif"])["Exif"][piexif.ExifIFD.UserComment]
    assert comment == b"UNICODE\0" + text.encode("utf_16_be")
    assert piexif_helper.UserComment.load(comment) == text


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_what_others_wrote_into_a_comment_is_read(tmp_path, format):
    for comment, text in [
        (b"ASCII\0\0\0cat", "cat"),
        (b"JIS\0\0\0\0\0cat", ""),
        (b"", ""),
        (b"UNICODE\0\xd8", "\ufffd"),
    ]:
        exif = Image.Exif()
        exif[0x8769] = {0x9286: comment}
        Image.fromarray(picture()).save(tmp_path / "x", format=format.upper(), exif=exif.tobytes())
        assert read_parameters(tmp_path / "x") == text
    assert read_parameters(io.BytesIO(encode(picture(), format))) == ""


def test_quality_100_is_lossless_in_a_webp_and_less_is_smaller():
    pixels = picture(64, 64)
    whole, good, poor = (encode(pixels, "webp", quality=quality) for quality in (100, 95, 20))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(whole))), pixels)
    assert len(whole) > len(good) > len(poor)
    assert len(encode(pixels, "jpeg", quality=95)) > len(encode(pixels, "jpeg", quality=20))


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_equal_pictures_give_equal_files(format):
    assert encode(picture(), format, "cat", quality=90) == encode(picture(), format, "cat", quality=90)


def test_more_parameters_than_a_jpeg_can_hold_are_refused_and_other_formats_take_them():
    text = "x" * 40_000
    with pytest.raises(RequestError, match=r"must fit into 65533 bytes of a JPEG, got 80\d\d\d; .* take format=png"):
        encode(picture(), "jpeg", text)
    assert read_parameters(io.BytesIO(encode(picture(), "webp", text))) == text


def test_a_pillow_without_a_format_says_so(monkeypatch):
    monkeypatch.delitem(Image.SAVE, "WEBP")
    with pytest.raises(ConfigError, match=r"Pillow cannot write webp here .*; take format=png"):
        encode(picture(), "webp")


def test_text_behind_the_pixels_is_read_too(tmp_path):
    data = encode_png(picture())
    body = b"tEXtparameters\0late"
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    (tmp_path / "x.png").write_bytes(data[:-12] + chunk + data[-12:])
    assert read_parameters(tmp_path / "x.png") == "late"


def test_a_phone_picture_is_read_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(picture(8, 12)).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(read_picture(tmp_path / "x.png"), np.rot90(picture(8, 12), -1))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_kind_of_picture_is_read_as_rgb(tmp_path, mode):
    path = tmp_path / ("x.tiff" if mode == "CMYK" else "x.png")
    Image.fromarray(picture()).convert(mode).save(path)
    assert read_picture(path).shape == (8, 12, 3)


def test_what_is_no_picture_is_said(tmp_path):
    with pytest.raises(RequestError, match=r"init image not found: .*none\.png"):
        read_picture(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "cut.png").write_bytes(encode_png(picture(64, 64))[:1000])
    for name in ["text.png", "cut.png", "."]:
        with pytest.raises(RequestError, match="init image must be a picture that Pillow can read"):
            read_picture(tmp_path / name)


def test_resizing_is_lanczos_and_nothing_at_the_same_size():
    assert np.array_equal(resize(picture(), height=8, width=12), picture())
    expected = Image.open(io.BytesIO(encode_png(picture()))).resize((6, 4), Image.Resampling.LANCZOS)
    assert np.array_equal(resize(picture(), height=4, width=6), np.asarray(expected))


def test_pictures_are_read_without_torch():
    program = "import sys, ldm.inference.images; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
