"""The sheet of pictures: a row for each setting, the same prompts and seeds in every row."""

from __future__ import annotations

import io
from typing import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP, LABEL = 6, 236  # px
STEP = 4  # of 255: too little to be seen
PAPER, INK = (255, 255, 255), (40, 40, 40)


def png(rows: Mapping[str, Sequence[np.ndarray]]) -> bytes:
    """A PNG of pictures (H,W,3) uint8, the name of each row before it; a small file, as colours go in steps."""
    height, width = next(iter(rows.values()))[0].shape[:2]
    columns = max(map(len, rows.values()))
    page = Image.new("RGB", (LABEL + columns * (width + GAP), len(rows) * (height + GAP) + GAP), PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default()
    for row, (name, pictures) in enumerate(rows.items()):
        top = GAP + row * (height + GAP)
        draw.text((GAP, top + height // 2 - 6), name, fill=INK, font=font)
        for column, pixels in enumerate(pictures):
            page.paste(Image.fromarray(pixels), (LABEL + column * (width + GAP), top))
    coarse = page.point([min(255, (value + STEP // 2) // STEP * STEP) for value in range(256)] * 3)
    file = io.BytesIO()
    coarse.save(file, format="PNG", optimize=True)
    return file.getvalue()
