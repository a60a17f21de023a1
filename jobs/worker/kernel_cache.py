"""A folder of a process's own for the kernels that MIOpen compiles, on the node where it can be.

Its databases are sqlite, which many processes on a shared home corrupt (ROCm/MIOpen issue 1878). /dev/shm is no place
for them: what lies there counts as memory of the job, and a killed process leaves it on the node.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Iterator, List, Mapping, MutableMapping, Optional, Sequence

log = logging.getLogger(__name__)

VARIABLES = ("MIOPEN_USER_DB_PATH", "MIOPEN_CUSTOM_CACHE_DIR")
LEAST_FREE_MB = 512  # the kernels of SD v1 in two or three sizes, with room to spare
PROBE = b"\0" * 65536  # a quota is full without the disk being so; only writing tells


@contextlib.contextmanager
def kernel_cache(environ: MutableMapping[str, str], run_folder: Path, rank: int) -> Iterator[Optional[Path]]:
    """In a Slurm job, an empty folder for this process, named in `environ`, and removed at the end; else None.

    The first that has room: $TMPDIR, /tmp, then cache/ of the run, which all nodes see. Where none has, and where the
    site has set one, `environ` stays as it is.
    """
    if "SLURM_JOB_ID" not in environ or any(name in environ for name in VARIABLES):
        yield None
        return
    name = f"{environ['SLURM_JOB_ID']}-{rank}"
    folder = find_folder(places(environ, run_folder), name)
    if folder is None:
        log.warning("no room for MIOpen's kernels in $TMPDIR, /tmp or %s: it keeps them in the home folder", run_folder)
        yield None
        return
    environ.update(dict.fromkeys(VARIABLES, str(folder)))
    try:
        yield folder
    finally:
        for variable in VARIABLES:
            environ.pop(variable, None)
        shutil.rmtree(folder, ignore_errors=True)
        if folder.parent.parent == run_folder:
            with contextlib.suppress(OSError):  # another process's is in it
                folder.parent.rmdir()


def places(environ: Mapping[str, str], run_folder: Path) -> List[Path]:
    """Where the folder may be made, the best first."""
    local = [Path(text) for text in (environ.get("TMPDIR", ""), "/tmp") if text.startswith("/")]
    return [*dict.fromkeys(local), run_folder / "cache"]


def find_folder(parents: Sequence[Path], name: str, least_free_mb: int = LEAST_FREE_MB) -> Optional[Path]:
    """A new empty folder, its name beginning with `name`, in the first of `parents` that has room; None if none has."""
    for parent in parents:
        folder = _made(parent, name, least_free_mb)
        if folder is not None:
            return folder
        log.info("no room for MIOpen's kernels in %s", parent)
    return None


def _made(parent: Path, name: str, least_free_mb: int) -> Optional[Path]:
    """A new folder in `parent` that can be written to; None where there is no room or no permission."""
    folder: Optional[Path] = None
    try:
        parent.mkdir(exist_ok=True)
        free = os.statvfs(parent)
        has_names = free.f_favail > 0 or free.f_files == 0  # some file systems count none
        if free.f_bavail * free.f_frsize < least_free_mb * 2**20 or not has_names:
            return None
        folder = Path(tempfile.mkdtemp(prefix=f"sdbatch-miopen-{name}-", dir=parent))
        probe = folder / "probe"
        probe.write_bytes(PROBE)
        probe.unlink()
    except OSError:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        return None
    return folder
