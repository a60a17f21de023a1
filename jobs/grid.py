"""A contact sheet of a run's first pictures."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Iterator, Optional

from jobs.reading import is_there
from jobs.records import read_records
from jobs.rundir import RunDir, RunInfo
from ldm.inference.files import write_atomically

PICTURES = 64
PER_ROW = 8
SIDE_LIMIT = 256  # px of a picture on the sheet


def make_sheet(run: RunDir, info: RunInfo) -> Optional[Path]:
    """Write grid-0000.png with the first pictures that are there; its path, None if there is no picture."""
    from ldm.inference.images import encode_png, make_grid, read_picture, resize

    pictures = []
    for path in itertools.islice(_made(run, info), PICTURES):
        pixels = read_picture(path)
        height, width = pixels.shape[:2]
        scale = min(1.0, SIDE_LIMIT / max(height, width))
        pictures.append(resize(pixels, height=max(1, round(height * scale)), width=max(1, round(width * scale))))
    if not pictures:
        return None
    path = run.path / "grid-0000.png"
    write_atomically(path, encode_png(make_grid(pictures, per_row=PER_ROW)))
    return path


def _made(run: RunDir, info: RunInfo) -> Iterator[Path]:
    """The pictures that are there, in the order of the plan."""
    for shard in range(info.plan.shards):
        for _, record in sorted(read_records(run.records_path(shard)).images.items()):
            if record.file and is_there(run.image_path(record.file)):
                yield run.image_path(record.file)
