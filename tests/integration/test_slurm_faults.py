"""What nodes, limits and users do to a run on a real cluster, and what is there after it was submitted again.

The pictures are rehearsals, which cost no torch: a second each with steps=1000, so that there is time to kill.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Iterator

import pytest

from tests.integration.login_node import LoginNode, Submission, faults, leftovers, log_text, pictures, records
from tests.slurm_lab.cluster import SlurmLab
from tests.slurm_lab.fixtures import require_slurm
from tests.slurm_lab.processes import eventually, is_running

pytestmark = pytest.mark.slurm

REHEARSAL = "model=rehearsal", "cluster=scnet-dcu", "cluster.cpus_per_card=1"
SLOW = "steps=1000", "batch_size=1", "images_per_shard=10"
PROMPTS = tuple(f"picture {number}" for number in range(10))


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmLab]:
    """A cluster of its own: nodes crash here, after which Slurm 22.05 may take an idle one's cards for used."""
    require_slurm()
    with SlurmLab(accounting=False) as lab:
        yield lab


@pytest.fixture
def login(cluster: SlurmLab, tmp_path: Path) -> LoginNode:
    return LoginNode(cluster, tmp_path)


@pytest.fixture
def begun(login: LoginNode) -> Submission:
    """A run whose worker has written its first record, with seconds of work ahead."""
    submission = login.submit(login.prompts(PROMPTS), *REHEARSAL, *SLOW)
    assert eventually(lambda: records(submission.run)), log_text(submission.run)
    return submission


def worker_of(submission: Submission) -> int:
    """The process that makes the pictures, as it signed its records."""
    return int(records(submission.run)[-1]["worker"].rpartition("/")[2])


def finish(login: LoginNode) -> Submission:
    """Type the same command again, and wait."""
    again = login.submit(login.folder / "prompts.txt", *REHEARSAL, *SLOW)
    assert set(login.lab.wait(again.job).values()) == {"COMPLETED"}, log_text(again.run)
    return again


def test_killed_worker_fails_its_job_and_is_made_good(login: LoginNode, begun: Submission) -> None:
    os.kill(worker_of(begun), signal.SIGKILL)
    assert set(login.lab.wait(begun.job).values()) == {"FAILED"}
    kept = pictures(begun.run)
    assert 0 < len(kept) < len(PROMPTS)

    again = finish(login)
    assert again.run == begun.run
    assert faults(begun.run, planned=len(PROMPTS)) == []
    assert kept.items() <= pictures(begun.run).items()


def test_cancelled_run_is_made_good(login: LoginNode, begun: Submission) -> None:
    worker = worker_of(begun)
    login.lab.output("scancel", begun.job)
    assert set(login.lab.wait(begun.job).values()) == {"CANCELLED"}
    assert not is_running(worker)

    finish(login)
    assert faults(begun.run, planned=len(PROMPTS)) == []


@contextlib.contextmanager
def lost_node(login: LoginNode, job: str, *, daemon_only: bool) -> Iterator[None]:
    """Inside, the node of the job has crashed, or its daemon has, and Slurm has noticed and queued the job again."""
    node = login.lab.output("squeue", "-h", "-j", job, "-o", "%N").strip()
    login.lab.kill_node(node, daemon_only=daemon_only)
    try:
        login.lab.output("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")
        login.lab.start_again(job)
        yield
    finally:
        login.lab.start_node(node)
        assert eventually(lambda: login.lab.output("sinfo", "-h", "-n", node, "-o", "%T") == "idle\n")


def test_crashed_node_costs_no_picture_and_no_command(login: LoginNode, begun: Submission) -> None:
    """Slurm gives the task to another node once it knows; nobody submits again."""
    with lost_node(login, begun.job, daemon_only=False):
        assert set(login.lab.wait(begun.job).values()) == {"COMPLETED"}, log_text(begun.run)
    assert faults(begun.run, planned=len(PROMPTS)) == []


def test_two_writers_of_one_shard_end_in_one_copy(login: LoginNode, begun: Submission) -> None:
    """A worker whose node was given up comes back, while its successor makes the same pictures elsewhere."""
    survivor = worker_of(begun)
    os.kill(survivor, signal.SIGSTOP)
    with lost_node(login, begun.job, daemon_only=True):
        assert eventually(lambda: worker_of(begun) != survivor), log_text(begun.run)
        os.kill(survivor, signal.SIGCONT)
        assert set(login.lab.wait(begun.job).values()) == {"COMPLETED"}, log_text(begun.run)
        assert eventually(lambda: not is_running(survivor))
    assert faults(begun.run, planned=len(PROMPTS)) == []
    assert leftovers(begun.run) == []


@pytest.mark.parametrize("line", ["module load missing", "module switch compiler/rocm/missing"])
def test_setup_line_that_fails_ends_the_job_with_its_reason(login: LoginNode, line: str) -> None:
    """A `module switch` that fails unloads the compiler that was there, and a shell would go on without any."""
    submission = login.submit(login.prompts(PROMPTS), *REHEARSAL, f"cluster.setup=[{line}]")
    assert set(login.lab.wait(submission.job).values()) == {"FAILED"}
    assert f"the setup failed with status 1 at: {line}" in log_text(submission.run)
    said = login.jobs("status", str(submission.run))
    assert "0 of 10 pictures done" in said
    assert "Unable to locate a modulefile" in said


def test_rendered_file_ends_with_the_reason_too(login: LoginNode) -> None:
    file = login.render(login.prompts(PROMPTS), *REHEARSAL, "cluster.setup=[module load missing]")
    run = next(login.folder.glob("prompts-*"))
    assert set(login.lab.wait(login.sbatch(file)).values()) == {"FAILED"}
    assert "the setup failed with status 1 at: module load missing" in log_text(run)
    assert pictures(run) == {}
