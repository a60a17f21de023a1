"""A run on a real cluster is seen and steered from the login node, without accounting as with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List

import pytest

from tests.integration.login_node import LoginNode, Submission, faults, log_text, pictures, records
from tests.slurm_lab.cluster import SlurmLab
from tests.slurm_lab.fixtures import require_slurm
from tests.slurm_lab.processes import eventually

pytestmark = pytest.mark.slurm

REHEARSAL = "model=rehearsal", "cluster=scnet-dcu", "cluster.cpus_per_card=1", "batch_size=1"
SLOW = "steps=1000", "images_per_shard=8", "max_parallel=1", "seconds_per_image=100"  # so that a task has one shard
PROMPTS = tuple(f"picture {number}" for number in range(16))


@pytest.fixture
def login(slurm: SlurmLab, tmp_path: Path) -> LoginNode:
    return LoginNode(slurm, tmp_path)


def begin(login: LoginNode, pictures: int = len(PROMPTS)) -> Submission:
    """A run whose first task has made a picture and has seconds of work ahead; its second task, if any, waits."""
    submission = login.submit(login.prompts(PROMPTS[:pictures]), *REHEARSAL, *SLOW)
    assert eventually(lambda: records(submission.run)), log_text(submission.run)
    return submission


def status(login: LoginNode, submission: Submission) -> Dict[str, Any]:
    """What `status --json` says."""
    return json.loads(login.jobs("status", str(submission.run), "--json"))


def ends(submission: Submission) -> List[str]:
    """How the processes of the run left, as they wrote it."""
    return [json.loads(path.read_text())["end"] for path in (submission.run / "workers").glob("*/*.json")]


def test_a_run_is_seen_at_work_and_cancelled(login: LoginNode) -> None:
    """Without accounting, which this cluster lacks."""
    submission = begin(login)
    seen = status(login, submission)
    [worker] = seen["present"]
    assert worker["host"] == login.lab.output("squeue", "-h", "-t", "R", "-j", submission.job, "-o", "%N").strip()
    assert worker["job"] == f"{submission.job}_0"
    assert worker["shards"] == [0]
    assert worker["seconds_left"] > 0
    assert seen["queued"] == {"running": 1, "pending": {"JobArrayTaskLimit": 1}, "held": 0}
    assert seen["lost"] == []

    said = login.jobs("cancel", str(submission.run))
    assert f"cancelled 1 job with 2 tasks in the queue: {submission.job}" in said
    assert set(login.lab.wait(submission.job).values()) == {"CANCELLED"}
    assert ends(submission) == ["told to stop"]
    assert "nothing of this run is in the queue" in login.jobs("cancel", str(submission.run))
    said = login.jobs("watch", str(submission.run), status=4)
    assert "now: nobody at work" in said
    assert "CANCELLED" in login.jobs("logs", str(submission.run), "--failed")


def test_a_paused_run_ends_in_order_and_goes_on(login: LoginNode) -> None:
    submission = begin(login, pictures=8)
    login.jobs("pause", str(submission.run))
    assert set(login.lab.wait(submission.job).values()) == {"COMPLETED"}, log_text(submission.run)
    assert set(ends(submission)) == {"paused"}
    kept = pictures(submission.run)
    assert 0 < len(kept) < 8
    assert "paused" in login.jobs("status", str(submission.run))

    said = login.jobs("resume", str(submission.run))
    job = said.splitlines()[0].split()[-1]
    assert set(login.lab.wait(job).values()) == {"COMPLETED"}, log_text(submission.run)
    assert faults(submission.run, planned=8) == []
    assert kept.items() <= pictures(submission.run).items()


def test_a_node_that_crashed_is_seen_as_lost(tmp_path: Path) -> None:
    """On a cluster of its own, so that nobody has to wait until the node is back."""
    require_slurm()
    with SlurmLab(accounting=False, dcu_nodes=1) as lab:
        login = LoginNode(lab, tmp_path)
        submission = begin(login, pictures=8)
        [worker] = status(login, submission)["present"]
        lab.kill_node(worker["host"])
        lab.output("scontrol", "update", f"nodename={worker['host']}", "state=down", "reason=lost")
        assert set(lab.wait_for(submission.job, {"PENDING"})) == {worker["job"]}
        [lost] = status(login, submission)["lost"]
        assert (lost["host"], lost["job"], lost["shards"]) == (worker["host"], worker["job"], [0])
        assert f"lost on {worker['host']}: a worker" in login.jobs("status", str(submission.run))


@pytest.mark.parametrize("rendered", [False, True])
def test_why_the_setup_failed_is_said_once_for_all_tasks(login: LoginNode, rendered: bool) -> None:
    settings = *REHEARSAL, "images_per_shard=4", "seconds_per_image=200", "cluster.setup=[module load missing]"
    if rendered:
        job = login.sbatch(login.render(login.prompts(PROMPTS), *settings))
        run = next(login.folder.glob("prompts-*"))
    else:
        submission = login.submit(login.prompts(PROMPTS), *settings)
        job, run = submission.job, submission.run
    states = login.lab.wait(job)
    assert (set(states.values()), len(states)) == ({"FAILED"}, 4)
    said = login.jobs("logs", str(run), "--failed").splitlines()
    assert len([line for line in said if " and 3 more, " in line]) == 1
    assert said[-1] == "    jobs: error: the setup failed with status 1 at: module load missing"
    assert "Unable to locate a modulefile" in said[-2]


def test_a_rendered_files_jobs_are_found_and_cancelled_by_name(login: LoginNode) -> None:
    """No line of the run's own files names a job that has not begun."""
    file = login.render(login.prompts(PROMPTS), *REHEARSAL, *SLOW)
    job = login.lab.output("sbatch", "--parsable", "--hold", str(file), cwd=login.folder).strip()
    other = login.lab.sbatch("sleep 60", "--hold", f"--job-name={next(login.folder.glob('prompts-*')).name}")
    run = next(login.folder.glob("prompts-*"))
    assert "2 jobs held" in login.jobs("status", str(run))
    assert f"cancelled 1 job with 2 tasks in the queue: {job}" in login.jobs("cancel", str(run))
    assert set(login.lab.states(job).values()) == {"CANCELLED"}
    assert set(login.lab.states(other).values()) == {"PENDING"}
    login.lab.output("scancel", other)
