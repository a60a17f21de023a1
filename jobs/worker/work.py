"""The process in a job: finds its place and its card, loads the model if there is work, and goes through its shards.

Processes started together share the shards by turns, one process a card, and never speak to each other.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import shlex
import time
from dataclasses import dataclass
from typing import Callable, Dict, List, Mapping, MutableMapping, Optional, Sequence, Tuple

from jobs.attendance import Attendant, End, attend
from jobs.cluster.slurm import RunCommand, allocated_cards, job_end, remembering, run_command
from jobs.config import Settings, read_settings
from jobs.records import read_summary
from jobs.rundir import RunDir, RunInfo, shard_files
from jobs.spec import REHEARSAL, JobSpec
from jobs.storage.pack import Finish, finish_shard
from jobs.storage.pictures import DamagedError, OnePass
from jobs.worker.card_use import CardWatch
from jobs.worker.kernel_cache import kernel_cache
from jobs.worker.measuring import Findings, is_wanted, write_findings
from jobs.worker.place import Place, find_place, share, take_card, with_a_card, worker_name
from jobs.worker.stop import Halt, Limits
from jobs.worker.worker import Generate, Loaded, Worker, run_shard, sweep_shards
from ldm.errors import GenerationError, RunError, SdbatchError
from ldm.inference.cards import listed_cards
from ldm.modules.memory import nothing_to_collect

log = logging.getLogger(__name__)

# Exit statuses: EX_TEMPFAIL of sysexits.h, on which the shell around puts the job back into the queue; 128 + SIGTERM.
AGAIN, TOLD = 75, 143
LOOKS = 2  # at a shard
STATUSES = {End.PAUSED: 0, End.TOLD_TO_STOP: TOLD, End.OUT_OF_TIME: AGAIN}
TOO_SHORT = (
    "the whole time limit was too short for one batch, so another try would be too: give a higher time_limit_min or a "
    "lower batch_size"
)
OWN_CARDS = "SLURM_GPUS_PER_TASK"


def work(
    run: RunDir, words: Sequence[str] = (), *, shards: Optional[Sequence[int]] = None, part: Tuple[int, int] = (0, 1)
) -> int:
    """Make what is missing in this process's share of the shards, all of them or those given; returns the exit status.

    `part` (K, N) leaves one of N parts to the processes started together here, who share it among themselves. The
    status is 0 if nothing of the share is left, 4 if pictures failed, AGAIN if the time was up, 143 after SIGTERM.
    """
    info = run.info()
    settings = read_settings(words, info.settings)
    environ = os.environ
    if "SLURM_JOB_ID" in environ and "SLURMD_NODENAME" not in environ:
        log.warning("this is a shell of job %s and none of its nodes; to work there: srun python -m jobs work %s",
                    environ["SLURM_JOB_ID"], shlex.quote(str(run.path)))  # fmt: skip
    ask = remembering(run_command)
    limits = Limits(job_end(environ, ask), run.pause_path)
    with limits.listening():
        name = worker_name(environ)
        attendant = attend(run.workers, environ, name)
        try:
            seat = _take_seat(find_place(environ), settings, environ, ask)
            if seat is None:
                attendant.leave(End.DONE, "no card of its own")
                return 0
            attendant.update(rank=seat.place.rank, card=seat.card)
            own = _own_shards(info, shards, seat.place, part)
            log.info("process %d of %d: %d shards are its share", seat.place.rank, seat.place.processes, len(own))
            if not own and shards is None and part[1] * seat.place.processes > info.plan.shards:
                log.warning("there are more processes than shards (%d): plan a run for them with cards=%d",
                            info.plan.shards, seat.place.processes)  # fmt: skip
            spec = dataclasses.replace(settings.spec, device=seat.device)
            return _work_on(run, info, spec, own, attendant, limits)
        except Halt as halt:
            return _halted(halt, attendant, limits)
        except SdbatchError as error:
            attendant.leave(End.ERROR, str(error))
            raise
        except BaseException as error:
            attendant.leave(End.ERROR, f"{type(error).__name__}: {error}")
            raise


def _work_on(
    run: RunDir, info: RunInfo, spec: JobSpec, own: Sequence[int], attendant: Attendant, limits: Limits
) -> int:
    names = OnePass()
    ends = {shard: finish_shard(run, info, shard, names) for shard in own}
    todo = dangerous_last(run, [shard for shard in own if ends[shard] is Finish.LEFT])
    attendant.update(shards=tuple(own))
    log.info("%d of %d shards to do", len(todo), len(own))
    finished = [shard for shard in own if ends[shard] is not Finish.LEFT]
    sweep_shards(finished, (path for shard in finished for path in shard_files(run, info, shard)), run)
    if todo or is_wanted(run):
        limits.check()
        with kernel_cache(os.environ, run.path, attendant.now.rank):
            with limits.droppable(), nothing_to_collect():
                model = load_model(info, spec)
            attendant.update(device=model.device, loading=time.time() - attendant.now.started)
            ends.update(_make_shards(run, info, todo, model.generate, _worker(info, spec, attendant), limits))
            if is_wanted(run):
                _measure(run, model, limits)
    failed, damaged = attendant.now.failed, sum(end is Finish.DAMAGED for end in ends.values())
    log.info("done: %d shards, %d pictures failed, %d shards damaged", len(todo), failed, damaged)
    left = 0 if failed else sum(end is Finish.LEFT for end in ends.values())
    counts = (failed, "pictures failed"), (damaged, "shards damaged"), (left, "shards with something left")
    problems = [f"{count} {what}" for count, what in counts if count]
    attendant.leave(End.DONE, ", ".join(problems))
    return GenerationError.exit_code if problems else 0


def dangerous_last(run: RunDir, shards: Sequence[int]) -> List[int]:
    """Shards at which a worker may have died behind all others: what killed it may kill again."""

    def killed(shard: int) -> bool:
        summary = read_summary(run.records_path(shard))
        return summary is not None and summary.killed_one

    return sorted(shards, key=killed)


def _worker(info: RunInfo, spec: JobSpec, attendant: Attendant) -> Worker:
    planned = info.settings.spec.batch_size
    room = min(planned, spec.batch_size)
    return Worker(attendant.now.worker, attendant.now.device, planned, beat=_beat(attendant), room=room)


def _make_shards(
    run: RunDir, info: RunInfo, todo: Sequence[int], generate: Generate, worker: Worker, limits: Limits
) -> Dict[int, Finish]:
    """Go through the shards, and say how each of them ended."""
    ends: Dict[int, Finish] = {}
    for shard in todo:
        try:
            ends[shard] = _make_shard(run, info, shard, generate, worker, limits)
        except DamagedError as error:
            log.error("%s", error)
            ends[shard] = Finish.DAMAGED
    return ends


def _make_shard(run: RunDir, info: RunInfo, shard: int, generate: Generate, worker: Worker, limits: Limits) -> Finish:
    """Make what is missing, and look again: a twin that was at the shard may have taken something away as it ended."""
    end = Finish.LEFT
    for _ in range(LOOKS):
        summary = run_shard(run.shard(shard), run, generate, worker, limits)
        if info.settings.spec.output == "webdataset":
            limits.check()  # packing takes its time, and the next process can do it
        end = finish_shard(run, info, shard)
        if summary.failed or end is not Finish.LEFT:
            break
    return end


def _measure(run: RunDir, model: Loaded, limits: Limits) -> None:
    """Find what a probe asked for. Whoever waits for it gets a file in any case; the pictures are made by now."""
    first = run.shard(0).images[0].request
    findings = Findings("", first.height, first.width, ())
    try:
        if model.measure is not None:
            with limits.droppable():
                findings = model.measure(first)
    except (RuntimeError, MemoryError, SdbatchError) as error:
        log.warning("batch sizes cannot be measured: %s", error)
    write_findings(run, findings)


def _halted(halt: Halt, attendant: Attendant, limits: Limits) -> int:
    """What a process that stops before its end leaves behind: a word why, and a status that says how to go on."""
    log.info("stopping: %s", halt.reason)
    if halt.end is End.OUT_OF_TIME and not attendant.now.made and limits.spent():
        attendant.leave(End.ERROR, TOO_SHORT)  # not out of time, at which the job would be put back
        raise RunError(TOO_SHORT)
    attendant.leave(halt.end, halt.reason)
    return STATUSES[halt.end]


def _beat(attendant: Attendant) -> Callable[[int, int], None]:
    """What a worker calls behind each batch with the pictures made and failed in it."""
    watch = CardWatch(attendant.now.card)

    def beat(made: int, failed: int) -> None:
        now = attendant.now
        attendant.update(made=now.made + made, failed=now.failed + failed, usage=watch.use)

    return beat


def load_model(info: RunInfo, spec: JobSpec) -> Loaded:
    """What makes the pictures of this run."""
    if info.model.name == REHEARSAL:
        from jobs.worker.rehearsal import generate

        return Loaded(functools.partial(generate, format=spec.format, quality=spec.quality), REHEARSAL)
    from jobs.worker.model import load

    return load(info, spec)


@dataclass(frozen=True)
class Seat:
    """A process's place, its card in words, and the device that it works on."""

    place: Place
    card: str
    device: str


