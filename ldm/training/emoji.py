"""Pictures to learn from: one emoji on a plain ground, with a caption that says which and what colour.

The drawings are those of Noto Color Emoji (SIL Open Font License), the captions come from Unicode's own names, so that
nothing is labelled by hand: "a lion on a blue background". Drawing costs a fraction of a millisecond, which is why
pictures are made as they are needed and no data set lies on disk.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ldm.errors import ConfigError

# One drawing of a kind: no second clock, no second heart, no flags, so that "which is it" has one answer.
CHARACTERS = (
    "🐵🐶🐺🦊🐱🦁🐯🐴🦄🦓🐮🐷🐪🦒🐘🐰🦇🐻🐨🐼🐔🐣🐧🦆🦢🦉🦩🦚🦜"
    "🐸🐊🐢🐍🦕🐳🐬🐠🦈🐙🐚🐌🦋🐝🐞🦀"
    "🌸🌹🌻🌷🌱🌳🌴🌵🍀🍁🍄"
    "🍇🍉🍋🍌🍍🍎🍐🍑🍒🍓🥝🥥🥑🍆🥕🌽🌶🥦🍞🥐🥨🧀🍗🍔🍟🍕🌮🍿"
    "🍦🍩🍪🎂🧁🍫🍭🍯☕🍷🍸🍺"
    "🌍🌋🏛🏠🏰⛩⛺🎪"
    "🚂🚄🚌🚑🚒🚕🚗🚜🛵🛹⚓⛵✈🚁🚀🛸"
    "⌛⏰🌙🪐⭐🌈☂⛄🔥💧🌊"
    "🎃🎄🎈🎁🎀🏆⚽⚾🏀🏈🥊🎯🎱🔮🎮🎲🧩🧸♠❤🎨🧶"
    "👕👖🧦👗👘👛👜🎒👞👟👠👑👒🎩🎓🧢💄💍💎"
    "🔔🎧📻🎷🎸🎹🎺🎻🥁☎🔋💻💾📺📷🕯💡🏮📚💰📦✏📌✂🔒🔑🪓🛡🧲💊🚪🛁🧹🧺🗿"
    "😀😎😭🤡👻👽👾🤖💀💩👀👍🧠🦷🦴💋💣🎅"
)

COLOURS: Dict[str, Tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (16, 16, 20),
    "gray": (128, 128, 128),
    "red": (196, 36, 44),
    "orange": (240, 130, 30),
    "yellow": (245, 220, 80),
    "green": (50, 140, 70),
    "blue": (45, 90, 200),
    "purple": (120, 40, 180),
    "pink": (245, 165, 200),
    "brown": (110, 70, 45),
    "cyan": (110, 215, 225),
}
COLOUR_NAMES = tuple(COLOURS)

FONT_PACKAGE = "fonts-noto-color-emoji"
FONT_PLACES = (
    Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"),
    Path("/usr/share/fonts/noto/NotoColorEmoji.ttf"),
    Path("/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf"),
    Path("/usr/share/fonts/noto-emoji/NotoColorEmoji.ttf"),
)
# The only size a bitmap (CBDT) emoji font can be opened at.
FONT_SIZE = 109
CANVAS_PX = 180
# Sizes as shares of a picture's side, and the grid that drawings stand on. Eight pixels are one latent pixel, so that a
# drawing has the same latents wherever it stands: a small model then learns three views of each object, not hundreds.
SCALES = (0.625, 0.75, 0.875)
STEP_PX = 8

_SMILEYS = range(0x1F600, 0x1F650)
# Unicode's names speak of print ("black" is filled, "white" is outline) and of variants that are not in our list.
_LEADING = re.compile(r"^((black|white|heavy|medium|red|lower left) )+")
_TRAILING = re.compile(r"( face| symbol| sign| suit| europe-africa)$|( with| without| and) .*$")
_WITHOUT_ARTICLE = frozenset(("billiards", "books", "bread", "broccoli", "cherries", "eyes", "fire", "french fries"))
_WITHOUT_ARTICLE |= {"grapes", "jeans", "popcorn", "scissors", "socks"}


@dataclass(frozen=True)
class Sprite:
    """One drawing, cropped to what is visible, colours multiplied by alpha (mode RGBa) so that no fringe shows."""

    character: str
    name: str
    image: Image.Image


@dataclass(frozen=True)
class Placement:
    """How large, as a share of the side, the longer edge is, and where in the free room (0 left or top, 1 the end)."""

    scale: float
    left: float
    top: float


@dataclass(frozen=True)
class Example:
    """A picture with its caption; pixels (H,W,3) uint8."""

    pixels: np.ndarray
    caption: str
    object_index: int
    colour_index: int


def object_name(character: str) -> str:
    """Unicode's name in lower case, without the words about print, variants and accessories.

    Smileys keep all of theirs, for there the face is the object and the accessory the difference.
    """
    name = unicodedata.name(character).lower()
    if ord(character) in _SMILEYS:
        return name
    return _TRAILING.sub("", _LEADING.sub("", name))


OBJECT_NAMES = tuple(object_name(character) for character in CHARACTERS)


def with_article(name: str) -> str:
    """The name as a prompt has it: "an owl", "a unicorn", "grapes"."""
    if name in _WITHOUT_ARTICLE:
        return name
    vowel = name[0] in "aio" or re.match("e(?!uro)|hour|umb", name) is not None
    return f"{'an' if vowel else 'a'} {name}"


def caption(name: str, colour: str) -> str:
    """What a picture of the object on that ground is called, and the prompt that should give it."""
    return f"{with_article(name)} on {with_article(colour)} background"


def is_held_out(object_index: int, colour_index: int) -> bool:
    """Whether this pair is never trained on: two or three colours of each object, a fifth of the objects of each."""
    return (object_index + 2 * colour_index) % 5 == 0


def pairs(*, held_out: bool) -> List[Tuple[int, int]]:
    """All (object, colour) index pairs of one side of the split, objects first."""
    return [
        (index, colour)
        for index in range(len(CHARACTERS))
        for colour in range(len(COLOURS))
        if is_held_out(index, colour) == held_out
    ]


def find_font(font_path: Optional[Path] = None) -> Path:
    """The font file: the one given, else the first that is installed."""
    places = FONT_PLACES if font_path is None else (Path(font_path),)
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(str(place) for place in places)
    raise ConfigError(f"the emoji font must be installed, found none at {looked}; apt-get install {FONT_PACKAGE}")


def load_sprites(font_path: Optional[Path] = None) -> List[Sprite]:
    """All objects, in the order of CHARACTERS, at the font's own size (about 128 px)."""
    source = find_font(font_path)
    try:
        font = ImageFont.truetype(str(source), FONT_SIZE)
    except OSError as error:
        raise ConfigError(f"{source} must be the bitmap font of {FONT_PACKAGE}: {error}") from error
    return [
        Sprite(character, name, _glyph(font, character, source)) for character, name in zip(CHARACTERS, OBJECT_NAMES)
    ]


