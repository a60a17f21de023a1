"""A private Slurm cluster for tests: real daemons as plain processes of this user, all of it in one short folder.

Four nodes `dcu1`..`dcu4` of partition `kshdtest` (32 cores, `--gres=dcu:4`) and one node `gpu1` of partition `gpu`,
all on this machine; nothing outside the folder is touched. Two labs can be up at once, in one session or in two.
"""

from __future__ import annotations

import datetime
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Container, Dict, List, Optional, Tuple, Type

from tests.slurm_lab.machine import MOST_NODES, LabError, clean_environment, reserve_ports, short_folder
from tests.slurm_lab.processes import PATIENCE_S

HERE = Path(__file__).parent
# A node refuses a job that begins in the second in which it lost it ("Job credential revoked"), and Slurm then gives it
# up as FAILED: it is what the pause before a requeued job is for.
CREDENTIAL_S = 2.0
ENDED = frozenset(
    ["COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"]
)


# What the controller writes into its log, such as "[2025-01-31T08:00:00.123] _job_complete: JobId=7_0(8) done".
EVENT = re.compile(r"^\[(\S+)\] .*?(Started|Allocate|_job_complete:) JobId=(\d+(?:_\d+)?)(?!.* WEX)", re.MULTILINE)


class SlurmLab:
    """One cluster. `with SlurmLab(accounting=False) as lab:` has it up inside, and down after, whatever happens."""

    def __init__(self, *, accounting: bool, dcu_nodes: int = 4, namespaces: bool = False, enforce: str = "") -> None:
        """`enforce` is what accounting insists on, such as `wckeys`; `namespaces` needs root."""
        if dcu_nodes > MOST_NODES:
            raise LabError(f"a lab has at most {MOST_NODES} DCU nodes, got {dcu_nodes}")
        self.switches = {
            "ACCOUNTING": str(int(accounting)),
            "DCU_NODES": str(dcu_nodes),
            "NODE_NAMESPACES": str(int(namespaces)),
            "ENFORCE": enforce,
        }
        self.folder = Path()
        self.env: Dict[str, str] = {}
        self._guard: Optional[socket.socket] = None
        self._undertaker: Optional[subprocess.Popen[bytes]] = None
        self._reaper: Optional[subprocess.Popen[bytes]] = None

    def __enter__(self) -> SlurmLab:
        self.up()
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.down()

    def up(self) -> None:
        """Start the cluster and wait until every node is idle: 0.3 s, or 2.5 s with accounting, on a free machine."""
        self._guard, port = reserve_ports()
        self.folder = short_folder()
        self.env = clean_environment(os.environ)
        self.env.update(SLURM_CONF=str(self.folder / "etc" / "slurm.conf"), MODULEPATH=str(HERE / "modulefiles"))
        lab = {**self.env, **self.switches, "LAB": str(self.folder), "PORT": str(port)}
        self._undertaker = subprocess.Popen(
            ["bash", "-c", 'read -r _; exec bash "$0"', str(HERE / "down.sh")],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=lab,
            start_new_session=True,
        )
        said = self.folder / "up.log"  # not a pipe, which the daemons would hold open
        with said.open("wb") as log:
            self._reaper = subprocess.Popen(
                [sys.executable, str(HERE / "reaper.py"), "bash", str(HERE / "up.sh")],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=lab,
                start_new_session=True,
            )
        assert self._reaper.stdout is not None
        status = self._reaper.stdout.readline()
        if status != b"0\n":
            text = f"the cluster did not come up\n{said.read_text()}\n{self.logs()}"
            self.down()
            raise LabError(text)

    def down(self) -> None:
        """End every process of the cluster and remove its folder. Death of this process has the same effect."""
        if self._undertaker is not None and self._undertaker.stdin is not None:
            self._undertaker.stdin.write(b"\n")
            self._undertaker.stdin.close()
            self._undertaker.wait(timeout=PATIENCE_S)
            self._undertaker = None
        if self._reaper is not None and self._reaper.stdout is not None:
            self._reaper.terminate()
            self._reaper.wait(timeout=PATIENCE_S)
            self._reaper.stdout.close()
            self._reaper = None
        if self._guard is not None:
            self._guard.close()
            self._guard = None

    def run(self, *command: str, stdin: str = "", cwd: Optional[Path] = None) -> subprocess.CompletedProcess[str]:
        """Run a command as a user of the cluster would, whatever its exit status."""
        return subprocess.run(
            command,
            input=stdin,
            cwd=cwd,
            env=self.env,
            timeout=PATIENCE_S,
            text=True,
            capture_output=True,
            check=False,
            restore_signals=False,  # SIGPIPE stays ignored: munge hangs up on a client that is kept waiting
        )

    def output(self, *command: str, stdin: str = "", cwd: Optional[Path] = None) -> str:
        """What a command prints; LabError with its words if it fails."""
        done = self.run(*command, stdin=stdin, cwd=cwd)
        if done.returncode:
            raise LabError(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def sbatch(self, script: str, *options: str, cwd: Optional[Path] = None) -> str:
        """Submit the lines of a bash script; the job's id."""
        return self.output("sbatch", "--parsable", *options, stdin=f"#!/bin/bash\n{script}\n", cwd=cwd).strip()

    def states(self, job: str) -> Dict[str, str]:
        """The state of a job, or of every task of an array, by id."""
        lines = self.output("squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%i|%T").splitlines()
        return dict(line.split("|") for line in lines)

    def wait(self, job: str) -> Dict[str, str]:
        """Poll until the job, or every task of an array, has ended; the states by id."""
        return self.wait_for(job, ENDED)

    def wait_for(self, job: str, wanted: Container[str]) -> Dict[str, str]:
        """Poll until every task of a job is in one of the wanted states; the states by id."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            states = self.states(job)
            if states and all(state in wanted for state in states.values()):
                return states
            if time.monotonic() > deadline:
                raise LabError(f"job {job} is {states} after {PATIENCE_S} s\n{self.describe(job)}\n{self.logs()}")
            time.sleep(0.1)

    def describe(self, job: str) -> str:
        """All that the controller says of a job, the indices of its cards included."""
        return self.output("scontrol", "show", "job", "-d", job)

    def spans(self) -> Dict[str, Tuple[float, float]]:
        """When each job or array task last began and ended, to the millisecond, in seconds since 1970."""
        begun: Dict[str, float] = {}
        spans: Dict[str, Tuple[float, float]] = {}
        for moment, what, job in EVENT.findall((self.folder / "log" / "slurmctld.log").read_text(errors="replace")):
            seconds = datetime.datetime.fromisoformat(moment).timestamp()
            if what != "_job_complete:":
                begun[job] = seconds
            elif job in begun:
                spans[job] = begun[job], seconds
        return spans

    def kill_node(self, node: str, *, daemon_only: bool = False) -> None:
        """Crash a node; or only its daemon, so that its jobs live on unseen."""
        self._script("nodekill.sh", node, *(["daemon"] if daemon_only else []))

    def start_node(self, node: str) -> None:
        """Start a killed node's daemon again; jobs on it may take seconds longer to end, see reaper.py."""
        self._script("nodeup.sh", node)

    def revive_controller(self) -> bool:
        """Start the controller again if it has crashed; whether it had."""
        crashed = not _lives(self.folder / "pid" / "slurmctld.pid")
        if crashed:
            self._script("ctlup.sh")
        return crashed

    def start_again(self, job: str) -> None:
        """Wait until Slurm has put the job, which its node lost, back into the queue, and have it start at once."""
        self.wait_for(job, {"PENDING"})
        time.sleep(CREDENTIAL_S)
        self.output("scontrol", "update", f"jobid={job}", "starttime=now")

    def export_devices(self, wanted: bool) -> None:
        """Whether tasks find HIP_VISIBLE_DEVICES set, as at sites that patch it in; at first they do not."""
        switch = self.folder / "etc" / "export-devices"
        if wanted:
            switch.touch()
        elif switch.exists():
            switch.unlink()

    def logs(self, lines: int = 12) -> str:
        """The last lines of every daemon's log."""
        files = sorted((self.folder / "log").glob("*.log"))
        tails = [f"== {file.name}\n" + "\n".join(_tail(file, lines)) for file in files]
        return "\n".join(tails)

    def _script(self, name: str, *arguments: str) -> None:
        done = subprocess.run(
            ["bash", str(HERE / name), *arguments],
            env={**self.env, "LAB": str(self.folder)},
            stdin=subprocess.DEVNULL,
            timeout=PATIENCE_S,
            check=False,
        )
        if done.returncode:
            raise LabError(f"{name} {' '.join(arguments)} ended with {done.returncode}\n{self.logs()}")


def _lives(pid_file: Path) -> bool:
    """Whether a daemon does; one that has ended may stay a zombie where process 1 reaps late."""
    try:
        stat = Path("/proc", pid_file.read_text().strip(), "stat").read_text()
    except OSError:
        return False
    return not stat.rpartition(")")[2].split()[0].startswith("Z")


def _tail(file: Path, lines: int) -> List[str]:
    return file.read_text(errors="replace").splitlines()[-lines:]
