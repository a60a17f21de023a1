"""The doctor says what is missing before a job does, without importing torch."""

from __future__ import annotations

import sys

import pytest

from jobs.config import read_settings
from jobs.doctor import Verdict, examine
from ldm.errors import SchedulerError

SINFO = "kshdtest dcu:Hygon:4\nkshdtest dcu:4\nkshctest (null)\ngpu gpu:a100:4\n"


def answer(command):
    return {"sbatch": "slurm 22.05.8\n", "sinfo": SINFO}[command[0]]


def findings(*words, run=answer, verdict=None):
    """What is found for the rehearsal, which needs no weights, unless the words ask for another model."""
    found = examine(read_settings(["model=rehearsal", *words]), run)
    return [finding.text for finding in found if verdict in (None, finding.verdict)]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """In an empty folder, needing only what the doctor itself needs: the rest may be missing where the tests run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jobs.doctor.NEEDED", ("omegaconf",))


def test_a_site_that_has_everything_has_nothing_to_mend():
    assert findings("cluster=scnet-dcu", verdict=Verdict.FAIL) == []
    assert "partition kshdtest has the resources dcu:Hygon:4, dcu:4, asked for is dcu" in findings("cluster=scnet-dcu")


def test_a_partition_that_is_not_there_is_named_with_those_that_are():
    assert findings("cluster=scnet-dcu", "cluster.partition=x", verdict=Verdict.FAIL) == [
        "no partition 'x'; there are gpu, kshctest, kshdtest"
    ]


def test_a_partition_without_the_cards_is_named():
    assert findings("cluster=scnet-dcu", "cluster.partition=kshctest", verdict=Verdict.FAIL) == [
        "partition kshctest has the resources (null), asked for is dcu"
    ]


def test_a_scheduler_that_does_not_answer_is_a_failure():
    def refuse(command):
        raise SchedulerError("sbatch is not here")

    assert findings("cluster=scnet-dcu", run=refuse, verdict=Verdict.FAIL) == ["sbatch is not here"]


def test_here_nobody_asks_slurm():
    def refuse(command):
        raise AssertionError(command)

    assert not any("submitit" in text for text in findings("cluster=local", run=refuse))


def test_a_missing_package_is_a_failure(monkeypatch):
    monkeypatch.setattr("jobs.doctor.NEEDED", ("no-such-package",))
    assert "no-such-package is not installed for this Python" in findings(verdict=Verdict.FAIL)


def test_a_submitit_that_fails_on_this_python_is_known(monkeypatch):
    monkeypatch.setattr("jobs.doctor._version", lambda package: "1.5.4")
    monkeypatch.setattr(sys, "version_info", (3, 8, 18))
    assert findings("cluster=scnet-dcu", verdict=Verdict.FAIL) == [
        "submitit 1.5.4 fails on Python 3.8 and 3.9; pip install submitit==1.5.3"
    ]


def test_a_missing_submitit_leaves_render(monkeypatch):
    monkeypatch.setattr("jobs.doctor._version", lambda package: None if package == "submitit" else "1")
    assert findings("cluster=scnet-dcu", verdict=Verdict.FAIL) == [
        "submitit is not installed; without it use `python -m jobs render`"
    ]


def test_the_model_that_was_asked_for_must_be_whole():
    [text] = findings("model=sd-v1", "checkpoint=missing.ckpt", verdict=Verdict.FAIL)
    assert text.startswith("model sd-v1: no weights of sd-v1: looked for missing.ckpt")
    assert "checkpoint=FILE" in text


def test_another_model_without_weights_is_a_warning():
    texts = findings("model=rehearsal", verdict=Verdict.WARN)
    assert any(text.startswith("model sd-v1: no ") and "looked for" in text for text in texts)


def test_a_model_that_is_whole_is_shown_with_its_parts(tiny_model, tmp_path):
    folder = tmp_path / "checker"
    folder.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).write_text("{}")
    (folder / "model.safetensors").write_bytes(tiny_model.checkpoint.read_bytes())
    words = ["model=sd-v1", f"config={tiny_model.config}", f"checkpoint={tiny_model.checkpoint}"]
    assert findings(*words, f"safety_checker={folder}", verdict=Verdict.FAIL) == []
    [text] = [text for text in findings(*words, f"safety_checker={folder}") if text.startswith("model sd-v1: ")]
    assert str(tiny_model.checkpoint) in text
    assert text.endswith(f"safety checker {folder}")
    assert any(text.endswith(", no safety checker") for text in findings(*words, "safety=off"))


@pytest.mark.parametrize("part", ["checkpoint", "safety_checker"])
def test_a_git_lfs_pointer_is_no_weights(tiny_model, tmp_path, part):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4265380512\n"
    folder = tmp_path / "checker"
    folder.mkdir()
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        (folder / name).write_text(pointer)
    given = {"config": tiny_model.config, "checkpoint": tiny_model.checkpoint, "safety_checker": folder}
    if part == "checkpoint":
        given = {**given, part: folder / "model.safetensors"}
    words = [f"{key}={value}" for key, value in given.items()]
    [text] = findings("model=sd-v1", *words, verdict=Verdict.FAIL)
    assert "Git LFS pointer" in text


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "safety_checker=nowhere",
            "safety_checker must be a folder, found none at nowhere; give safety_checker=FOLDER",
        ),
        ("clip=nowhere", "no CLIP tokenizer"),
        ("config=nowhere.yaml", "no config of sd-v1: looked for nowhere.yaml"),
        ("model=emojy", "model must be one of sd-v1, emoji-v1, got 'emojy'"),
    ],
)
def test_a_part_that_was_asked_for_and_is_not_there_is_named(tiny_model, word, said):
    words = ["model=sd-v1", f"config={tiny_model.config}", f"checkpoint={tiny_model.checkpoint}", word]
    [text] = findings(*words, verdict=Verdict.FAIL)
    assert said in text


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    assert any(f"runs go to {tmp_path}/home/outputs, " in text for text in findings("outputs=~/outputs"))
    assert list(tmp_path.iterdir()) == [tmp_path / "home"]


def test_an_outputs_folder_that_cannot_be_made_is_a_failure(tmp_path):
    (tmp_path / "outputs").write_text("a file in the way")
    assert any("cannot write" in text for text in findings(verdict=Verdict.FAIL))


def test_looking_leaves_no_folder_behind(tmp_path):
    findings("cluster=scnet-dcu")
    assert list(tmp_path.iterdir()) == []


def test_module_lines_in_a_shell_without_modules_are_a_warning(monkeypatch):
    monkeypatch.delenv("MODULESHOME", raising=False)
    monkeypatch.delenv("LMOD_CMD", raising=False)
    assert any("the setup uses `module`" in text for text in findings("cluster=scnet-dcu", verdict=Verdict.WARN))