def _glyph(font: ImageFont.FreeTypeFont, character: str, source: Path) -> Image.Image:
    canvas = Image.new("RGBA", (CANVAS_PX, CANVAS_PX))
    ImageDraw.Draw(canvas).text((CANVAS_PX // 8, CANVAS_PX // 8), character, font=font, embedded_color=True)
    box = canvas.getchannel("A").getbbox()
    if box is None:
        raise ConfigError(f"{source} has no drawing of U+{ord(character):04X}; install a newer {FONT_PACKAGE}")
    return canvas.crop(box).convert("RGBa")


def sample_placement(rng: np.random.Generator) -> Placement:
    """Uniform over SCALES, and over every place inside the frame."""
    return Placement(SCALES[int(rng.integers(len(SCALES)))], float(rng.random()), float(rng.random()))


def draw(sprite: Sprite, colour: Tuple[int, int, int], size_px: int, placement: Placement) -> np.ndarray:
    """The sprite over a plain ground, (size_px,size_px,3) uint8, its left and upper edge at multiples of STEP_PX."""
    shrink = placement.scale * size_px / max(sprite.image.size)
    width, height = (max(1, round(edge * shrink)) for edge in sprite.image.size)
    # The whole-number part of the shrinking is done by plain averages, which is as smooth and twice as quick.
    resized = sprite.image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=1.0)
    small = np.asarray(resized, dtype=np.float32)
    left, top = _step(placement.left, size_px - width), _step(placement.top, size_px - height)
    ground = np.asarray(colour, dtype=np.float32)
    over = small[..., :3] + ground * (1 - small[..., 3:] / 255)
    pixels = np.empty((size_px, size_px, 3), dtype=np.uint8)
    pixels[:] = ground
    pixels[top : top + height, left : left + width] = np.clip(over + 0.5, 0, 255)
    return pixels


def _step(share: float, room_px: int) -> int:
    steps = room_px // STEP_PX
    return STEP_PX * min(int(share * (steps + 1)), steps)


@dataclass(frozen=True)
class EmojiPictures:
    """Captioned pictures without end, each fixed by the seed and its number."""

    sprites: Sequence[Sprite]
    size_px: int = 64
    seed: int = 0

    def example(self, index: int) -> Example:
        """Picture number index of the training side, its pair, size and place all drawn from (seed, index)."""
        rng = np.random.default_rng((self.seed, index))
        while True:
            pair = int(rng.integers(len(self.sprites))), int(rng.integers(len(COLOURS)))
            if not is_held_out(*pair):
                return self.picture(pair[0], pair[1], sample_placement(rng))

    def picture(self, object_index: int, colour_index: int, placement: Placement) -> Example:
        """The picture of one pair."""
        sprite, colour = self.sprites[object_index], COLOUR_NAMES[colour_index]
        pixels = draw(sprite, COLOURS[colour], self.size_px, placement)
        return Example(pixels, caption(sprite.name, colour), object_index, colour_index)

    def __iter__(self) -> Iterator[Example]:
        """Pictures 0, 1, 2 and so on."""
        index = 0
        while True:
            yield self.example(index)
            index += 1
