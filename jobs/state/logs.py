"""The logs of a run: which task wrote which, and the lines of one that matter.

They are found through submissions.jsonl, and those of a rendered file, which nothing submits for us, through the jobs
that have worked on the run. One whose setup failed has not worked on it: only for these the folder itself is listed.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Collection, Dict, Iterable, Iterator, List, Sequence, Set, Tuple

from jobs.attendance import Attendance
from jobs.plan import index_ranges
from jobs.reading import reading
from jobs.rundir import RunDir
from jobs.submit.sbatch import log_pattern

TAIL_BYTES = 64 * 1024
SHOWN_LOGS = 20
REASONS = 3  # lines that say why a task did not finish

# What ends a task, from whoever says so: this program, Python, Slurm, the kernel, a shell.
BAD_NEWS = re.compile(
    r"jobs: error:|: error: |^Error\b|\bCANCELLED\b|DUE TO TIME LIMIT|NODE FAILURE|PREEMPTION|oom[-_ ]kill"
    r"|out of memory|\bKilled\b|Segmentation fault|Bus error|Aborted|No space left|Disk quota exceeded"
    r"|command not found|No such file or directory|Unable to locate a modulefile|picture \d+ failed: |stopping: ",
    re.IGNORECASE,
)
# What Slurm says whatever the reason was.
SAYS_LITTLE = re.compile(r"Exited with exit code|Job step aborted|Failed to send MESSAGE_TASK_EXIT")
TRACEBACK = "Traceback (most recent call last):"
# What differs from task to task though the reason is the same: jobs, times, nodes.
VARYING = re.compile(r"\d+")


@dataclass(frozen=True)
class TaskLog:
    """The log of one process, or of all those of a task: who wrote it and the shards that were theirs."""

    job: str
    shards: Tuple[int, ...]
    path: Path


@dataclass(frozen=True)
class Unfinished:
    """Tasks that did not finish for one reason, newest first; `lines` say it as the newest does, () without a log."""

    logs: Tuple[TaskLog, ...]
    lines: Tuple[str, ...]


def task_logs(run: RunDir, attendances: Sequence[Attendance]) -> List[TaskLog]:
    """Every log that a task of the run has or will have, oldest submission first."""
    found = [log for submission in run.submissions() for task in submission["tasks"] for log in _of_task(run, task)]
    submitted = {log.job.partition("_")[0] for log in found}
    rendered: Dict[Tuple[str, str], Set[int]] = {}
    for each in attendances:
        if each.job and each.task and each.job not in submitted:
            rendered.setdefault((each.job, each.task), set()).update(each.shards)
    pattern = str(log_pattern(run))
    found += [
        TaskLog(f"{job}_{task}", tuple(sorted(shards)), Path(pattern.replace("%A", job).replace("%a", task)))
        for (job, task), shards in rendered.items()
    ]
    return found


def rendered_logs(run: RunDir, known: Iterable[TaskLog]) -> List[TaskLog]:
    """The logs of rendered files' tasks that are not among the known, the newest of each task, oldest first. Which
    shards were theirs is not known.
    """
    there = {log.path for log in known}
    pattern = log_pattern(run)
    name = re.compile(re.escape(pattern.name).replace("%A", r"(\d+)").replace("%a", r"(\d+)"))
    with reading(pattern.parent):
        matches = [match for match in map(name.fullmatch, os.listdir(pattern.parent)) if match]
    newest: Dict[str, TaskLog] = {}
    for match in sorted(matches, key=lambda each: int(each.group(1))):
        job, task = match.groups()
        newest[task] = TaskLog(f"{job}_{task}", (), pattern.parent / match.group())
    return sorted((log for log in newest.values() if log.path not in there), key=lambda log: log.path.stat().st_mtime)


def latest_logs(logs: Iterable[TaskLog]) -> Dict[int, TaskLog]:
    """The log of the process that had each shard last."""
    return {shard: log for log in logs for shard in log.shards}


def tail(path: Path, limit: int = TAIL_BYTES) -> List[str]:
    """The last lines of a log that are not blank; none where there is no log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - limit))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def describe_logs(logs: Sequence[TaskLog], lines: int) -> List[str]:
    """The last lines of each log that is there, newest first, under its path."""
    there = [log for log in reversed(logs) if log.path.exists()]
    found: List[str] = []
    for log in there[:SHOWN_LOGS]:
        found += [f"{log.path} (job {log.job}, {named(log.shards)})"]
        found += [f"    {line}" for line in tail(log.path)[-lines:]]
    older = len(there) - SHOWN_LOGS
    return [*found, f"and {older} older ones; --shard N shows those of one shard"] if older > 0 else found


