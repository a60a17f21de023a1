"""Which emoji on which ground a picture shows, told from its pixels alone.

The small model is accepted by this measure, so it shares nothing with the model: no network, no learnt feature. The
ground is the named colour that most of the border is nearest to; what differs from it is the object; its bounding
square, reduced to a few pixels a side, is laid over every emoji drawn on that same ground, and the one with the highest
cosine of differences from the ground is the answer. Templates are cut out by the same rule as the picture, so that what
a ground hides, as white paws on white, is missing from both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
from PIL import Image

from ldm.training.emoji import COLOUR_NAMES, COLOURS, Placement, Sprite, draw

# Sides of what is compared: fine enough to tell the objects apart, coarse enough to forgive a blurred edge.
GRID_PX = 16
TEMPLATE_PX = 64
# Largest channel difference, of 255, that still counts as ground: noise lies below, pale drawings mostly above.
GROUND_TOLERANCE = 28
# The box holds all but this share of what differs, at either end of either axis, so that specks do not stretch it.
SPECK_SHARE = 0.01
# The box may still be off by a pixel or two of 64: it is tried moved by these shares of its side, and resized.
SHIFTS = (-0.06, 0.0, 0.06)
ZOOMS = (0.9, 1.0, 1.1)

Box = Tuple[float, float, float, float]

_PALETTE = np.array([COLOURS[name] for name in COLOUR_NAMES], dtype=np.float32)


@dataclass(frozen=True)
class Verdict:
    """What a picture shows: an index into COLOURS, and objects from the likeliest down; none where all is ground."""

    colour_index: int
    ranking: Tuple[int, ...]

    def shows(self, object_index: int, *, within: int = 1) -> bool:
        """Whether the object is among the first `within` guesses."""
        return object_index in self.ranking[:within]


class Judge:
    """Compares pictures with all sprites; the templates of a ground are drawn when it is first met."""

    def __init__(self, sprites: Sequence[Sprite]) -> None:
        self.sprites = sprites
        self._templates: Dict[int, np.ndarray] = {}

    def verdict(self, pixels: np.ndarray) -> Verdict:
        """What a picture (H,W,3) uint8 of any size shows."""
        colour_index, ground = find_ground(pixels)
        box = find_object(pixels, ground)
        if box is None:
            return Verdict(colour_index, ())
        looks = look(pixels, ground, squares_around(box))
        likeness = (looks @ self._templates_on(colour_index).T).max(axis=0)
        return Verdict(colour_index, tuple(np.argsort(-likeness, kind="stable").tolist()))

    def _templates_on(self, colour_index: int) -> np.ndarray:
        if colour_index not in self._templates:
            colour = COLOURS[COLOUR_NAMES[colour_index]]
            self._templates[colour_index] = np.concatenate([_template(sprite, colour) for sprite in self.sprites])
        return self._templates[colour_index]


def find_ground(pixels: np.ndarray) -> Tuple[int, np.ndarray]:
    """Index of the named colour that most of the border is nearest to, and the median (3,) float32 of those pixels.

    A vote, not a median of all, because a large object in a corner covers nearly half of the border.
    """
    edges = (pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1])
    border = np.concatenate(edges).astype(np.float32)
    votes = np.linalg.norm(border[:, None] - _PALETTE, axis=-1).argmin(axis=1)
    winner = int(np.bincount(votes).argmax())
    return winner, np.median(border[votes == winner], axis=0)


def find_object(pixels: np.ndarray, ground: np.ndarray) -> Optional[Box]:
    """(left, top, right, bottom) in pixels of what differs from the ground; None where nothing does."""
    differs = np.abs(_smooth(pixels.astype(np.float32)) - ground).max(axis=-1) > GROUND_TOLERANCE
    if not differs.any():
        return None
    left, right = _extent(differs.sum(axis=0))
    top, bottom = _extent(differs.sum(axis=1))
    return (left, top, right, bottom)


def _smooth(pixels: np.ndarray) -> np.ndarray:
    """Means over 3x3 pixels: what is left of noise stays below the tolerance."""
    padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
    means: np.ndarray = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 3
    return means


def _extent(counts: np.ndarray) -> Tuple[int, int]:
    """Begin and end of a range that holds all of the counts but SPECK_SHARE at either side."""
    until = np.cumsum(counts) / counts.sum()
    inside = np.flatnonzero((until > SPECK_SHARE) & (until - counts / counts.sum() < 1 - SPECK_SHARE))
    return int(inside[0]), int(inside[-1]) + 1


def square_around(box: Box, *, shift: Tuple[float, float] = (0.0, 0.0), zoom: float = 1.0) -> Box:
    """The square on the box's centre with the box's longer edge, moved by shares of that edge and resized."""
    left, top, right, bottom = box
    side = max(right - left, bottom - top)
    x, y = (left + right) / 2 + shift[0] * side, (top + bottom) / 2 + shift[1] * side
    half = side * zoom / 2
    return (x - half, y - half, x + half, y + half)


def squares_around(box: Box) -> List[Box]:
    """The box as a square, in all the places and sizes that are tried."""
    return [square_around(box, shift=(x, y), zoom=zoom) for x in SHIFTS for y in SHIFTS for zoom in ZOOMS]


def look(pixels: np.ndarray, ground: np.ndarray, squares: Sequence[Box]) -> np.ndarray:
    """The squares as unit vectors (N, GRID_PX * GRID_PX * 3) float32 of differences from the ground.

    A square may reach beyond the picture, where there is nothing but ground.
    """
    height, width = pixels.shape[:2]
    margin = max(height, width)
    padded = np.empty((height + 2 * margin, width + 2 * margin, 3), dtype=np.uint8)
    padded[:] = np.round(ground)
    padded[margin : margin + height, margin : margin + width] = pixels
    image = Image.fromarray(padded)
    return np.stack([_look_at(image, ground, [edge + margin for edge in square]) for square in squares])


def _look_at(image: Image.Image, ground: np.ndarray, square: Sequence[float]) -> np.ndarray:
    left, top, right, bottom = square
    small = image.resize((GRID_PX, GRID_PX), Image.Resampling.BOX, box=(left, top, right, bottom))
    difference: np.ndarray = (np.asarray(small, dtype=np.float32) - ground).ravel()
    length = float(np.linalg.norm(difference))
    return difference / length if length else difference


def _template(sprite: Sprite, colour: Tuple[int, int, int]) -> np.ndarray:
    pixels = draw(sprite, colour, TEMPLATE_PX, Placement(scale=0.95, left=0.5, top=0.5))
    ground = np.asarray(colour, dtype=np.float32)
    box = find_object(pixels, ground) or (0, 0, TEMPLATE_PX, TEMPLATE_PX)
    return look(pixels, ground, [square_around(box)])
