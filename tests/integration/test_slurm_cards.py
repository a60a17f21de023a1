"""Cards and allocations on a real cluster: every process takes a card of its own, and they share the work.

A generic GRES such as `dcu` tells a job nothing; a site may have patched that. The pictures are rehearsals, no torch.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Iterator, List

import pytest

from tests.integration.login_node import LoginNode, faults, log_text
from tests.slurm_lab.cluster import SlurmLab

pytestmark = pytest.mark.slurm

PROMPTS = tuple(f"picture {number}" for number in range(6))
SHARDS = "model=rehearsal", "cluster=scnet-dcu", "cluster.cpus_per_card=1", "images_per_shard=2", "steps=1"
USERS_ALLOCATION = ("salloc", "-p", "kshdtest", "-N", "1", "-n", "16", "--gres=dcu:2")


@pytest.fixture
def login(slurm: SlurmLab, tmp_path: Path) -> LoginNode:
    return LoginNode(slurm, tmp_path)


@pytest.fixture(params=[False, True], ids=["generic-gres", "patched-site"])
def site(request: pytest.FixtureRequest, slurm: SlurmLab) -> Iterator[SlurmLab]:
    """The cluster, whose tasks find HIP_VISIBLE_DEVICES set or not."""
    slurm.export_devices(request.param)
    yield slurm
    slurm.export_devices(False)


def cards(text: str) -> List[str]:
    """The cards that processes said they took, and out of how many."""
    return sorted(re.findall(r"card (\d of \d listed \(.*?\))", text))


def test_processes_of_a_task_take_the_cards_that_slurm_gave(site: SlurmLab, tmp_path: Path) -> None:
    """Another job holds the node's card 0, so the two cards are 1 and 2."""
    login = LoginNode(site, tmp_path)
    held = site.sbatch("sleep 600", "-w", "dcu3", "--gres=dcu:1", "-o", "/dev/null")
    try:
        site.wait_for(held, {"RUNNING"})
        one_task = "cards=2", "images_per_shard=3", "cluster.directives.nodelist=dcu3"
        submission = login.submit(login.prompts(PROMPTS), *SHARDS, *one_task)
        assert set(site.wait(submission.job).values()) == {"COMPLETED"}, log_text(submission.run)
    finally:
        site.output("scancel", held)
    assert cards(log_text(submission.run)) == ["1 of 2 listed (1,2)", "2 of 2 listed (1,2)"]
    assert faults(submission.run, planned=len(PROMPTS)) == []


def test_gpu_profile_takes_the_cards_that_slurm_lists(login: LoginNode) -> None:
    settings = "model=rehearsal", "cluster=slurm-gpu", "cluster.cpus_per_card=1", "cards=2", "images_per_shard=3"
    submission = login.submit(login.prompts(PROMPTS), *settings, "steps=1")
    assert set(login.lab.wait(submission.job).values()) == {"COMPLETED"}, log_text(submission.run)
    assert cards(log_text(submission.run)) == ["0 of 2 listed (0,1)", "1 of 2 listed (0,1)"]
    assert faults(submission.run, planned=len(PROMPTS)) == []


def planned_run(login: LoginNode) -> Path:
    """A run that nobody works on yet."""
    login.render(login.prompts(PROMPTS), *SHARDS)
    return next(login.folder.glob("prompts-*"))


def test_users_allocation_uses_both_cards_and_says_so(login: LoginNode) -> None:
    """16 tasks and 2 cards: two of them work, and the others leave them alone."""
    run = planned_run(login)
    said = login.jobs("work", str(run), before=(*USERS_ALLOCATION, "srun"))
    assert cards(said) == ["0 of 2 listed (0,1)", "1 of 2 listed (0,1)"]
    assert said.count("has no card of its own: 2 are here") == 14
    assert faults(run, planned=len(PROMPTS)) == []


def test_two_nodes_of_an_allocation_share_the_shards(login: LoginNode) -> None:
    run = planned_run(login)
    allocation = ("salloc", "-N", "2", "--ntasks-per-node=2", "--gres=dcu:2", "srun")
    said = login.jobs("work", str(run), before=allocation)
    assert sorted(re.findall(r"process (\d) of (\d): (\d) shards are its share", said)) == [
        ("0", "4", "1"),
        ("1", "4", "1"),
        ("2", "4", "1"),
        ("3", "4", "0"),
    ]
    assert faults(run, planned=len(PROMPTS)) == []


def test_two_nodes_with_unlike_numbers_of_tasks_leave_no_shard_out(login: LoginNode) -> None:
    """4 tasks as 3 and 1 on nodes of 2 cards: three of them work."""
    run = planned_run(login)
    said = login.jobs("work", str(run), before=("salloc", "-N", "2", "-n", "4", "--gres=dcu:2", "srun"))
    assert sorted(re.findall(r"process (\d) of (\d): (\d) shards are its share", said)) == [
        (str(r), "3", "1") for r in range(3)
    ]
    assert said.count("has no card of its own: 2 are here") == 1
    assert faults(run, planned=len(PROMPTS)) == []


def test_submitting_from_inside_an_allocation_asks_for_what_the_job_needs(login: LoginNode) -> None:
    """The allocation's own SLURM_* variables, 16 tasks among them, stay out of the new job."""
    submission = login.submit(login.prompts(PROMPTS), *SHARDS, before=USERS_ALLOCATION)
    assert set(login.lab.wait(submission.job).values()) == {"COMPLETED"}, log_text(submission.run)
    assert faults(submission.run, planned=len(PROMPTS)) == []


def test_job_that_is_given_no_environment_passes_its_own_on(login: LoginNode) -> None:
    """srun would take the job's --export=NONE over, and leave its tasks without what the setup exported."""
    settings = *SHARDS, "cluster.directives.export=NONE", "cluster.setup=[]"
    submission = login.submit(login.prompts(PROMPTS), *settings)
    assert set(login.lab.wait(submission.job).values()) == {"COMPLETED"}, log_text(submission.run)
    assert faults(submission.run, planned=len(PROMPTS)) == []
    file = login.render(login.prompts(PROMPTS), *settings, "steps=2")
    assert set(login.lab.wait(login.sbatch(file)).values()) == {"COMPLETED"}
    assert faults(max(login.folder.glob("prompts-*")), planned=len(PROMPTS)) == []


def test_run_is_the_same_with_accounting(slurm_with_accounting: SlurmLab, tmp_path: Path) -> None:
    login = LoginNode(slurm_with_accounting, tmp_path)
    submission = login.submit(login.prompts(PROMPTS), *SHARDS)
    assert set(login.lab.wait(submission.job).values()) == {"COMPLETED"}, log_text(submission.run)
    assert faults(submission.run, planned=len(PROMPTS)) == []
    assert "6 of 6 pictures done" in login.jobs("status", str(submission.run))
