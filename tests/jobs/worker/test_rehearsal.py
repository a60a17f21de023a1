"""A rehearsal makes true PNG files that follow from the request, without any package for pictures."""

from __future__ import annotations

import dataclasses
import io

import pytest
from PIL import Image

from jobs.worker.rehearsal import generate
from ldm.errors import RequestError
from ldm.inference.digests import sha256_of
from ldm.inference.images import read_parameters
from ldm.inference.infotext import parse_infotext
from ldm.inference.spec import GenerationRequest, InitImage, SamplerConfig

REQUEST = GenerationRequest(
    prompt="a lion, \N{LION FACE}\n模糊", negative_prompt="blurry", height=16, width=24, sampler=SamplerConfig(steps=1)
)


def test_a_card_is_a_picture_of_the_asked_size_that_says_what_it_is():
    [picture] = generate([REQUEST])
    with Image.open(io.BytesIO(picture.encode())) as image:
        image.load()
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (24, 16))
        assert image.getpixel((0, 0)) == image.getpixel((23, 15)) == tuple(bytes.fromhex(REQUEST.request_id[:6]))
        text = parse_infotext(image.info["parameters"])
    assert (text.prompt, text.negative_prompt) == (REQUEST.prompt, "blurry")
    assert (text.parameters["Seed"], text.parameters["Size"], text.parameters["Model"]) == ("42", "24x16", "rehearsal")


def test_equal_requests_give_equal_files_and_others_do_not():
    one, again, other = generate([REQUEST, REQUEST, dataclasses.replace(REQUEST, seed=1)])
    assert one.encode() == again.encode()
    assert one.encode() != other.encode()


def test_a_rehearsal_takes_a_millisecond_a_step():
    [picture] = generate([dataclasses.replace(REQUEST, sampler=SamplerConfig(steps=20))])
    assert picture.seconds == pytest.approx(0.02)


def test_an_init_image_must_be_the_planned_one(tmp_path):
    path = tmp_path / "start.png"
    path.write_bytes(b"planned")
    init = InitImage(str(path), sha256_of(path), strength=1.0)
    assert generate([dataclasses.replace(REQUEST, init=init)])
    path.write_bytes(b"changed")
    with pytest.raises(RequestError, match="is not the one that was planned"):
        generate([dataclasses.replace(REQUEST, init=init)])
    path.unlink()
    with pytest.raises(RequestError, match="cannot read the init image"):
        generate([dataclasses.replace(REQUEST, init=init)])


@pytest.mark.parametrize(("format", "levels"), [("jpeg", 3), ("webp", 3), ("png", 0)])
def test_a_card_comes_in_the_format_of_the_job(format, levels):
    """JPEG and WebP turn RGB into YCbCr of eight bits, which costs a few levels."""
    [picture] = generate([REQUEST], format=format, quality=90)
    data = io.BytesIO(picture.encode())
    assert parse_infotext(read_parameters(data)).prompt == REQUEST.prompt
    with Image.open(data) as image:
        assert (image.format, image.size) == (format.upper(), (24, 16))
        seen = image.convert("RGB").getpixel((12, 8))
    assert max(abs(a - b) for a, b in zip(seen, bytes.fromhex(REQUEST.request_id[:6]))) <= levels
