"""What a script has written."""

from __future__ import annotations

import numpy as np

from ldm.inference.images import read_picture


def written(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def samples(folder):
    return [read_picture(path) for path in sorted((folder / "samples").iterdir())]


def same(a, b):
    """Equal but for one level, which the sums of another batch size may cost once fractions are dropped."""
    return a.shape == b.shape and np.abs(a.astype(int) - b.astype(int)).max() <= 1
