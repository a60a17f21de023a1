"""What Slurm says of a run's jobs: asked once and briefly, for it is a bonus.

A site may have no squeue or no sacct here, and a controller may keep silent; then the run's own files must do.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from dataclasses import dataclass
from typing import Callable, Dict, Iterable, List, Optional, Sequence, Set, Tuple

from jobs.attendance import UPDATE_SECONDS, Attendance, End, read_attendances
from jobs.cluster.processes import works_here
from jobs.plan import parse_ranges
from jobs.reading import is_there, reading
from jobs.rundir import RunDir

Ask = Callable[[Sequence[str]], Optional[str]]

ASK_SECONDS, PATIENT_SECONDS = 3.0, 60.0
SILENT_SECONDS = 5 * UPDATE_SECONDS  # without a sign of life, where nothing else tells
COLUMNS = "%i|%F|%T|%r|%L|%N|%j"  # the name comes last, as it may hold anything
IDS_AT_ONCE = 500
# Filters of a user's own that would hide jobs.
FILTERS = ("SQUEUE_", "SACCT_")
ENDED = (
    "COMPLETED",
    "CANCELLED",
    "FAILED",
    "TIMEOUT",
    "NODE_FAIL",
    "PREEMPTED",
    "BOOT_FAIL",
    "DEADLINE",
    "OUT_OF_MEMORY",
)
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
NEVER = "DependencyNeverSatisfied"
HELD_BY_USER = "JobHeldUser"


@dataclass(frozen=True)
class JobState:
    """A job, or one task of an array, in the queue. `node`: its nodes as Slurm writes them, "" while it has none.

    `job` is the number that all tasks of an array share; `seconds_left` until its time limit, None if unknown.
    """

    state: str
    reason: str
    node: str
    seconds_left: Optional[int]
    job: str
    name: str

    @property
    def waiting(self) -> bool:
        return self.state in WAITING

    @property
    def running(self) -> bool:
        """Whether it has nodes; also while it is being ended on them."""
        return not self.waiting and self.state not in ENDED

    @property
    def held(self) -> bool:
        return self.waiting and "held" in self.reason.lower()

    @property
    def will_work(self) -> bool:
        """Whether it is at work, or waits for something that may come, which a job that Slurm itself holds does not."""
        comes = self.waiting and self.reason != NEVER and (not self.held or self.reason == HELD_BY_USER)
        return self.state != "COMPLETING" and (self.running or comes)


def ask(command: Sequence[str], seconds: float = ASK_SECONDS) -> Optional[str]:
    """What a command of Slurm prints, tried once; None if it is not here, fails, or takes longer than `seconds`."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(FILTERS)}
    try:
        # Python's own SIGPIPE, which is ignored: see jobs.cluster.slurm.run_command.
        done = subprocess.run(
            list(command), capture_output=True, timeout=seconds, check=True, env=environ, restore_signals=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace")


def patient(command: Sequence[str]) -> Optional[str]:
    """`ask` for an answer that is needed, and waited for while the controller is busy."""
    return ask(command, PATIENT_SECONDS)


def live_jobs(run: RunDir, ask: Ask = ask, users: Optional[Set[int]] = None) -> Optional[Dict[str, JobState]]:
    """The run's jobs that are in the queue, by id such as 12_3 or 12; None where the queue cannot be asked.

    They are those that were submitted for it, those whose processes have worked on it, and those of its name whose log
    is in it, such as a rendered file's. Only jobs of `users` are looked at: this one and the folder's owner.
    """
    if users is None:
        with reading(run.path):
            users = {os.getuid(), run.path.stat().st_uid}
    text = ask(["squeue", "-h", "-r", "-u", ",".join(map(str, sorted(users))), "-o", COLUMNS])
    if text is None:
        return None
    known = known_jobs(run)
    strangers: Dict[str, bool] = {}
    found: Dict[str, JobState] = {}
    for task, state in parse_queue(text).items():
        if state.job not in known and state.name in (run.path.name, run.name_after) and state.job not in strangers:
            strangers[state.job] = writes_into(run, task, ask)
        if state.job in known or strangers.get(state.job):
            found[task] = state
    return found


def parse_queue(text: str) -> Dict[str, JobState]:
    """The jobs in the output of squeue with COLUMNS, by id; lines of another form are passed over."""
    rows = [line.split("|", 6) for line in text.splitlines()]
    return {
        row[0]: JobState(
            state=row[2],
            reason="" if row[3] == "None" else row[3],
            node=row[5],
            seconds_left=parse_duration(row[4]),
            job=row[1],
            name=row[6],
        )
        for row in rows
        if len(row) == 7
    }


def parse_duration(text: str) -> Optional[int]:
    """Slurm's 1-02:03:04, 02:03:04 or 3:04 in seconds; None for UNLIMITED, INVALID and the like."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text.strip())
    if not found:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def expand_nodes(text: str) -> Tuple[str, ...]:
    """dcu[1-3,07],gpu1 as dcu1, dcu2, dcu3, dcu07, gpu1; nodes with several brackets stay as they are written."""
    nodes: List[str] = []
    for part in re.findall(r"[^,\[]+(?:\[[^\]]*\][^,\[]*)*", text):
        found = re.fullmatch(r"([^\[]*)\[([0-9,-]+)\]([^\[]*)", part)
        if not found:
            nodes.append(part)
            continue
        before, numbers, after = found.groups()
        for word in numbers.split(","):
            width = len(word.partition("-")[0])
            nodes += [f"{before}{number:0{width}}{after}" for number in parse_ranges(word)]
    return tuple(nodes)


def known_jobs(run: RunDir) -> Set[str]:
    """The numbers of the Slurm jobs that were submitted for the run or have worked on it."""
    ids = {task["job"].partition("_")[0] for submission in run.submissions() for task in submission["tasks"]}
    if is_there(run.workers):
        with reading(run.workers):
            ids.update(os.listdir(run.workers))
    return {number for number in ids if number.isdigit()}


def writes_into(run: RunDir, task: str, ask: Ask = ask) -> bool:
    """Whether the log of a job in the queue is in the run's folder."""
    text = ask(["scontrol", "show", "job", task]) or ""
    return any(path.startswith(f"{run.logs}{os.sep}") for path in re.findall(r"^\s*StdOut=(.+)$", text, re.MULTILINE))


def ended_jobs(ids: Iterable[str], ask: Ask = ask) -> Dict[str, str]:
    """How jobs ended, by id, such as NODE_FAIL or FAILED 0:53, from sacct; {} where there is no accounting."""
    bases = {job.partition("_")[0] for job in ids}
    wanted = ",".join(sorted(filter(str.isdigit, bases), key=int)[-IDS_AT_ONCE:])
    if not wanted:
        return {}
    text = ask(["sacct", "-n", "-P", "-X", "-j", wanted, "-o", "jobid,state,exitcode"]) or ""
    rows = [line.split("|") for line in text.splitlines()]
    return {
        row[0]: row[1].split(" ")[0] + ("" if row[2] == "0:0" else f" {row[2]}")
        for row in rows
        if len(row) == 3 and row[1].split(" ")[0] in ENDED
    }


def job_id(attendance: Attendance) -> str:
    """The job of a process as squeue names it, "" outside Slurm."""
    return f"{attendance.job}_{attendance.task}" if attendance.task else attendance.job


def busy_shards(run: RunDir, live: Optional[Dict[str, JobState]]) -> Set[int]:
    """The shards that a job in the queue, or a process on this machine, has or will have in work. What a waiting task
    of a rendered file will make is not known here, so that may be all of them.

    Where the queue could not be asked, those whose worker has given a sign of life of late.
    """
    attendances = read_attendances(run.workers)
    coming = {job: state for job, state in (live or {}).items() if state.will_work}
    submissions = run.submissions() if coming else []
    submitted = {task["job"]: set(task["shards"]) for each in submissions for task in each["tasks"]}
    newest: Dict[str, Dict[int, Attendance]] = {}
    for each in attendances:
        newest.setdefault(job_id(each), {})[each.rank] = each
    now = time.time()
    busy: Set[int] = set()
    for job, state in coming.items():
        own = newest.get(job, {}).values()
        if state.waiting and not own and job not in submitted and state.name == run.path.name:
            return set(range(run.info().plan.shards))
        shards = submitted.get(job, set()).union(*(each.shards for each in own))
        busy |= shards - _left_to_nobody(own, now, asked_for=job in submitted) if state.running else shards
    for each in attendances:
        silent = live is None and bool(each.job) and now - each.updated < SILENT_SECONDS
        if each.end is None and (silent or works_here(run, each)):
            busy.update(each.shards)
    return busy


def _left_to_nobody(own: Iterable[Attendance], now: float, *, asked_for: bool) -> Set[int]:
    """The shards of processes of a running task that have left for good while others of it work on.

    In a job that nobody submitted for this run, such as an allocation, one that was killed leaves without a word.
    """
    left: Set[int] = set()
    for each in own:
        gone = each.end is None and not asked_for and now - each.updated >= SILENT_SECONDS
        if gone or each.end not in (None, End.OUT_OF_TIME):
            left.update(each.shards)
    return left
