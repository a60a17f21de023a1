"""A run made on a cluster where everything goes wrong, by a user who types at random, and what is there in the end.

Whatever happens is drawn from one seed and written down with its time. When things happen, relative to the work, the
machine decides: the same seed gives the same accidents in the same order, not the same run.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from tests.integration.login_node import PROJECT, LoginNode, faults, leftovers, picture_count, pictures, records
from tests.slurm_lab.accidents import Accidents
from tests.slurm_lab.processes import PATIENCE_S

Say = Callable[[str], None]

# How often each thing happens, relative to the others.
ACCIDENTS = {
    "kill_worker": 6,
    "stop_worker": 3,
    "requeue": 3,
    "warn": 2,
    "crash_node": 3,
    "lose_daemon": 3,
    "down_node": 2,
    "cancel_task": 2,
    "cancel_all": 1,
}
TYPED = {"submit": 1, "resume": 1, "both at once": 2, "cancel": 1}
EVENTS = {**ACCIDENTS, **TYPED}
TERMINALS = 3  # in which the user types at a time
MOST_IN_QUEUE = 3  # times the tasks of the first submission; a user does not submit again behind that
ROUNDS = 10  # of resuming, until a healed cluster must have made all


class Diary:
    """What happened, line by line with the seconds since it was begun; also in a file, if there is one."""

    def __init__(self, path: Optional[Path] = None) -> None:
        self.lines: List[str] = []
        self._path = path
        self._begun = time.monotonic()

    def __call__(self, text: str) -> None:
        self.lines.append(f"{time.monotonic() - self._begun:7.1f} s  {text}")
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(self.lines[-1] + "\n")


class Ordeal:
    """One run folder's bad day. `settings` are those of every submission."""

    def __init__(self, login: LoginNode, accidents: Accidents, dice: random.Random, say: Say) -> None:
        self.complaints: List[str] = []  # what a command said that was refused
        self.problems: List[str] = []  # what no command may do
        self._login = login
        self._accidents = accidents
        self._dice = dice
        self._say = say
        self._commands = set(re.findall(r"^ {4}(\w+) ", login.jobs("--help"), re.MULTILINE))
        self._prompts = Path()
        self._settings: Tuple[str, ...] = ()
        self._most = 0
        self._typing: List[Tuple[Sequence[str], subprocess.Popen[str]]] = []
        self.run = Path()

    def begin(self, prompts: Path, *settings: str) -> None:
        """Submit a run."""
        self._prompts, self._settings = prompts, settings
        submission = self._login.submit(prompts, *settings)
        self.run = submission.run
        self._most = MOST_IN_QUEUE * len(self._accidents.queue())
        self._say(f"began {self.run}")

    def suffer(self, pause: Tuple[float, float], *, seconds: float) -> bool:
        """Let things happen, `pause` seconds apart, for so long or until all pictures are there; whether they are."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._accidents.recover()
            self._listen()
            idle = not self._typing and not self._accidents.queue()
            if idle and self._seems_whole():
                return True
            self._happen(idle)
            time.sleep(self._dice.uniform(*pause))
        return False

    def heal(self) -> int:
        """Repair the cluster and resume until nothing is missing; how often that was."""
        for number in range(ROUNDS):
            self._wait_for_quiet()
            if "nothing is missing" in self._answer("resume", str(self.run))[1]:
                return number
            self._accidents.counts["resumed at the end"] += 1
        self.problems.append(f"something is missing after {ROUNDS} rounds of resuming on a healthy cluster")
        return ROUNDS

    def verdict(self, undisturbed: Path) -> List[str]:
        """All that is wrong with the run, which should be as the one that nothing befell."""
        found, wanted = pictures(self.run), pictures(undisturbed)
        plan = [json.loads(line) for line in (self.run / "plan.jsonl").read_text(encoding="utf-8").splitlines()]
        planned = {image["index"]: (image["request_id"], image["file"]) for image in plan}
        problems = [*self.problems, *faults(self.run, planned=len(plan))]
        problems += [f"{name} differs from the undisturbed one" for name in _differing(found, wanted)]
        problems += [f"{path} is left over" for path in leftovers(self.run)]
        problems += [
            f"the record of picture {record['index']} is not of what was planned"
            for record in records(self.run)
            if planned.get(record["index"]) != (record["request_id"], record.get("file"))
        ]
        if "verify" in self._commands:
            status, said = self._answer("verify", str(self.run))
            problems += [f"verify: {line}" for line in said.splitlines() if status]
        return problems

    @property
    def events(self) -> int:
        """How much has happened so far."""
        return sum(self._accidents.counts.values())

    def progress(self) -> str:
        """Where the run stands."""
        return (
            f"{len(pictures(self.run))} pictures, {self.events} events, "
            f"{self._accidents.broken} nodes away, {len(self._accidents.queue())} tasks in the queue"
        )

    def _happen(self, idle: bool) -> None:
        """One accident or command, unless none is possible now; a user whose cluster is idle submits."""
        [name] = self._dice.choices(list(EVENTS), list(EVENTS.values()))
        if idle:
            self._command(self._dice.choice(["submit", "resume"]))
        elif name in ACCIDENTS:
            getattr(self._accidents, name)()
        elif len(self._typing) < TERMINALS and (name == "cancel" or len(self._accidents.queue()) < self._most):
            self._command(name)

    def _command(self, name: str) -> None:
        if name == "cancel" and "cancel" not in self._commands:
            self._accidents.cancel_all()
            return
        self._accidents.counts[f"typed {name}"] += 1
        submit = ("submit", str(self._prompts), f"outputs={self._login.folder}", *self._settings)
        own = (name, str(self.run))
        commands = {"submit": [submit], "both at once": [submit, ("resume", str(self.run))]}.get(name, [own])
        self._typing += [(words, self._start(words)) for words in commands]

    def _answer(self, *words: str) -> Tuple[int, str]:
        """Type `python -m jobs ...` and wait; its exit status and what it prints."""
        process = self._start(words)
        said = self._heard(words, process)
        return process.returncode, said

    def _listen(self, *, to_all: bool = False) -> None:
        """Take down what the commands have said that have ended."""
        for words, process in list(self._typing):
            if to_all or process.poll() is not None:
                self._typing.remove((words, process))
                self._heard(words, process)

    def _start(self, words: Sequence[str]) -> subprocess.Popen[str]:
        """What is typed in one more terminal."""
        return subprocess.Popen(
            [sys.executable, "-m", "jobs", *words],
            cwd=PROJECT,
            env=self._login.lab.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            restore_signals=False,  # as in SlurmLab.run
        )

    def _heard(self, words: Sequence[str], process: subprocess.Popen[str]) -> str:
        """All that a command prints. A traceback is a fault, a refusal none."""
        said = process.communicate(timeout=PATIENCE_S)[0]
        last = said.splitlines()[-1] if said else ""
        self._say(f"typed {words[0]} {Path(words[1]).name}, status {process.returncode}: {last}")
        if "Traceback" in said:
            self.problems.append(f"jobs {words[0]} broke: {last}")
        elif process.returncode:
            self.complaints.append(f"jobs {words[0]}, status {process.returncode}: {last}")
        return said

    def _seems_whole(self) -> bool:
        with (self.run / "plan.jsonl").open(encoding="utf-8") as plan:
            planned = sum(1 for _ in plan)
        return picture_count(self.run) == planned == len({record["index"] for record in records(self.run)})

    def _wait_for_quiet(self) -> None:
        """Until no job is in the queue and no process of one lives, nor one that Slurm has given up; a problem if they
        stay and make nothing.
        """
        self._listen(to_all=True)
        made, deadline = -1, 0.0
        while True:
            self._accidents.recover(all_now=True)
            queued, working, there = self._accidents.queue(), self._accidents.workers(), picture_count(self.run)
            if not queued and not working:
                return
            if there > made:
                made, deadline = there, time.monotonic() + PATIENCE_S
            elif time.monotonic() > deadline:
                words = [*map(str, queued), *map(str, working)]
                self.problems.append(f"nothing made for {PATIENCE_S} s on a healthy cluster by {', '.join(words)}")
                return
            time.sleep(0.5)


def _differing(found: Dict[str, bytes], wanted: Dict[str, bytes]) -> List[str]:
    return [name for name in sorted(found.keys() & wanted.keys()) if found[name] != wanted[name]]
