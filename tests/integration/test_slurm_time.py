"""A run against the clock on a real cluster: the limit, its warning, and what goes on where a job had to stop.

The pictures are rehearsals, a second each with steps=1000.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Set

import pytest

from tests.integration.login_node import LoginNode, faults, leftovers, log_text, pictures, records
from tests.slurm_lab.cluster import SlurmLab
from tests.slurm_lab.processes import eventually

pytestmark = pytest.mark.slurm

REHEARSAL = "model=rehearsal", "cluster=scnet-dcu", "cluster.cpus_per_card=1"
SLOW = "steps=1000", "batch_size=1"


@pytest.fixture
def login(slurm: SlurmLab, tmp_path: Path) -> LoginNode:
    return LoginNode(slurm, tmp_path)


def lines(count: int) -> list[str]:
    return [f"picture {number}" for number in range(count)]


def test_run_longer_than_its_limit_stops_by_itself_and_goes_on_until_it_is_whole(login: LoginNode) -> None:
    """60 s of pictures in jobs of one minute: none is ended by Slurm, and nobody types anything."""
    asked = *REHEARSAL, *SLOW, "time_limit_min=1", "images_per_shard=60"
    submission = login.submit(login.prompts(lines(60)), *asked)
    login.lab.wait_for(submission.job, {"RUNNING"})
    login.lab.start_again(submission.job)
    assert set(login.lab.wait(submission.job).values()) == {"COMPLETED"}, log_text(submission.run)
    assert faults(submission.run, planned=60) == []
    assert len({record["worker"] for record in records(submission.run)}) >= 2
    said = log_text(submission.run)
    assert "s are left and the next batch needs" in said or "USR2 came" in said, "Slurm may warn a minute early"
    assert f"the time was up, job {submission.job} goes on from the queue" in said


def test_of_two_processes_one_is_killed_and_the_job_goes_on_for_the_other_whose_time_is_up(login: LoginNode) -> None:
    asked = *REHEARSAL, *SLOW, "cards=2", "images_per_shard=6"
    submission = login.submit(login.prompts(lines(12)), *asked)
    assert eventually(lambda: len(workers_of(submission.run)) == 2), log_text(submission.run)
    os.kill(min(workers_of(submission.run)), signal.SIGKILL)
    login.lab.output("scancel", "--signal=USR2", submission.job)
    assert eventually(lambda: "goes on from the queue" in log_text(submission.run)), log_text(submission.run)
    login.lab.start_again(submission.job)
    assert set(login.lab.wait(submission.job).values()) == {"COMPLETED"}, log_text(submission.run)
    assert faults(submission.run, planned=12) == []


def workers_of(run: Path) -> Set[int]:
    """The processes that have made pictures, as they signed their records."""
    return {int(record["worker"].rpartition("/")[2]) for record in records(run)}


def test_where_jobs_may_not_requeue_the_next_link_goes_on(login: LoginNode) -> None:
    asked = *REHEARSAL, *SLOW, "requeue=false", "links=2"
    submission = login.submit(login.prompts(lines(8)), *asked)
    first, second = login.job_numbers(submission.run)
    assert eventually(lambda: records(submission.run)), log_text(submission.run)
    login.lab.output("scancel", "--signal=USR2", first)
    assert set(login.lab.wait(first).values()) == {"FAILED"}, "75: there is more to do"
    begun = pictures(submission.run)
    assert 0 < len(begun) < 8
    assert set(login.lab.wait(second).values()) == {"COMPLETED"}, log_text(submission.run)
    assert faults(submission.run, planned=8) == []
    assert leftovers(submission.run) == []


def test_a_second_submission_leaves_the_first_alone(login: LoginNode) -> None:
    prompts, asked = login.prompts(lines(60)), (*REHEARSAL, *SLOW, "images_per_shard=15")
    first = login.submit(prompts, *asked)
    again = login.jobs("submit", str(prompts), f"outputs={login.folder}", *asked)
    assert f"nothing to submit: job {first.job} will make what is missing" in again
    assert login.job_numbers(first.run) == [first.job]
    assert set(login.lab.wait(first.job).values()) == {"COMPLETED"}, log_text(first.run)
    assert faults(first.run, planned=60) == []


def test_what_comes_behind_the_last_picture_is_done_by_a_job_of_its_own(login: LoginNode) -> None:
    asked = *REHEARSAL, "steps=1", "images_per_shard=2", "post=[report,verify]", "output=webdataset"
    submission = login.submit(login.prompts(lines(4)), *asked)
    after = login.job_numbers(submission.run)[-1]
    assert set(login.lab.wait(after).values()) == {"COMPLETED"}, log_text(submission.run)
    assert sorted(path.name for path in (submission.run / "samples").glob("*.tar")) == ["00000.tar", "00001.tar"]
    assert "picture 3" in (submission.run / "report.html").read_text(encoding="utf-8")
    assert json.loads((submission.run / "verify.json").read_text())["whole"] is True


def test_submission_says_what_it_will_cost_and_when_it_may_begin(login: LoginNode) -> None:
    price = "cluster.price_per_card_hour=2.5", "cluster.currency=yuan", "seconds_per_image=18"
    submission = login.submit(login.prompts(lines(100)), *REHEARSAL, "steps=1", *price)
    # 15 min are 50 images, of which whole batches of 4 make 52: 15.6 min.
    assert "about 0.50 card-hours, 1.25 yuan; a task lasts 16 min (18 s an image, as seconds_per_image says)" in (
        submission.said
    )
    assert "Slurm expects the first task to begin at 20" in submission.said
    assert "submitted 2 tasks" in submission.said
    login.lab.wait(submission.job)
