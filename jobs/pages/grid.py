"""Contact sheets of a run's pictures, grid-0000.png and on: small copies side by side, in the order of the plan."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any, Iterator, List, Optional

from jobs.pages.thumbnails import small_copy
from jobs.records import read_records
from jobs.rundir import RunDir, RunInfo
from jobs.storage.pictures import read
from ldm.errors import RunError
from ldm.inference.files import write_atomically

log = logging.getLogger(__name__)

PICTURES = 64  # on a sheet
PER_ROW = 8
SIDE_LIMIT = 256  # px of a picture on a sheet
MOST_SHEETS = 32


def make_sheet(run: RunDir, info: RunInfo) -> Optional[Path]:
    """Write grid-0000.png with the first pictures that are there; its path, None if there is no picture."""
    return next(iter(make_sheets(run, info, 1)), None)


def make_sheets(run: RunDir, info: RunInfo, most: int = MOST_SHEETS) -> List[Path]:
    """Write up to `most` sheets with the first pictures that are there, and return their paths."""
    from ldm.inference.images import encode_png, make_grid

    pictures = _made(run, info)
    paths: List[Path] = []
    for number in range(most):
        cells = list(itertools.islice(pictures, PICTURES))
        if not cells:
            break
        path = run.path / f"grid-{number:04}.png"
        write_atomically(path, encode_png(make_grid(cells, per_row=PER_ROW)))
        paths.append(path)
    return paths


def _made(run: RunDir, info: RunInfo) -> Iterator[Any]:
    """The pictures that are there as pixels (H,W,3) uint8, in the order of the plan."""
    import numpy as np

    for shard in range(info.plan.shards):
        for _, record in sorted(read_records(run.records_path(shard)).images.items()):
            if record.file:
                try:
                    yield np.asarray(small_copy(read(run, shard, record), SIDE_LIMIT))
                except RunError as error:
                    log.warning("picture %d is left out: %s", record.index, error)