def _take_seat(place: Place, settings: Settings, environ: MutableMapping[str, str], ask: RunCommand) -> Optional[Seat]:
    """Bind the process to its card; None if the node has more processes than cards and this one goes without.

    Where Slurm gave the job cards, `auto` means one of them: the CPU must not take over in silence.
    """
    device = settings.spec.device
    if device == "cpu":
        return Seat(place, "", device)
    allocated = allocated_cards(environ, settings.profile.gres, ask) if listed_cards(environ) is None else None
    listed = listed_cards(environ) or allocated or ()
    if OWN_CARDS in environ:  # each task sees the cards that are its own, and no other task's
        card = take_card(dataclasses.replace(place, local_rank=0), environ, allocated)
        return Seat(place, card.card if card else "", _device_of(device, listed, environ))
    settled = with_a_card(place, len(listed)) if listed else place
    if settled is None:
        log.info("process %d has no card of its own: %d are here; start one process a card", place.rank, len(listed))
        return None
    card = take_card(settled, environ, allocated)
    log.info("process %d of %d: %s", settled.rank, settled.processes, card or "no card here")
    all_cards = len(settled.tasks) * len(listed)
    if settled.processes < all_cards:
        log.warning("%d cards and %d processes: start one a card, as with srun --ntasks=%d --ntasks-per-node=%d, to "
                    "use all", all_cards, settled.processes, all_cards, len(listed))  # fmt: skip
    return Seat(settled, card.card if card else "", _device_of(device, listed, environ))


def _device_of(device: str, listed: Sequence[str], environ: Mapping[str, str]) -> str:
    return "gpu" if device == "auto" and listed and "SLURM_JOB_ID" in environ else device


def _own_shards(info: RunInfo, shards: Optional[Sequence[int]], place: Place, part: Tuple[int, int]) -> List[int]:
    wanted = list(range(info.plan.shards)) if shards is None else list(shards)
    unknown = [shard for shard in wanted if not 0 <= shard < info.plan.shards]
    if unknown:
        raise RunError(f"the run has the shards 0 to {info.plan.shards - 1}, not {unknown[0]}")
    return share(wanted, part[0] * place.processes + place.rank, part[1] * place.processes)
