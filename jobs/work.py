"""The process in a job: finds its place and its card, loads the model if there is work, and goes through its shards.

Processes started together share the shards by turns, one process a card, and never speak to each other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shlex
import tempfile
from typing import Iterator, List, MutableMapping, Optional, Sequence, Tuple

from jobs.config import Settings, read_settings
from jobs.place import Place, find_place, share, take_card, with_a_card, worker_name
from jobs.records import is_complete
from jobs.rehearsal import REHEARSAL
from jobs.rundir import RunDir, RunInfo, shard_files
from jobs.slurm import allocated_cards
from jobs.spec import JobSpec
from jobs.worker import Generate, Worker, run_shard
from ldm.errors import GenerationError, RunError
from ldm.inference.cards import listed_cards

log = logging.getLogger(__name__)

MIOPEN_VARIABLES = ("MIOPEN_USER_DB_PATH", "MIOPEN_CUSTOM_CACHE_DIR")


def work(
    run: RunDir, words: Sequence[str] = (), *, shards: Optional[Sequence[int]] = None, part: Tuple[int, int] = (0, 1)
) -> int:
    """Make what is missing in this process's share of the shards, all of them or those given; returns the exit status.

    `part` (K, N) leaves one of N parts to the processes started together here, who share it among themselves.
    """
    info = run.info()
    settings = read_settings(words, info.settings)
    environ = os.environ
    if "SLURM_JOB_ID" in environ and "SLURMD_NODENAME" not in environ:
        log.warning("this is a shell of job %s and none of its nodes; to work there: srun python -m jobs work %s",
                    environ["SLURM_JOB_ID"], shlex.quote(str(run.path)))  # fmt: skip
    place, device = _take_place(find_place(environ), settings, environ)
    if place is None:
        return 0
    spec = dataclasses.replace(settings.spec, device=device)
    own = _own_shards(info, shards, place, part)
    todo = [shard for shard in own if not is_complete(run.records_path(shard), shard_files(run, info, shard))]
    log.info("process %d of %d: %d of its %d shards to do", place.rank, place.processes, len(todo), len(own))
    if not todo:
        return 0
    with _kernel_cache(environ):
        generate, device = load_generate(info, spec)
        worker = Worker(name=worker_name(environ), device=device, batch_size=spec.batch_size)
        failed = sum(run_shard(run.shard(shard), run, generate, worker).failed for shard in todo)
    log.info("done: %d shards, %d pictures failed", len(todo), failed)
    return GenerationError.exit_code if failed else 0


def load_generate(info: RunInfo, spec: JobSpec) -> Tuple[Generate, str]:
    """What makes the pictures, and the name of the device it does it on."""
    if info.model.name == REHEARSAL:
        from jobs.rehearsal import generate

        return generate, REHEARSAL
    from jobs.model import load

    return load(info, spec)


def _take_place(place: Place, settings: Settings, environ: MutableMapping[str, str]) -> Tuple[Optional[Place], str]:
    """Bind the process to its card; no place if the node has more processes than cards and this one goes without.

    Where Slurm gave the job cards, `auto` means one of them: the CPU must not take over in silence.
    """
    device = settings.spec.device
    if device == "cpu":
        return place, device
    allocated = allocated_cards(environ, settings.profile.gres) if listed_cards(environ) is None else None
    listed = listed_cards(environ) or allocated or ()
    settled = with_a_card(place, len(listed)) if listed else place
    if settled is None:
        log.info("process %d has no card of its own: %d are here; start one process a card", place.rank, len(listed))
        return None, device
    log.info("process %d: %s", settled.rank, take_card(settled, environ, allocated) or "no card here")
    all_cards = len(settled.tasks) * len(listed)
    if settled.processes < all_cards:
        log.warning("%d cards and %d processes: start one a card, as with srun --ntasks=%d --ntasks-per-node=%d, to "
                    "use all", all_cards, settled.processes, all_cards, len(listed))  # fmt: skip
    return settled, "gpu" if device == "auto" and listed and "SLURM_JOB_ID" in environ else device


def _own_shards(info: RunInfo, shards: Optional[Sequence[int]], place: Place, part: Tuple[int, int]) -> List[int]:
    wanted = list(range(info.plan.shards)) if shards is None else list(shards)
    unknown = [shard for shard in wanted if not 0 <= shard < info.plan.shards]
    if unknown:
        raise RunError(f"the run has the shards 0 to {info.plan.shards - 1}, not {unknown[0]}")
    return share(wanted, part[0] * place.processes + place.rank, part[1] * place.processes)


@contextlib.contextmanager
def _kernel_cache(environ: MutableMapping[str, str]) -> Iterator[None]:
    """In a Slurm job, a folder of this process's own on the node for the kernels that MIOpen compiles.

    Its databases are sqlite, which many processes on a shared home corrupt. What a site has set stays.
    """
    if "SLURM_JOB_ID" not in environ or any(name in environ for name in MIOPEN_VARIABLES):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="sdbatch-miopen-") as folder:
        for name in MIOPEN_VARIABLES:
            environ[name] = folder
        yield
