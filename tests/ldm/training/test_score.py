"""The measure that the small model is accepted by: right on real pictures however worn, at chance on shuffled ones."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from ldm.training import emoji, score
from ldm.training.emoji import COLOUR_NAMES, COLOURS, EmojiPictures, Placement

COUNT = 120


@pytest.fixture(scope="module")
def examples(sprites):
    pictures = EmojiPictures(sprites, seed=5)
    return [pictures.example(index) for index in range(COUNT)]


def blurred(pixels, radius):
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def as_jpeg(pixels, quality):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


def noisy(pixels, deviation):
    noise = np.random.default_rng(pixels.sum()).normal(0, deviation, pixels.shape)
    return np.clip(np.round(pixels + noise), 0, 255).astype(np.uint8)


def stretched(pixels, factor):
    side = round(len(pixels) * factor)
    return np.asarray(Image.fromarray(pixels).resize((len(pixels), side), Image.Resampling.BICUBIC))


def shares(judge, examples, pictures):
    verdicts = [judge.verdict(pixels) for pixels in pictures]
    objects = np.mean([v.shows(e.object_index) for v, e in zip(verdicts, examples)])
    colours = np.mean([v.colour_index == e.colour_index for v, e in zip(verdicts, examples)])
    return float(objects), float(colours)


def test_every_clean_picture_is_told_right(judge, examples):
    assert shares(judge, examples, [e.pixels for e in examples]) == (1.0, 1.0)


# Least share of objects that must be told right. Blur of 3 px in a picture of 64 leaves little but coloured patches.
@pytest.mark.parametrize(
    ("wear", "least"),
    [
        (lambda pixels: blurred(pixels, 1), 1.0),
        (lambda pixels: blurred(pixels, 2), 0.97),
        (lambda pixels: blurred(pixels, 3), 0.93),
        (lambda pixels: as_jpeg(pixels, 30), 0.97),
        (lambda pixels: noisy(pixels, 8), 0.97),
        (lambda pixels: stretched(pixels, 1.1), 0.97),
        (lambda pixels: noisy(as_jpeg(blurred(pixels, 1), 50), 4), 0.97),
    ],
    ids=["blur 1", "blur 2", "blur 3", "jpeg", "noise", "stretched", "all a little"],
)
def test_a_worn_picture_is_still_told_right(judge, examples, wear, least):
    objects, colours = shares(judge, examples, [wear(e.pixels) for e in examples])
    assert objects >= least
    assert colours >= 0.99


@pytest.mark.parametrize("size_px", [48, 128])
def test_pictures_of_another_size_are_told_as_well(judge, sprites, size_px):
    pictures = EmojiPictures(sprites, size_px=size_px, seed=6)
    some = [pictures.example(index) for index in range(40)]
    objects, colours = shares(judge, some, [e.pixels for e in some])
    assert objects >= 0.97
    assert colours == 1.0


def test_pictures_of_other_prompts_are_right_no_more_than_by_chance(judge, examples):
    shuffled = [e.pixels for e in examples[1:] + examples[:1]]
    objects, colours = shares(judge, examples, shuffled)
    assert objects < 0.04, "chance is 1 in 225"
    assert colours < 0.25, "chance is 1 in 12"


def test_an_object_torn_into_tiles_is_no_longer_told(judge, examples):
    def torn(pixels):
        tiles = pixels.reshape(4, 16, 4, 16, 3).swapaxes(1, 2).reshape(16, 16, 16, 3)
        mixed = tiles[np.random.default_rng(0).permutation(16)]
        return mixed.reshape(4, 4, 16, 16, 3).swapaxes(1, 2).reshape(64, 64, 3)

    objects, _ = shares(judge, examples, [torn(e.pixels) for e in examples])
    assert objects < 0.25, "its colours alone must not be enough"


def test_a_patch_of_the_objects_mean_colour_is_not_enough(judge, examples):
    def patch(example):
        pixels = example.pixels.copy()
        box = score.find_object(pixels, np.float32(COLOURS[COLOUR_NAMES[example.colour_index]]))
        assert box is not None
        left, top, right, bottom = box
        pixels[top:bottom, left:right] = pixels[top:bottom, left:right].mean(axis=(0, 1))
        return pixels

    objects, _ = shares(judge, examples, [patch(e) for e in examples])
    assert objects < 0.15


def test_plain_ground_shows_no_object(judge):
    pixels = np.full((64, 64, 3), COLOURS["green"], dtype=np.uint8)
    verdict = judge.verdict(pixels)
    assert COLOUR_NAMES[verdict.colour_index] == "green"
    assert verdict.ranking == ()
    assert not verdict.shows(0, within=5)


def test_noise_alone_is_judged_without_failing(judge):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert len(judge.verdict(pixels).ranking) == len(judge.sprites)


@pytest.mark.parametrize("colour", COLOUR_NAMES)
def test_the_ground_of_each_colour_is_found_under_a_shade(colour):
    shade = np.clip(np.float32(COLOURS[colour]) * 0.95 + 5, 0, 255).astype(np.uint8)
    index, ground = score.find_ground(np.broadcast_to(shade, (64, 64, 3)))
    assert COLOUR_NAMES[index] == colour
    assert (ground == shade).all()


def test_an_object_in_a_corner_does_not_outvote_the_ground():
    pixels = np.full((64, 64, 3), COLOURS["blue"], dtype=np.uint8)
    pixels[:61, :61] = COLOURS["red"]
    index, ground = score.find_ground(pixels)
    assert COLOUR_NAMES[index] == "blue"
    assert tuple(ground) == COLOURS["blue"]


def test_the_box_holds_the_object_and_not_a_speck():
    pixels = np.full((64, 64, 3), COLOURS["blue"], dtype=np.uint8)
    pixels[20:50, 10:30] = COLOURS["red"]
    pixels[2, 60] = 255
    box = score.find_object(pixels, np.float32(COLOURS["blue"]))
    # Means over 3x3 pixels widen the object by one pixel at most.
    np.testing.assert_allclose(box, (10, 20, 30, 50), atol=1)


def test_a_square_keeps_the_centre_and_the_longer_edge():
    assert score.square_around((10, 20, 30, 60)) == (0, 20, 40, 60)
    assert score.square_around((10, 20, 30, 60), zoom=0.5) == (10, 30, 30, 50)
    assert score.square_around((10, 20, 30, 60), shift=(0.25, 0)) == (10, 20, 50, 60)


def test_what_lies_beyond_the_picture_is_ground():
    ground = np.float32(COLOURS["blue"])
    pixels = np.full((64, 64, 3), COLOURS["blue"], dtype=np.uint8)
    pixels[:, 32:] = COLOURS["red"]
    (seen,) = score.look(pixels, ground, [(0.0, 0.0, 128.0, 128.0)]).reshape(1, score.GRID_PX, score.GRID_PX, 3)
    assert np.linalg.norm(seen) == pytest.approx(1, abs=1e-5)
    assert seen[:8, 4:8].any(axis=-1).all()
    assert not seen[8:].any()
    assert not seen[:, 8:].any()


def test_a_guess_counts_within_its_rank():
    verdict = score.Verdict(0, (7, 3, 5))
    assert verdict.shows(7)
    assert not verdict.shows(3)
    assert verdict.shows(3, within=2)


def test_placement_does_not_matter(judge, sprites):
    lion = emoji.OBJECT_NAMES.index("lion")
    for placement in (Placement(0.6, 0, 0), Placement(0.95, 1, 1), Placement(0.75, 0.3, 0.9)):
        pixels = emoji.draw(sprites[lion], COLOURS["blue"], 64, placement)
        assert judge.verdict(pixels).shows(lion)
