"""Pages of pictures with their prompts."""

from __future__ import annotations

import numpy as np
import pytest

from ldm.training import sheet
from ldm.training.sheet import Labelled, labelled_sheet

GREEN = np.full((64, 64, 3), (0, 200, 0), dtype=np.uint8)


def cell(page, column, row, lines):
    left = sheet.GAP_PX + column * (sheet.CELL_PX + sheet.GAP_PX)
    top = sheet.GAP_PX + row * (sheet.CELL_PX + sheet.GAP_PX + lines * sheet.LINE_PX)
    picture = page[top : top + sheet.CELL_PX, left : left + sheet.CELL_PX]
    text = page[top + sheet.CELL_PX : top + sheet.CELL_PX + lines * sheet.LINE_PX, left : left + sheet.CELL_PX]
    return picture, text


def test_pictures_stand_in_rows_each_above_its_text():
    page = labelled_sheet([Labelled(GREEN, "a pear")] * 3, per_row=2)
    for column, row in ((0, 0), (1, 0), (0, 1)):
        picture, text = cell(page, column, row, lines=1)
        assert (picture == (0, 200, 0)).all()
        assert text.min() < 128, "there is ink"
    assert (cell(page, 1, 1, lines=1)[0] == 255).all(), "the last row is short"


@pytest.mark.parametrize(("wrong", "is_red"), [(True, True), (False, False)])
def test_only_what_is_wrong_is_written_in_red(wrong, is_red):
    _, text = cell(labelled_sheet([Labelled(GREEN, "a pear", wrong=wrong)], per_row=1), 0, 0, lines=1)
    darkest = text.reshape(-1, 3)[text.sum(axis=-1).argmin()].astype(int)
    assert (darkest[0] > darkest[1] + 30) is np.bool_(is_red)


def test_a_long_text_takes_more_lines_and_all_rows_are_as_high():
    short, long = Labelled(GREEN, "a pear"), Labelled(GREEN, "a pear on an orange background with a great deal more")
    assert labelled_sheet([short, long], per_row=2).shape[0] > labelled_sheet([short, short], per_row=2).shape[0]


def test_a_page_is_no_wider_than_its_pictures():
    assert labelled_sheet([Labelled(GREEN, "x")], per_row=8).shape[1] == sheet.CELL_PX + 2 * sheet.GAP_PX
