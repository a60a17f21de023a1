"""The traps of submitit, each of which was seen on a real cluster, and none of which a run falls into.

Elsewhere: setup lines that fail, and `module switch` to a missing module (test_slurm_faults.py); SLURM_* variables of
an enclosing allocation (test_slurm_cards.py). The pictures are rehearsals, no torch.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Iterator, List, Optional

import pytest

from tests.integration.login_node import LoginNode, Submission, faults, log_text, pictures, records
from tests.slurm_lab.cluster import SlurmLab
from tests.slurm_lab.fixtures import require_slurm
from tests.slurm_lab.processes import eventually

pytestmark = pytest.mark.slurm

PROMPTS = tuple(f"picture {number}" for number in range(4))
REHEARSAL = "model=rehearsal", "cluster=scnet-dcu", "cluster.cpus_per_card=1"
QUICK = *REHEARSAL, "steps=1", "images_per_shard=2"
SLOW = *REHEARSAL, "steps=1000", "batch_size=1", "images_per_shard=20"  # a second a picture
MANY = tuple(f"picture {number}" for number in range(20))


@pytest.fixture
def login(slurm: SlurmLab, tmp_path: Path) -> LoginNode:
    return LoginNode(slurm, tmp_path)


def exit_code(login: LoginNode, job: str) -> str:
    """How a job ended, as Slurm writes it: status:signal."""
    found = re.search(r"\bExitCode=(\d+:\d+)", login.lab.describe(job))
    assert found is not None
    return found.group(1)


def ended(login: LoginNode, submission: Submission) -> List[str]:
    """The states in which a submission's tasks have ended."""
    return sorted(login.lab.wait(submission.job).values())


def test_wckey_that_submitit_writes_is_not_refused(tmp_path: Path) -> None:
    """Where workload keys are enforced, its `--wckey=submitit` fails every submission."""
    require_slurm()
    with SlurmLab(accounting=True, dcu_nodes=1, enforce="wckeys") as lab:
        refused = lab.run("sbatch", "--wckey=submitit", "--wrap", "true")
        assert "Invalid wckey specification" in refused.stderr, "else there is no trap here"
        login = LoginNode(lab, tmp_path)
        submission = login.submit(login.prompts(PROMPTS), *QUICK)
        assert ended(login, submission) == ["COMPLETED"] * 2, log_text(submission.run)
        assert faults(submission.run, planned=len(PROMPTS)) == []


def test_result_of_a_dead_job_is_never_waited_for_without_accounting(login: LoginNode) -> None:
    """A job that dies without its pickle, and no sacct to tell: `result()` would block for ever; we read files."""
    submission = login.submit(login.prompts(PROMPTS), *QUICK, "cluster.setup=[kill -9 $$]")
    assert ended(login, submission) == ["FAILED"] * 2
    said = login.jobs("status", str(submission.run)) + login.jobs("logs", str(submission.run), "--failed")
    assert "0 of 4 pictures done" in said
    assert re.search(rf"job {submission.job}_\d and 1 more, shards 0-1", said)


@pytest.mark.parametrize("name", ["ntasks", "gpus-per-node"])
def test_ntasks_does_not_run_the_work_16_times(login: LoginNode, name: str) -> None:
    """The user's `-n 16`, put into a profile, is refused with what to type, and nothing is queued."""
    asked = "submit", str(login.prompts(PROMPTS)), f"outputs={login.folder}", *QUICK
    said = login.jobs(*asked, f"cluster.directives.{name}=16", status=2)
    assert f"the directive {name} must not stand in a profile; use " in said
    assert "cards=N" in said
    assert login.lab.output("squeue", "-h") == ""


def test_teardown_does_not_hide_a_failure(login: LoginNode) -> None:
    """A picture that cannot be made fails its job, with the status of the work, whichever way it was submitted."""
    start = login.folder / "start.png"
    start.write_text("planned")
    lines = [{"prompt": "a", "init": str(start), "strength": 1.0}, {"prompt": "b"}]
    prompts = login.prompts([json.dumps(line) for line in lines], "two.jsonl")
    file = login.render(prompts, *QUICK)
    start.write_text("changed")
    job = login.sbatch(file)
    login.lab.wait(job)
    assert exit_code(login, job) == "4:0"

    [run] = login.folder.glob("two-*")
    submitted = login.jobs("resume", str(run), *REHEARSAL[1:]).splitlines()[0]
    job = submitted.split()[-1]
    assert set(login.lab.wait(job).values()) == {"FAILED"}
    assert exit_code(login, job) == "4:0"


