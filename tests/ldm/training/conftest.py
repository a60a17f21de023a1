"""What the tests of training share: the drawings, and one judge, for its templates take seconds to draw."""

from __future__ import annotations

import pytest

from ldm.training import emoji
from ldm.training.score import Judge


@pytest.fixture(scope="session")
def sprites():
    return emoji.load_sprites()


@pytest.fixture(scope="session")
def judge(sprites):
    return Judge(sprites)
