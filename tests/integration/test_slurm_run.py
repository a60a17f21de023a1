"""The main job on a real cluster: a file of prompts becomes pictures through a job array, with a real model."""

from __future__ import annotations

from pathlib import Path
from typing import Tuple

import numpy as np
import pytest
from PIL import Image

from ldm.inference.models import ModelFiles
from tests.integration.login_node import LoginNode, Submission, faults, leftovers, log_text, pictures, records
from tests.slurm_lab.cluster import SlurmLab

pytestmark = pytest.mark.slurm

PROMPTS = ("a cat", "a cat on the moon", "a lion", "a red house", "a dog", "an owl")
ARRAY = "images_per_shard=3", "batch_size=2", "cluster=scnet-dcu", "cluster.cpus_per_card=1"
ONE_TASK_A_NODE = "cluster.directives.exclusive="


@pytest.fixture(scope="module")
def login(slurm: SlurmLab, tmp_path_factory: pytest.TempPathFactory) -> LoginNode:
    return LoginNode(slurm, tmp_path_factory.mktemp("user"))


@pytest.fixture(scope="module")
def model(tiny_model: ModelFiles) -> Tuple[str, ...]:
    """Settings for the tiny model; the nodes have no real card, so it works on the CPU."""
    files = f"config={tiny_model.config}", f"checkpoint={tiny_model.checkpoint}"
    return (*files, "safety=off", "device=cpu", "steps=2")


@pytest.fixture(scope="module")
def finished(login: LoginNode, model: Tuple[str, ...]) -> Submission:
    """A run that was submitted and has ended well."""
    submission = login.submit(login.prompts(PROMPTS), *model, *ARRAY, ONE_TASK_A_NODE)
    states = set(login.lab.wait(submission.job).values())
    assert states == {"COMPLETED"}, log_text(submission.run)
    return submission


def test_every_prompt_becomes_one_whole_picture(finished: Submission) -> None:
    assert faults(finished.run, planned=len(PROMPTS)) == []
    assert leftovers(finished.run) == []
    assert len(set(pictures(finished.run).values())) == len(PROMPTS)


def test_picture_carries_its_prompt_and_seed(finished: Submission) -> None:
    with Image.open(finished.run / "samples" / "000" / "000002.png") as picture:
        assert picture.size == (64, 64)
        assert picture.info["parameters"].startswith("a lion\n")
        assert "Seed: 44" in picture.info["parameters"]


def test_array_works_on_several_nodes_at_once(login: LoginNode, finished: Submission) -> None:
    nodes = login.lab.output("squeue", "-h", "-r", "-t", "all", "-j", finished.job, "-o", "%N").split()
    assert len(set(nodes)) == 2


def test_records_name_the_worker_that_made_each_picture(finished: Submission) -> None:
    workers = {record["index"]: record["worker"] for record in records(finished.run)}
    assert all(f"/{finished.job}_{index // 3}/" in workers[index] for index in range(len(PROMPTS)))


def test_status_says_that_all_is_done(login: LoginNode, finished: Submission) -> None:
    assert "6 of 6 pictures done (100 %)" in login.jobs("status", str(finished.run))


def test_rendered_file_under_plain_sbatch_makes_the_same_pictures(
    login: LoginNode, model: Tuple[str, ...], finished: Submission
) -> None:
    """Byte for byte, though two processes of one task share the shards here."""
    file = login.render(login.prompts(PROMPTS, "again.txt"), *model, *ARRAY, "cards=2")
    job = login.sbatch(file)
    run = next(login.folder.glob("again-*"))
    assert set(login.lab.wait(job).values()) == {"COMPLETED"}, log_text(run)
    assert faults(run, planned=len(PROMPTS)) == []
    assert pictures(run) == pictures(finished.run)


def test_submitting_again_makes_only_what_is_missing(
    login: LoginNode, model: Tuple[str, ...], finished: Submission
) -> None:
    """Two pictures of one batch are deleted; the batch comes back as it was, and no other file is touched."""
    before = pictures(finished.run)
    lost = [finished.run / "samples" / "000" / f"{index:06}.png" for index in (3, 4)]
    for path in lost:
        path.unlink()
    written = {path: path.stat().st_mtime_ns for path in (finished.run / "samples" / "000").iterdir()}

    again = login.submit(login.folder / "prompts.txt", *model, *ARRAY)
    assert set(login.lab.wait(again.job).values()) == {"COMPLETED"}, log_text(again.run)

    assert again.run == finished.run
    assert "submitted 1 task" in again.said
    assert faults(again.run, planned=len(PROMPTS)) == []
    assert pictures(again.run) == before
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_submitting_a_finished_run_submits_nothing(
    login: LoginNode, model: Tuple[str, ...], finished: Submission
) -> None:
    said = login.jobs("submit", str(login.folder / "prompts.txt"), f"outputs={login.folder}", *model, *ARRAY)
    assert "nothing is missing" in said
    assert "submitted" not in said


def test_shipped_model_paints_what_the_prompts_say(login: LoginNode) -> None:
    """One task with the weights that come with the project; the ground of a picture is the colour asked for."""
    prompts = login.prompts(["a lion on a blue background", "a lion on a red background"], "colours.txt")
    settings = "model=emoji-v1", "device=cpu", "steps=10", "cluster=scnet-dcu", "cluster.cpus_per_card=1"
    submission = login.submit(prompts, *settings)
    assert set(login.lab.wait(submission.job).values()) == {"COMPLETED"}, log_text(submission.run)
    assert faults(submission.run, planned=2) == []
    on_blue, on_red = (ground(submission.run / "samples" / "000" / f"00000{index}.png") for index in (0, 1))
    assert on_blue[2] > 1.5 * on_blue[0]
    assert on_red[0] > 1.5 * on_red[2]


def ground(path: Path) -> Tuple[float, ...]:
    """The mean red, green and blue of a picture's border, 4 px wide."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"), dtype=float)
    border = np.ones(pixels.shape[:2], dtype=bool)
    border[4:-4, 4:-4] = False
    return tuple(pixels[border].mean(axis=0))
