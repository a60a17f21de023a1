"""A profile meets a real cluster: detected there, examined there, and obeyed in the job, whichever way it came in."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import List

import pytest

from tests.integration.login_node import PROJECT, LoginNode, faults, log_text
from tests.slurm_lab.cluster import SlurmLab
from tests.slurm_lab.processes import eventually
from tests.test_readme import SHELL_BLOCK

pytestmark = pytest.mark.slurm

PROMPTS = tuple(f"picture {number}" for number in range(4))
REHEARSAL = "model=rehearsal", "steps=1", "images_per_shard=2"


@pytest.fixture
def login(slurm: SlurmLab, tmp_path: Path) -> LoginNode:
    return LoginNode(slurm, tmp_path)


def test_detected_profile_is_accepted_by_the_doctor_and_makes_pictures(login: LoginNode) -> None:
    profile = login.folder / "mysite.yaml"
    assert f"wrote {profile}" in login.jobs("profile", "--detect", "-o", str(profile))
    text = profile.read_text()
    assert "#   compiler/rocm/dtk-22.10.1" in text
    assert "#   gpu (gpu:4; 1 node; no time limit)" in text
    assert "# sbatch --test-only finds that a job of yours may run in kshdtest." in text
    assert "# Not learned: sacctmgr" in text, "this cluster has no accounting"

    outputs = f"outputs={login.folder}"
    said = login.jobs("doctor", *REHEARSAL, f"cluster={profile}", outputs)
    assert "Slurm would take the job (sbatch --test-only)" in said

    submission = login.submit(login.prompts(PROMPTS), *REHEARSAL, f"cluster={profile}", "cards=2")
    assert set(login.lab.wait(submission.job).values()) == {"COMPLETED"}, log_text(submission.run)
    assert faults(submission.run, planned=len(PROMPTS)) == []


def test_partition_of_ones_own_choice_is_described(login: LoginNode) -> None:
    said = login.jobs("profile", "--detect", "--partition", "gpu")
    assert "\npartition: gpu\n" in said
    assert "\ngres: gpu\n" in said
    assert "\ncpus_per_card: 4\n" in said
    assert "did you mean gpu" in login.jobs("profile", "--detect", "--partition", "gpus", status=2)


def test_detected_profile_names_the_account_where_there_is_accounting(
    slurm_with_accounting: SlurmLab, tmp_path: Path
) -> None:
    said = LoginNode(slurm_with_accounting, tmp_path).jobs("profile", "--detect")
    account = said.partition("# that the hours are charged to")[2].partition("\naccount: null")[0]
    assert "Yours is " in account or "accounting knows no account of yours" in account


def test_doctor_answers_a_refusal_with_slurms_words_and_what_exists(login: LoginNode) -> None:
    words = *REHEARSAL, "cluster=scnet-dcu", f"outputs={login.folder}"
    said = login.jobs("doctor", *words, "cluster.gres=dcu:K100", status=2)
    assert "Slurm would not take the job: " in said
    assert "a node of kshdtest has 32 cores, 120000 MB, dcu:4" in said
    assert "no partition 'kshdtset'; there are gpu, kshdtest" in login.jobs(
        "doctor", *words, "cluster.partition=kshdtset", status=2
    )


def test_submission_that_slurm_refuses_is_answered_with_what_exists(login: LoginNode) -> None:
    words = "submit", str(login.prompts(PROMPTS)), *REHEARSAL, "cluster=scnet-dcu", f"outputs={login.folder}"
    said = login.jobs(*words, "cluster.partition=kshdtset", status=3)
    assert "invalid partition specified: kshdtset" in said
    assert "partitions here: kshdtest (dcu:4; 4 nodes; no time limit); gpu (gpu:4; 1 node; no time limit)" in said
    said = login.jobs(*words, "cluster.gres=hcu", status=3)
    assert "Invalid generic resource (gres) specification" in said
    assert "kshdtest has dcu:4; gpu has gpu:4; give cluster.gres=NAME" in said


def noting_python(folder: Path) -> Path:
    """An interpreter that notes the LD_LIBRARY_PATH that it is started with, in a file `noted` beside it."""
    python = folder / "python"
    python.write_text(f'#!/bin/sh\necho "$LD_LIBRARY_PATH" >> {folder}/noted\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return python


def test_libraries_come_in_the_order_of_the_profile_before_those_of_the_setup(login: LoginNode) -> None:
    """Both ways: submitted, and rendered for plain sbatch. The module puts its own folder first, and comes third."""
    settings = (
        *(*REHEARSAL, "cluster=scnet-dcu", "cluster.cpus_per_card=1", f"cluster.python={noting_python(login.folder)}"),
        "cluster.ld_library_path=[/env/lib, /site/lib]",
    )
    submission = login.submit(login.prompts(PROMPTS), *settings)
    assert set(login.lab.wait(submission.job).values()) == {"COMPLETED"}, log_text(submission.run)
    noted = login.folder / "noted"
    assert set(noted.read_text().splitlines()) == {"/env/lib:/site/lib:/opt/dtk-22.10.1/lib"}

    noted.unlink()
    job = login.sbatch(login.render(login.prompts(PROMPTS, "again.txt"), *settings))
    assert set(login.lab.wait(job).values()) == {"COMPLETED"}
    assert set(noted.read_text().splitlines()) == {"/env/lib:/site/lib:/opt/dtk-22.10.1/lib"}
    assert faults(next(login.folder.glob("again-*")), planned=len(PROMPTS)) == []


def test_pasted_into_a_web_form_the_commands_use_both_cards(login: LoginNode) -> None:
    """The platform makes one shell of the command lines, with the cores and cards that its form was given."""
    settings = *REHEARSAL, "cluster=scnet-dcu", "cards=2", f"outputs={login.folder}"
    text = login.lab.output(
        *(sys.executable, "-m", "jobs", "render", str(login.prompts(PROMPTS)), "--portal", *settings), cwd=PROJECT
    )
    assert "# cores        16\n" in text
    assert "# cards (DCU)  2\n" in text
    script = ". /etc/profile.d/modules.sh\n" + text.partition("# command lines:\n")[2]
    job = login.lab.sbatch(script, "-N", "1", "-n", "16", "--gres=dcu:2", "-o", f"{login.folder}/form.log")
    run = next(login.folder.glob("prompts-*"))
    assert set(login.lab.wait(job).values()) == {"COMPLETED"}, (login.folder / "form.log").read_text()
    assert faults(run, planned=len(PROMPTS)) == []
    logs = "\n".join(path.read_text() for path in (run / "logs").glob("local-*"))
    assert "card 0 of 2 listed (0,1)" in logs
    assert "card 1 of 2 listed (0,1)" in logs


def commands_of(page: str) -> List[str]:
    """The lines of a page's shell blocks."""
    return [line for block in SHELL_BLOCK.findall((PROJECT / page).read_text()) for line in block.splitlines()]


def test_the_page_for_a_new_cluster_can_be_typed_from_top_to_bottom(login: LoginNode) -> None:
    """The prompts are a rehearsal here, without cards. Off a terminal `watch` looks once a minute, so it comes late."""
    (login.folder / "examples").symlink_to(PROJECT / "examples")
    for name in ("prompts.txt", "more.txt"):
        login.prompts(PROMPTS, name)
    environ = {**login.lab.env, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    for line in commands_of("docs/new-cluster.md"):
        for dated in re.findall(r"outputs/(\w+)-20260101", line):
            [run] = (login.folder / "outputs").glob(f"{dated}-2*")
            line = line.replace(f"outputs/{dated}-20260101", str(run))
        words = ["model=rehearsal", "steps=1"] if re.search(r" (prompts|more)\.txt ", line) else []
        command = [*shlex.split(line), *words]
        assert command[0] == "python"
        if "watch" in command:
            assert eventually(lambda: login.lab.output("squeue", "-h") == "")
        done = subprocess.run(
            [sys.executable, *command[1:]], cwd=login.folder, env=environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    [run] = (login.folder / "outputs").glob("prompts-2*")
    assert faults(run, planned=len(PROMPTS)) == []
