"""The pictures that the small model learns from."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from PIL import Image

from ldm.errors import ConfigError
from ldm.training import emoji
from ldm.training.emoji import COLOUR_NAMES, COLOURS, EmojiPictures, Placement

BLUE = COLOURS["blue"]


def square(colour=(255, 0, 0, 255), size=(128, 128)):
    return emoji.Sprite("x", "square", Image.new("RGBA", size, colour).convert("RGBa"))


def test_there_are_enough_objects_and_colours():
    assert len(set(emoji.CHARACTERS)) == len(emoji.CHARACTERS) >= 200
    assert len(set(COLOURS.values())) == len(COLOURS) >= 10


def test_no_two_objects_have_one_name():
    assert len(set(emoji.OBJECT_NAMES)) == len(emoji.CHARACTERS)


def test_names_are_known_to_the_oldest_python_that_we_support():
    assert all(unicodedata.ucd_3_2_0.name(c, None) or unicodedata.name(c) for c in emoji.CHARACTERS)
    assert max(map(ord, emoji.CHARACTERS)) <= 0x1FA95, "later characters are not in Unicode 12.1, that is Python 3.8"


def test_every_word_of_a_name_is_plain():
    assert all(name.replace(" ", "").replace("-", "").isalpha() and name.islower() for name in emoji.OBJECT_NAMES)


@pytest.mark.parametrize(
    ("character", "name"),
    [
        ("🦁", "lion"),
        ("❤", "heart"),
        ("🍎", "apple"),
        ("⛄", "snowman"),
        ("⭐", "star"),
        ("♠", "spade"),
        ("🌍", "earth globe"),
        ("🏀", "basketball"),
        ("😀", "grinning face"),
        ("😎", "smiling face with sunglasses"),
    ],
)
def test_names_leave_out_words_of_print_and_accessories(character, name):
    assert emoji.object_name(character) == name


@pytest.mark.parametrize(
    ("name", "colour", "text"),
    [
        ("lion", "blue", "a lion on a blue background"),
        ("owl", "orange", "an owl on an orange background"),
        ("unicorn", "red", "a unicorn on a red background"),
        ("european castle", "pink", "a european castle on a pink background"),
        ("umbrella", "cyan", "an umbrella on a cyan background"),
        ("hourglass", "gray", "an hourglass on a gray background"),
        ("house building", "gray", "a house building on a gray background"),
        ("grapes", "black", "grapes on a black background"),
    ],
)
def test_captions_are_english(name, colour, text):
    assert emoji.caption(name, colour) == text


def test_every_name_without_an_article_is_an_object():
    assert set(emoji.OBJECT_NAMES) >= emoji._WITHOUT_ARTICLE


def test_no_caption_can_be_had_in_two_ways():
    captions = {emoji.caption(name, colour) for name in emoji.OBJECT_NAMES for colour in COLOUR_NAMES}
    assert len(captions) == len(emoji.CHARACTERS) * len(COLOURS)


def test_colours_are_well_apart():
    table = np.array(list(COLOURS.values()), dtype=float)
    distance = np.linalg.norm(table[:, None] - table, axis=-1) + 1000 * np.eye(len(table))
    assert distance.min() > 90, "of 441: decoder noise of 20 a channel must not turn one colour into another"


def test_a_fifth_of_all_pairs_is_held_out_and_each_object_and_colour_is_still_seen():
    held = np.zeros((len(emoji.CHARACTERS), len(COLOURS)), dtype=bool)
    for pair in emoji.pairs(held_out=True):
        held[pair] = True
    assert held.mean() == pytest.approx(0.2, abs=0.001)
    assert set(held.sum(axis=1)) == {2, 3}
    assert set(held.sum(axis=0)) == {len(emoji.CHARACTERS) // 5}
    assert sorted(emoji.pairs(held_out=True) + emoji.pairs(held_out=False)) == sorted(np.ndindex(*held.shape))


def test_training_never_shows_a_held_out_pair_and_shows_every_object(sprites):
    pictures = EmojiPictures(sprites, size_px=16)
    seen = [(e.object_index, e.colour_index) for e in map(pictures.example, range(2000))]
    assert not set(seen) & set(emoji.pairs(held_out=True))
    assert {pair[0] for pair in seen} == set(range(len(sprites)))
    assert len(set(seen)) > 1200, "2000 draws from 2160 pairs hit 1305 in the mean"


def test_every_object_is_drawn_in_full(sprites):
    assert [sprite.character for sprite in sprites] == list(emoji.CHARACTERS)
    for sprite in sprites:
        alpha = np.asarray(sprite.image)[..., 3]
        assert max(sprite.image.size) > 90, sprite.name
        assert alpha[0].any(), f"{sprite.name} is cropped to what is visible"
        assert alpha[-1].any(), f"{sprite.name} is cropped to what is visible"


def test_premultiplied_colours_never_exceed_alpha(sprites):
    for sprite in sprites:
        pixels = np.asarray(sprite.image)
        assert (pixels[..., :3] <= pixels[..., 3:]).all(), sprite.name


@pytest.mark.parametrize("size_px", [32, 64, 128])
def test_a_picture_has_the_asked_size_and_a_plain_ground(sprites, size_px):
    pixels = emoji.draw(sprites[0], BLUE, size_px, Placement(scale=0.6, left=0.0, top=0.0))
    assert pixels.shape == (size_px, size_px, 3)
    assert pixels.dtype == np.uint8
    free = size_px - round(0.6 * size_px)
    assert (pixels[-free:] == BLUE).all()
    assert (pixels[:, -free:] == BLUE).all()


@pytest.mark.parametrize(("left", "top"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5)])
def test_an_object_stands_where_its_placement_says(left, top):
    pixels = emoji.draw(square(), BLUE, 64, Placement(scale=0.75, left=left, top=top))
    expected = np.empty((64, 64, 3), dtype=np.uint8)
    expected[:] = BLUE
    x, y = int(16 * left), int(16 * top)
    expected[y : y + 48, x : x + 48] = (255, 0, 0)
    assert (pixels == expected).all()


def test_the_longer_edge_counts_and_the_shape_is_kept():
    pixels = emoji.draw(square(size=(100, 50)), BLUE, 64, Placement(scale=0.75, left=0.0, top=0.0))
    rows, columns = np.nonzero((pixels != BLUE).any(axis=-1))
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (24, 48)


def test_half_transparent_red_over_blue_is_half_of_each():
    pixels = emoji.draw(square(colour=(255, 0, 0, 128)), (0, 0, 255), 64, Placement(scale=0.75, left=0.0, top=0.0))
    # 8-bit premultiplication rounds once and composing once more.
    assert np.abs(pixels[20, 20].astype(int) - (128, 0, 127)).max() <= 1


def test_no_edge_is_darker_than_what_it_lies_between():
    ring = Image.new("RGBA", (128, 128))
    ring.paste((255, 255, 255, 255), (30, 30, 98, 98))
    sprite = emoji.Sprite("x", "square", ring.convert("RGBa"))
    pixels = emoji.draw(sprite, (255, 255, 255), 64, Placement(scale=0.7, left=0.3, top=0.6))
    # A straight-alpha resize mixes in the black of transparent pixels; bicubic itself rounds by one at most.
    assert pixels.min() >= 254


def test_the_same_seed_and_index_give_the_same_picture(sprites):
    first, again = (EmojiPictures(sprites, seed=7).example(3) for _ in range(2))
    other = EmojiPictures(sprites, seed=8).example(3)
    assert first.caption == again.caption
    assert (first.pixels == again.pixels).all()
    assert (first.pixels.shape != other.pixels.shape) or (first.pixels != other.pixels).any()


def test_an_example_is_captioned_by_what_it_shows(sprites):
    pictures = EmojiPictures(sprites)
    for index in range(20):
        example = pictures.example(index)
        colour = COLOUR_NAMES[example.colour_index]
        assert example.caption == emoji.caption(sprites[example.object_index].name, colour)
        assert (example.pixels == COLOURS[colour]).all(axis=-1).mean() > 0.05


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
def test_a_drawing_begins_at_a_latent_pixel_and_ends_inside_the_frame(share):
    pixels = emoji.draw(square(size=(100, 40)), BLUE, 64, Placement(scale=0.625, left=share, top=1 - share))
    rows, columns = np.nonzero((pixels != BLUE).any(axis=-1))
    assert (rows.min() % 8, columns.min() % 8) == (0, 0)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (16, 40)


def test_each_size_and_every_place_comes_up_equally_often():
    rng = np.random.default_rng(0)
    placements = np.array([(p.scale, p.left, p.top) for p in (emoji.sample_placement(rng) for _ in range(3000))])
    sizes, counts = np.unique(placements[:, 0], return_counts=True)
    assert tuple(sizes) == emoji.SCALES
    np.testing.assert_allclose(counts, 1000, atol=100)
    np.testing.assert_allclose(placements[:, 1:].min(axis=0), 0, atol=0.01)
    np.testing.assert_allclose(placements[:, 1:].max(axis=0), 1, atol=0.01)


def test_a_missing_font_is_named_with_the_package_to_install(tmp_path):
    with pytest.raises(ConfigError, match=r"found none at .*none\.ttf; apt-get install fonts-noto-color-emoji"):
        emoji.load_sprites(tmp_path / "none.ttf")


def test_a_file_that_is_no_font_is_refused(tmp_path):
    path = tmp_path / "font.ttf"
    path.write_text("not a font")
    with pytest.raises(ConfigError, match=r"font\.ttf must be the bitmap font of fonts-noto-color-emoji"):
        emoji.load_sprites(path)