def wrapper(folder: Path, *words: str) -> Path:
    """A program that starts another interpreter."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nexec {" ".join(words)} "$@"\n')
    path.chmod(0o755)
    return path


def test_another_python_without_the_packages_is_named(login: LoginNode) -> None:
    """-S leaves site-packages out."""
    python = wrapper(login.folder, "env", "PYTHONPATH=", sys.executable, "-S")
    submission = login.submit(login.prompts(PROMPTS), *QUICK, f"cluster.python={python}")
    assert ended(login, submission) == ["FAILED"] * 2
    said = login.jobs("status", str(submission.run))
    assert "has no yaml, omegaconf, submitit; give cluster.python=/absolute/path/of/python" in said


def another_python() -> Optional[str]:
    """An interpreter of another version than this one, new enough for the project; None if the machine has none."""
    versions = [f"3.{minor}" for minor in range(10, 14) if minor != sys.version_info[1]]
    built = [str(path) for version in versions for path in Path.home().glob(f".pyenv/versions/{version}.*/bin/python3")]
    found = [shutil.which(f"python{version}") for version in versions]
    works = ["-c", "import ctypes, lzma, sqlite3, ssl"]
    for python in filter(None, [*found, *built]):
        if subprocess.run([python, *works], capture_output=True, check=False).returncode == 0:
            return python
    return None


def test_another_version_of_python_in_the_job_makes_the_pictures(login: LoginNode) -> None:
    """submitit's pickle of a lambda kills another Python; ours names a function. What it imports is pure Python."""
    python = another_python()
    if python is None:
        pytest.skip("the machine has no second Python from 3.10 on")
    packages = {str(Path(sys.modules["pytest"].__file__ or "").parents[1]), *filter(None, sys.path[-1:])}
    setting = f"cluster.env.PYTHONPATH={os.pathsep.join(sorted(packages))}"
    submission = login.submit(login.prompts(PROMPTS), *QUICK, setting, f"cluster.python={python}")
    assert ended(login, submission) == ["COMPLETED"] * 2, log_text(submission.run)
    assert faults(submission.run, planned=len(PROMPTS)) == []


def test_array_of_one_element_is_a_job_like_any_other(login: LoginNode) -> None:
    """It has no `_0` and no array variables, and its records, logs and a resubmission are right all the same."""
    submission = login.submit(login.prompts(PROMPTS), *QUICK, "images_per_shard=4")
    assert "submitted 1 task" in submission.said
    assert ended(login, submission) == ["COMPLETED"], log_text(submission.run)
    assert faults(submission.run, planned=len(PROMPTS)) == []
    assert {record["worker"].split("/")[1] for record in records(submission.run)} == {submission.job}
    next((submission.run / "samples" / "000").iterdir()).unlink()
    again = login.submit(login.folder / "prompts.txt", *QUICK, "images_per_shard=4")
    assert ended(login, again) == ["COMPLETED"], log_text(again.run)
    assert faults(submission.run, planned=len(PROMPTS)) == []


@pytest.fixture(scope="module")
def apart() -> Iterator[SlurmLab]:
    """A cluster each of whose nodes has a /var/tmp of its own."""
    require_slurm()
    if os.geteuid():
        pytest.skip("only root may give a node a file system of its own")
    with SlurmLab(accounting=False, dcu_nodes=1, namespaces=True) as lab:
        yield lab


def test_folder_that_the_node_does_not_see_is_named_though_there_is_no_log(apart: SlurmLab) -> None:
    """Slurm says 0:53 and no more, and the job cannot leave a log."""
    folder = Path("/var/tmp") / f"sdbatch-{os.getpid()}"
    folder.mkdir()
    try:
        login = LoginNode(apart, folder)
        submission = login.submit(login.prompts(PROMPTS), *QUICK)
        assert "is on this machine alone: a node that does not see it fails without a log" in submission.said
        assert ended(login, submission) == ["FAILED"] * 2
        assert exit_code(login, f"{submission.job}_0") == "0:53"
        assert "its node does not see that folder" in login.jobs("logs", str(submission.run), "--failed")
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def begun(login: LoginNode) -> Submission:
    """A run whose worker has written its first record, with seconds of work ahead, in a job of five minutes."""
    submission = login.submit(login.prompts(MANY), *SLOW, "time_limit_min=5")
    assert eventually(lambda: records(submission.run)), log_text(submission.run)
    return submission


def test_sigterm_is_not_ignored(login: LoginNode, begun: Submission) -> None:
    """submitit bypasses it, and a cancelled job then lives on until it is killed; ours leaves, with a last word."""
    login.lab.output("scancel", begun.job)
    assert ended(login, begun) == ["CANCELLED"]
    [worker] = (begun.run / "workers" / begun.job).glob("[!.]*.json")
    assert json.loads(worker.read_text())["end"] == "told to stop"
    kept = pictures(begun.run)
    assert {record["file"] for record in records(begun.run)} == kept.keys(), "all that was made is written down"


def test_usr2_is_no_timeout_however_often_it_comes(login: LoginNode, begun: Submission) -> None:
    """To submitit each USR2 in a job of ten minutes is a timeout, and after three it gives the job up."""
    for _ in range(4):
        made = len(records(begun.run))
        login.lab.output("scancel", "--signal=USR2", begun.job)
        login.lab.start_again(begun.job)
        assert eventually(lambda before=made: len(records(begun.run)) > before + 1), log_text(begun.run)
    assert "Restarts=4 " in login.lab.describe(begun.job)
    assert ended(login, begun) == ["COMPLETED"], log_text(begun.run)
    assert faults(begun.run, planned=len(MANY)) == []
