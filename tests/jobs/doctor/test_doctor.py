"""The doctor says what is missing before a job does, without importing torch."""

from __future__ import annotations

import sys

import pytest
from PIL import features

from jobs.config import read_settings
from jobs.doctor.doctor import examine
from jobs.doctor.verdict import Verdict
from ldm.errors import SchedulerError

SINFO = """\
kshdtest|kshdtest*|up|3-00:00:00|75|32|110000|dcu:Hygon:4
kshdtest|kshdtest*|up|3-00:00:00|4|32|110000|dcu:4
kshctest|kshctest|up|infinite|900|32|110000|(null)
gpu|gpu|up|2:00:00|1|16|60000|gpu:a100:4
"""
MODULES = "compiler/rocm/dtk-22.10.1\ncompiler/dtk/24.04\n"


def answer(command, **answers):
    """A cluster's commands; an answer that is an error is raised."""
    known = {"sbatch": "slurm 22.05.8\n", "sinfo": SINFO, "scontrol": "MaxArraySize = 1001\n", "bash": MODULES}
    found = {**known, **answers}["test" if "test" in answers and "--test-only" in command else command[0]]
    if isinstance(found, Exception):
        raise found
    return found


def cluster(**answers):
    return lambda command: answer(command, **answers)


def findings(*words, run=answer, verdict=None):
    """What is found for the rehearsal, which needs no weights, unless the words ask for another model."""
    found = examine(read_settings(["model=rehearsal", *words]), run)
    return [finding.text for finding in found if verdict in (None, finding.verdict)]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """In an empty folder, needing only what the doctor itself needs: the rest may be missing where the tests run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jobs.doctor.doctor.NEEDED", ("omegaconf",))


def test_a_site_that_has_everything_has_nothing_to_mend():
    assert findings("cluster=scnet-dcu", verdict=Verdict.FAIL) == []
    assert "partition kshdtest has the resources dcu:Hygon:4, dcu:4, asked for is dcu" in findings("cluster=scnet-dcu")


def test_a_partition_that_is_not_there_is_named_with_those_that_are():
    assert findings("cluster=scnet-dcu", "cluster.partition=x", verdict=Verdict.FAIL) == [
        "no partition 'x'; there are gpu, kshctest, kshdtest"
    ]


def test_a_partition_without_the_cards_is_named():
    assert findings("cluster=scnet-dcu", "cluster.partition=kshctest", verdict=Verdict.FAIL) == [
        "partition kshctest has the resources none, asked for is dcu"
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
    monkeypatch.setattr("jobs.doctor.doctor.NEEDED", ("no-such-package",))
    assert "no-such-package is not installed for this Python" in findings(verdict=Verdict.FAIL)


def test_a_submitit_that_fails_on_this_python_is_known(monkeypatch):
    monkeypatch.setattr("jobs.doctor.doctor._version", lambda package: "1.5.4")
    monkeypatch.setattr(sys, "version_info", (3, 8, 18))
    assert findings("cluster=scnet-dcu", verdict=Verdict.FAIL) == [
        "submitit 1.5.4 fails on Python 3.8 and 3.9; pip install submitit==1.5.3"
    ]


def test_a_missing_submitit_leaves_render(monkeypatch):
    monkeypatch.setattr("jobs.doctor.doctor._version", lambda package: None if package == "submitit" else "1")
    assert findings("cluster=scnet-dcu", verdict=Verdict.FAIL) == [
        "submitit is not installed; without it use `python -m jobs render`"
    ]


@pytest.mark.parametrize(
    ("format", "built_with", "complaints"), [("webp", False, 1), ("webp", True, 0), ("png", False, 0)]
)
def test_a_pillow_without_webp_is_known_to_those_who_want_it(monkeypatch, format, built_with, complaints):
    monkeypatch.setattr(features, "check", lambda feature: built_with)
    found = findings("model=rehearsal", f"format={format}", verdict=Verdict.FAIL)
    assert [text for text in found if "Pillow" in text] == [
        "Pillow was built without WebP here; take format=png or jpeg"
    ] * complaints


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


def test_a_partition_by_default_is_looked_at_too():
    assert "partition kshdtest has the resources dcu:Hygon:4, dcu:4, asked for is dcu" in findings(
        "cluster=scnet-dcu", "cluster.partition=null"
    )
    nowhere = cluster(sinfo=SINFO.replace("*", ""))
    assert findings("cluster=scnet-dcu", "cluster.partition=null", run=nowhere, verdict=Verdict.FAIL) == [
        "there is no default partition; there are gpu, kshctest, kshdtest"
    ]


def test_slurm_is_asked_whether_it_would_take_the_job():
    asked = []

    def note(command):
        asked.append(command)
        return answer(command)

    words = "cluster=scnet-dcu", "cards=2", "cluster.directives.exclusive=", "cluster.omit=[open-mode]"
    assert "Slurm would take the job (sbatch --test-only)" in findings(*words, run=note)
    [command] = [command for command in asked if "--test-only" in command]
    assert {"--partition=kshdtest", "--gres=dcu:2", "--time=120", "--exclusive", "--wrap=true"} <= set(command)
    assert not any("open-mode" in word for word in command)


def test_a_refusal_is_in_slurms_words_with_what_exists():
    refused = SchedulerError("sbatch: error: Invalid generic resource (gres) specification")
    [text] = findings("cluster=scnet-dcu", run=cluster(test=refused), verdict=Verdict.FAIL)
    assert text == (
        "Slurm would not take the job: sbatch: error: Invalid generic resource (gres) specification; kshdtest has "
        "dcu:Hygon:4, dcu:4; gpu has gpu:a100:4; give cluster.gres=NAME, without the count"
    )


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("cluster.cpus_per_card=40", "1 cards with 40 cores each are more than the 32 cores of a node; give cluster."),
        ("cluster.directives.ntasks=16", "the directive ntasks must not stand in a profile; use cards=N"),
        ("cluster.max_array_size=5000", "max_array_size is 5000, here 1001; give cluster.max_array_size=1001"),
        ("cards=9", "cards must be at most"),
    ],
)
def test_what_cannot_work_is_told_before_a_job_is_submitted(word, said):
    assert any(said in text for text in findings("cluster=scnet-dcu", word, verdict=Verdict.FAIL))


def test_more_time_than_the_partition_gives_is_told():
    words = "cluster=slurm-gpu", "time_limit_min=600"
    assert "gpu gives at most 120 min, asked for are 600; give time_limit_min=120" in findings(
        *words, "cluster.max_time_min=null", verdict=Verdict.FAIL
    )


def test_more_cards_than_nodes_have_are_a_warning():
    texts = findings("cluster=scnet-dcu", "cluster.cards_per_node=8", verdict=Verdict.WARN)
    assert "cards_per_node is 8, and no node of kshdtest has more than 4" in texts


def test_a_controller_that_keeps_silent_is_a_warning():
    texts = findings("cluster=scnet-dcu", run=cluster(scontrol=SchedulerError("no answer")), verdict=Verdict.WARN)
    assert "the limit of arrays is not known: no answer" in texts


def test_modules_of_the_setup_are_looked_for():
    setup = (
        "cluster.setup=[module purge, module load compiler/dtk, module switch compiler/rocm compiler/rocm/dtk-22.10]"
    )
    assert "module compiler/dtk" in findings("cluster=scnet-dcu", setup, verdict=Verdict.OK)
    assert (
        "`module avail` does not list compiler/rocm/dtk-22.10; did you mean compiler/rocm/dtk-22.10.1 or "
        "compiler/dtk/24.04?"
    ) in findings("cluster=scnet-dcu", setup, verdict=Verdict.WARN)


@pytest.mark.parametrize(
    ("modules", "said"),
    [("", "the setup uses `module`, which this machine"), (SchedulerError("broken"), "`module avail` failed: broken")],
)
def test_module_lines_where_there_are_no_modules_are_a_warning(modules, said):
    setup = "cluster.setup=[module load compiler/dtk]"
    texts = findings("cluster=scnet-dcu", setup, run=cluster(bash=modules), verdict=Verdict.WARN)
    assert any(text.startswith(said) for text in texts)


def test_a_setup_that_loads_nothing_is_told_what_there_is():
    texts = findings("cluster=scnet-dcu", "cluster.setup=[]", verdict=Verdict.WARN)
    assert any(text.startswith("the setup loads no module; here are compiler/") for text in texts)
    assert not any("no module" in text for text in findings("cluster=scnet-dcu", "cluster.setup=[module load x]"))


def test_a_python_without_its_folder_is_a_warning():
    texts = findings("cluster=scnet-dcu", "cluster.python=python3", verdict=Verdict.WARN)
    assert "python is python3; give its absolute path, so that every node takes the same" in texts


def test_paths_that_are_not_here_are_a_warning(tmp_path):
    words = "cluster.python=/missing/python", f"cluster.ld_library_path=[/missing/lib, {tmp_path}]"
    texts = findings("cluster=scnet-dcu", *words, verdict=Verdict.WARN)
    assert "python is /missing/python, which is no program on this machine" in texts
    assert "ld_library_path names /missing/lib, which is no folder on this machine" in texts
    assert not any(f"names {tmp_path}" in text for text in texts)


def test_a_folder_of_runs_on_a_disk_of_this_machine_is_a_warning(monkeypatch):
    monkeypatch.setattr("jobs.doctor.doctor_slurm.file_system_of", lambda path: "ext4")
    assert any("on ext4: often one machine's own" in text for text in findings("cluster=scnet-dcu"))
    monkeypatch.setattr("jobs.doctor.doctor_slurm.file_system_of", lambda path: "lustre")
    assert not any("one machine's own" in text for text in findings("cluster=scnet-dcu"))
