"""Pictures side by side on one page, each with a line or two of text below it."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import List, Sequence, Tuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL_PX = 128
GAP_PX = 8
LINE_PX = 13
LINE_CHARACTERS = 22
PAPER, INK, RED = (255, 255, 255), (40, 40, 40), (190, 20, 20)


@dataclass(frozen=True)
class Labelled:
    """A picture (H,W,3) uint8 and its text; what is `wrong` is written in red."""

    pixels: np.ndarray
    text: str
    wrong: bool = False


def labelled_sheet(pictures: Sequence[Labelled], *, per_row: int) -> np.ndarray:
    """All pictures, each CELL_PX wide and high, row by row; (H,W,3) uint8."""
    lines = [textwrap.wrap(picture.text, LINE_CHARACTERS) for picture in pictures]
    cell_height = CELL_PX + GAP_PX + LINE_PX * max(map(len, lines))
    columns, rows = min(per_row, len(pictures)), -(-len(pictures) // per_row)
    page = Image.new("RGB", (columns * (CELL_PX + GAP_PX) + GAP_PX, rows * cell_height + GAP_PX), PAPER)
    for place, picture in enumerate(pictures):
        left = GAP_PX + place % per_row * (CELL_PX + GAP_PX)
        top = GAP_PX + place // per_row * cell_height
        _put(page, picture, lines[place], (left, top))
    return np.asarray(page)


def _put(page: Image.Image, picture: Labelled, lines: List[str], corner: Tuple[int, int]) -> None:
    left, top = corner
    enlarged = Image.fromarray(picture.pixels).resize((CELL_PX, CELL_PX), Image.Resampling.BICUBIC)
    page.paste(enlarged, corner)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default()
    for number, line in enumerate(lines):
        draw.text((left, top + CELL_PX + 2 + number * LINE_PX), line, fill=RED if picture.wrong else INK, font=font)
