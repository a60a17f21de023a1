"""What befalls the nodes, processes and jobs of a cluster on a bad day, at random but seeded, and its repair.

Every accident is one that Slurm and Linux have in stock; none knows what the jobs do. A node stays broken for some
seconds, and one is always left whole, so that work goes on.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Tuple

from tests.slurm_lab.cluster import SlurmLab
from tests.slurm_lab.machine import LabError
from tests.slurm_lab.processes import PATIENCE_S

Say = Callable[[str], None]

BROKEN_SECONDS = (4.0, 15.0)  # how long a node stays away
STOPPED_SECONDS = (2.0, 8.0)  # how long a process is stopped
NOTICED = 0.8  # share of the crashes that Slurm is told of at once; of the others it learns by itself, or never


@dataclass(frozen=True, order=True)
class Task:
    """A process that a job has started on a node. `born` tells it from a later one with its number."""

    job: str
    node: str
    pid: int
    born: int

    def __str__(self) -> str:
        return f"process {self.pid} of job {self.job} on {self.node}"


@dataclass(frozen=True)
class Queued:
    """A job, or a task of an array, as squeue lists it."""

    job: str
    state: str
    reason: str


class Accidents:
    """The accidents of one cluster. Each method returns whether there was something that it could befall."""

    def __init__(self, lab: SlurmLab, dice: random.Random, say: Say) -> None:
        self.counts: Counter[str] = Counter()
        self._lab = lab
        self._dice = dice
        self._say = say
        self._nodes = lab.output("sinfo", "-h", "-p", "kshdtest", "-N", "-o", "%N").split()
        self._repairs: Dict[str, float] = {}  # when each broken node comes back
        self._stopped: List[Tuple[float, Task]] = []
        self._orders: List[subprocess.Popen[bytes]] = []

    def kill_worker(self) -> bool:
        """A process dies at once: the kernel was out of memory, or somebody was impatient."""
        return self._befall_worker("killed", lambda worker: send(worker, signal.SIGKILL))

    def stop_worker(self) -> bool:
        """A process stands still for some seconds, as on a file system that hangs, and goes on as if nothing was."""

        def stop(worker: Task) -> None:
            send(worker, signal.SIGSTOP)
            self._stopped.append((time.monotonic() + self._dice.uniform(*STOPPED_SECONDS), worker))

        return self._befall_worker("stopped", stop)

    def crash_node(self) -> bool:
        """A node loses its power. Slurm mostly learns of it at once; else the node may be back before that."""
        noticed = self._dice.random() < NOTICED
        node = self._break("crashed" if noticed else "crashed unseen")
        if node:
            self._lab.kill_node(node)
        if node and noticed:
            self._down(node)
        return bool(node)

    def lose_daemon(self) -> bool:
        """Slurm gives a node up whose jobs live on: it starts them elsewhere, and there are two of each."""
        node = self._break("lost the daemon of")
        if node:
            self._lab.kill_node(node, daemon_only=True)
            self._down(node)
        return bool(node)

    def down_node(self) -> bool:
        """An administrator takes a node away from under its jobs."""
        node = self._break("downed")
        if node:
            self._down(node)
        return bool(node)

    def requeue(self) -> bool:
        """A job goes back into the queue, as when one of more importance comes."""
        return self._befall_job("requeued", "scontrol", "requeue")

    def warn(self) -> bool:
        """A job is told that its time is nearly over, though it is not."""
        return self._befall_job("warned", "scancel", "--signal=USR2")

    def cancel_task(self) -> bool:
        """A user cancels one task of an array."""
        return self._befall_job("cancelled", "scancel")

    def cancel_all(self) -> bool:
        """A user cancels all there is."""
        jobs = sorted({queued.job.partition("_")[0] for queued in self.queue()})
        if jobs:
            self._count("cancelled all", " ".join(jobs))
            self._order("scancel", *jobs)
        return bool(jobs)

    def queue(self) -> List[Queued]:
        """The jobs that wait or run, or are being ended."""
        lines = self._lab.run("squeue", "-h", "-r", "-o", "%i|%T|%r").stdout.splitlines()
        return [Queued(*line.split("|", 2)) for line in lines]

    def workers(self) -> List[Task]:
        """The Python processes of the jobs, also of those that Slurm has given up."""
        return sorted(worker for worker in _tasks(self._lab.env["SLURM_CONF"]))

    def recover(self, *, all_now: bool = False) -> None:
        """Repair what has been broken for long enough, or all, and start what waits for no reason of its own."""
        if self._lab.revive_controller():  # Slurm's own accident: it may crash where a node is repaired that is back
            self._count("restarted", "the controller, which had crashed")
        now = math.inf if all_now else time.monotonic()
        for due, worker in list(self._stopped):
            if due <= now:
                self._stopped.remove((due, worker))
                send(worker, signal.SIGCONT)
        for node, due in list(self._repairs.items()):
            if due <= now:
                self._repair(node)
        self._start_waiting()
        for order in self._orders if all_now else ():
            order.wait(PATIENCE_S)

    @property
    def broken(self) -> int:
        """How many nodes are away now."""
        return len(self._repairs)

    def _befall_worker(self, what: str, act: Callable[[Task], None]) -> bool:
        workers = self.workers()
        if workers:
            worker = self._dice.choice(workers)
            self._count(what + " a worker", str(worker))
            act(worker)
        return bool(workers)

    def _befall_job(self, what: str, *command: str) -> bool:
        running = sorted(queued.job for queued in self.queue() if queued.state == "RUNNING")
        if running:
            job = self._dice.choice(running)
            self._count(what + " a task", job)
            self._order(*command, job)
        return bool(running)

    def _break(self, what: str) -> str:
        """A whole node, to be broken; none if it is the last one."""
        whole = [node for node in self._nodes if node not in self._repairs]
        if len(whole) < 2:
            return ""
        node = self._dice.choice(whole)
        self._count(what + " a node", node)
        self._repairs[node] = time.monotonic() + self._dice.uniform(*BROKEN_SECONDS)
        return node

    def _down(self, node: str) -> None:
        self._order("scontrol", "update", f"nodename={node}", "state=down", "reason=chaos")

    def _start_waiting(self) -> None:
        for queued in self.queue():
            if queued.state == "PENDING" and "BeginTime" in queued.reason:
                self._order("scontrol", "update", f"jobid={queued.job}", "starttime=now")
            elif queued.state == "PENDING" and "held" in queued.reason.lower():
                self._count("released", queued.job)
                self._order("scontrol", "release", queued.job)

    def _repair(self, node: str) -> None:
        if not (self._lab.folder / "pid" / f"slurmd-{node}.pid").exists():
            self._lab.start_node(node)
        self._order("scontrol", "update", f"nodename={node}", "state=resume")  # refused where it is up by itself
        del self._repairs[node]
        self._say(f"repaired {node}")

    def _order(self, *command: str) -> None:
        """Give Slurm a command without waiting: where a node is away, it may wait for that one for a minute."""
        self._orders = [order for order in self._orders if order.poll() is None]
        quiet = subprocess.DEVNULL
        self._orders.append(subprocess.Popen(command, env=self._lab.env, stdin=quiet, stdout=quiet, stderr=quiet))

    def _count(self, what: str, which: str) -> None:
        self.counts[what] += 1
        self._say(f"{what}: {which}")


def send(task: Task, number: int) -> None:
    """Send a process a signal, unless it has ended, and another may have its number now."""
    with contextlib.suppress(OSError, LabError):
        if _born(task.pid) == task.born:
            os.kill(task.pid, number)


def _tasks(slurm_conf: str) -> Iterator[Task]:
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, LabError):
            if not folder.name.isdigit() or not _is_python(folder):
                continue
            pairs = (folder / "environ").read_bytes().decode("utf-8", "replace").split("\0")
            values = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
            if values.get("SLURM_CONF") == slurm_conf and "SLURM_PROCID" in values and "SLURMD_NODENAME" in values:
                job = values.get("SLURM_ARRAY_JOB_ID", values["SLURM_JOB_ID"])
                job += f"_{values['SLURM_ARRAY_TASK_ID']}" if "SLURM_ARRAY_TASK_ID" in values else ""
                yield Task(job, values["SLURMD_NODENAME"], int(folder.name), _born(int(folder.name)))


def _is_python(folder: Path) -> bool:
    return os.path.basename((folder / "cmdline").read_bytes().split(b"\0")[0]).startswith(b"python")


def _born(pid: int) -> int:
    """When a process was started, in ticks since boot (proc(5)); LabError for one that has ended."""
    state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if state == "Z":
        raise LabError(f"process {pid} has ended")
    return int(fields[18])