def reasons(lines: Sequence[str]) -> Tuple[str, ...]:
    """The last lines that say why a task did not finish, in their order; () if none does."""
    telling = list(dict.fromkeys(line.strip() for line in _telling(lines)))
    return tuple([line for line in telling if not SAYS_LITTLE.search(line)] or telling)[-REASONS:]


def unfinished(logs: Sequence[TaskLog], undone: Collection[int], coming: Collection[str]) -> List[Unfinished]:
    """Why tasks with shards in `undone` did not finish, those of one reason together, newest first; of a task without
    shards, what its log says. Those whose jobs are in `coming` may still finish.
    """
    wanted = set(undone)
    wrote = {log.job for log in logs if log.path.exists()}
    groups: Dict[Tuple[str, ...], Unfinished] = {}
    for log in reversed(logs):
        if log.job in coming or (log.job in wrote and not log.path.exists()):
            continue
        lines = tail(log.path)
        if not (wanted.intersection(log.shards) if log.shards else reasons(lines)):
            continue
        told = reasons(lines) or tuple(line.strip() for line in lines[-1:])
        alike = tuple(VARYING.sub("#", line) for line in told)
        group = groups.setdefault(alike, Unfinished(logs=(), lines=told))
        groups[alike] = Unfinished(logs=(*group.logs, log), lines=group.lines)
    return list(groups.values())


def describe_unfinished(group: Unfinished, states: Dict[str, str]) -> List[str]:
    """The tasks of a group and their reason. `states`: how jobs ended, by id, as far as sacct says so."""
    newest = group.logs[0]
    shards = sorted({shard for log in group.logs for shard in log.shards})
    others = len({log.job for log in group.logs}) - 1
    who = f"job {newest.job}{f' and {others} more' if others else ''}, {named(shards)}"
    state = f", {states[newest.job]}" if newest.job in states else ""
    if not newest.path.exists():
        cause = "it ended before it began, or its node does not see that folder"
        return [f"{who}{state}: there is no {newest.path}: {cause}"]
    return [f"{who}{state}: {newest.path}", *[f"    {line}" for line in group.lines]]


def named(shards: Sequence[int]) -> str:
    """shard 3, shards 0-3,7, or what there is to say of none."""
    if not shards:
        return "no shards"
    return f"shard{'s' if len(shards) > 1 else ''} {index_ranges(shards)}"


def _telling(lines: Sequence[str]) -> Iterator[str]:
    """The lines with bad news; of a traceback, the last line, which names the error."""
    in_traceback = False
    for line in lines:
        if line.strip().endswith(TRACEBACK):
            in_traceback = True
        elif in_traceback and not line.startswith((" ", "\t")):
            in_traceback = False
            yield line
        elif not in_traceback and BAD_NEWS.search(line):
            yield line


def _of_task(run: RunDir, task: Dict[str, Any]) -> Iterator[TaskLog]:
    """The logs of a submitted task: one of each process, which take its shards by turns."""
    for turn, name in enumerate(task["logs"]):
        yield TaskLog(task["job"], tuple(task["shards"][turn :: len(task["logs"])]), run.logs / name)
