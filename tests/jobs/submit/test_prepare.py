"""Prompts and settings become one run folder: a new one, or that where the same plan was begun; never half of one."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.config import read_settings
from jobs.plan import from_line
from jobs.spec import JobSpec
from jobs.submit.prepare import commit, find_model, name_from, prepare_run, versions
from ldm.errors import ConfigError, OutputError, RequestError, SdbatchError, WeightsError
from ldm.inference.digests import sha256_of
from ldm.inference.models import PROJECT_ROOT
from tests.jobs.support import DAY, REHEARSAL, prepare, write_prompts


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_run_is_named_after_its_prompts_and_its_day(tmp_path):
    prepared = prepare(tmp_path)
    assert prepared.run.path == tmp_path / "outputs" / "prompts-20240223"
    assert not prepared.resumed
    assert entries(prepared.run.path) == ["logs", "plan.jsonl", "records", "run.yaml", "samples"]
    assert entries(tmp_path / "outputs") == ["prompts-20240223"]


def test_the_plan_holds_every_picture(tmp_path):
    prepared = prepare(tmp_path, "images_per_prompt=2", count=3)
    lines = (prepared.run.path / "plan.jsonl").read_text(encoding="utf-8").splitlines()
    images = [from_line(line) for line in lines]
    assert [image.request.prompt for image in images] == [f"picture number {n}" for n in (0, 0, 1, 1, 2, 2)]
    assert [image.request.seed for image in images] == [42, 43, 44, 45, 46, 47]
    assert (prepared.info.plan.images, prepared.info.plan.shards) == (6, 3)


def test_the_same_plan_is_resumed_on_any_day(tmp_path):
    first = prepare(tmp_path)
    settings = read_settings([*REHEARSAL, "images_per_shard=2", f"outputs={tmp_path / 'outputs'}"])
    again = prepare_run(tmp_path / "prompts.txt", settings, DAY + datetime.timedelta(days=40))
    assert again.run.path == first.run.path
    assert again.resumed
    assert again.info == first.info
    assert entries(tmp_path / "outputs") == ["prompts-20240223"]


@pytest.mark.parametrize(
    "word",
    [
        "batch_size=1",
        "device=cpu",
        "cards=2",
        "cluster=scnet-dcu",
        "time_limit_min=9",
        "images_per_shard=3",
        "quality=9",
    ],
)
def test_how_the_work_is_done_makes_no_other_plan(tmp_path, word):
    assert prepare(tmp_path).run.path == prepare(tmp_path, word).run.path


@pytest.mark.parametrize(
    "word", ["steps=2", "seed=1", "images_per_prompt=2", "precision=full", "format=webp", "output=webdataset"]
)
def test_what_is_made_makes_another_run(tmp_path, word):
    assert prepare(tmp_path).run.path.name == "prompts-20240223"
    other = prepare(tmp_path, word)
    assert other.run.path.name == "prompts-20240223-2"
    assert not other.resumed


def test_another_quality_of_jpeg_makes_another_run(tmp_path):
    assert prepare(tmp_path, "format=jpeg").run.path != prepare(tmp_path, "format=jpeg", "quality=9").run.path


def test_of_several_runs_the_one_with_the_plan_is_resumed(tmp_path):
    first, second = prepare(tmp_path), prepare(tmp_path, "steps=2")
    assert prepare(tmp_path).run.path == first.run.path
    assert prepare(tmp_path, "steps=2").run.path == second.run.path


SUBMIT_AT_ONCE = """
import sys, time
from pathlib import Path
from jobs.submit import prepare
from tests.jobs.support import prepare as prepare_run

folder, me = Path(sys.argv[1]), sys.argv[2]
real = prepare.find_runs

def find_runs_together(outputs, name):
    found = real(outputs, name)
    (folder / f"looked-{me}").touch()
    while len(list(folder.glob("looked-*"))) < 3:
        time.sleep(0.005)
    return found

prepare.find_runs = find_runs_together
prepared = prepare_run(folder)
print(prepared.run.path.name, prepared.resumed, prepared.info == prepared.run.info())
"""


def test_of_submits_at_once_one_makes_the_run_and_the_others_resume_it(tmp_path):
    """Three processes that all have looked for a run and found none before any of them makes it."""
    command = [sys.executable, "-c", SUBMIT_AT_ONCE, str(tmp_path)]
    submits = [
        subprocess.Popen([*command, str(me)], cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True) for me in range(3)
    ]
    said = sorted(submit.communicate(timeout=120)[0].strip() for submit in submits)
    assert said == ["prompts-20240223 False True", "prompts-20240223 True True", "prompts-20240223 True True"]
    assert entries(tmp_path / "outputs") == ["prompts-20240223"]


def test_a_folder_that_only_has_the_name_of_a_run_is_not_in_the_way(tmp_path):
    (tmp_path / "outputs" / "prompts-20240223").mkdir(parents=True)
    assert prepare(tmp_path).run.path.name == "prompts-20240223-2"


@pytest.mark.parametrize(
    ("stem", "name"),
    [("portraits", "portraits"), ("my prompts (1)", "my-prompts-1"), ("-x", "x"), ("肖像", "肖像"), ("...", "prompts"),
     ("a'b\"c$d%e\\f\ng", "a-b-c-d-e-f-g")],
)  # fmt: skip
def test_a_name_is_made_of_the_file_without_what_jobs_and_folders_cannot_have(stem, name):
    assert name_from(Path(f"/tmp/{stem}.txt")) == name
    assert JobSpec(name=name).name == name


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        (["height=500"], ConfigError, "height must be a multiple of 8 px, at most 4096, got 500; try 496"),
        (["steps=2000"], ConfigError, "steps must be in 1..1000, got 2000"),
        (["eta=0.5"], ConfigError, "eta=0.5 needs sampler 'ddim'"),
        (["seed=-1"], ConfigError, "seed must be in 0..4294967295, got -1"),
        (["model=emojy"], RequestError, "model must be one of sd-v1, emoji-v1"),
        (["model=sd-v1", "checkpoint=missing.ckpt"], SdbatchError, "missing.ckpt"),
    ],
)
def test_settings_that_cannot_be_leave_no_folder(tmp_path, words, kind, message):
    with pytest.raises(kind, match=message.replace(".", r"\.").replace("(", r"\(")):
        prepare(tmp_path, *words)
    assert entries(tmp_path / "outputs") == []


def test_a_bad_line_far_down_leaves_no_folder(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n' * 500 + '{"prompt": "a", "steps": 0}\n')
    settings = read_settings([*REHEARSAL, f"outputs={tmp_path / 'outputs'}"])
    with pytest.raises(RequestError, match=r"prompts\.jsonl:501: steps must be in 1\.\.1000, got 0"):
        prepare_run(path, settings, DAY)
    assert entries(tmp_path / "outputs") == []


def test_a_full_disk_leaves_no_folder_and_says_so(tmp_path, monkeypatch):
    def no_space(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jobs.submit.prepare.os.fsync", no_space)
    with pytest.raises(OutputError, match=r"No space left on device; free some space or choose another folder"):
        prepare(tmp_path)
    assert entries(tmp_path / "outputs") == []


def test_the_model_is_fixed_by_its_content(tmp_path, tiny_model):
    words = [f"config={tiny_model.config}", f"checkpoint={tiny_model.checkpoint}", "model=sd-v1", "safety=off"]
    model = prepare(tmp_path, *words).info.model
    assert model.name == "tiny"
    assert model.checkpoint_sha256 == sha256_of(tiny_model.checkpoint)
    assert model.config_sha256 == sha256_of(tiny_model.config)
    assert model.checkpoint_bytes == tiny_model.checkpoint.stat().st_size
    assert (model.size, model.size_multiple) == (64, 8)
    assert Path(model.clip or "").is_absolute()


def test_another_checkpoint_under_the_same_name_is_another_plan(tmp_path, tiny_model):
    checkpoint = tmp_path / "model.safetensors"
    words = [f"config={tiny_model.config}", f"checkpoint={checkpoint}", "model=sd-v1", "safety=off"]
    weights = tiny_model.checkpoint.read_bytes()
    checkpoint.write_bytes(weights)
    first = prepare(tmp_path, *words)
    checkpoint.write_bytes(weights[:-1] + b"\1")
    assert prepare(tmp_path, *words).run.path != first.run.path


def test_a_checkpoint_that_is_none_is_named_before_anything_is_queued(tmp_path, tiny_model):
    pointer = tmp_path / "model.ckpt"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4265380512\n")
    with pytest.raises(WeightsError, match="Git LFS pointer"):
        prepare(tmp_path, "model=sd-v1", f"config={tiny_model.config}", f"checkpoint={pointer}", "safety=off")
    assert entries(tmp_path / "outputs") == []


def test_a_missing_safety_checker_is_named_with_the_way_out(tmp_path, tiny_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = JobSpec(config=str(tiny_model.config), checkpoint=str(tiny_model.checkpoint), safety_checker="nowhere")
    with pytest.raises(ConfigError, match=r"safety_checker must be a folder, found none at nowhere; .*safety=off"):
        find_model(spec)


def test_a_safety_checker_without_its_files_is_named_before_anything_is_queued(tmp_path, tiny_model):
    spec = JobSpec(config=str(tiny_model.config), checkpoint=str(tiny_model.checkpoint), safety_checker=str(tmp_path))
    with pytest.raises(WeightsError, match=r"not there: config\.json, .*name their folder with safety_checker=FOLDER"):
        find_model(spec)


def test_advice_is_given_in_the_words_of_a_job(tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.submit.prepare.find_files", lambda *_, **__: refuse())
    with pytest.raises(WeightsError, match=r"name another with checkpoint=FILE, or take .*: model=emoji-v1"):
        find_model(JobSpec())


def refuse():
    raise WeightsError("name another with --ckpt FILE, or take the model that is here: --model emoji-v1")


def test_versions_are_found_without_importing_anything():
    found = versions()
    assert found["python"]
    assert "torch" in found


def test_the_commit_is_that_of_the_checkout():
    head = subprocess.run(["git", "-C", str(PROJECT_ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    expected = head.stdout.strip() if head.returncode == 0 else None
    assert (commit() or "").replace("-dirty", "") == (expected or "")


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert commit() is None


def test_run_yaml_is_text_for_people(tmp_path):
    text = prepare(tmp_path, "negative_prompt=模糊").run.info_path.read_text(encoding="utf-8")
    assert "negative_prompt: 模糊\n" in text
    assert "created: '2024-02-23T12:00:00+00:00'\n" in text


def test_prompts_are_kept_to_the_letter(tmp_path):
    hard = ["two\nlines", "\N{LION FACE}", "x" * 10_000, '"quoted" \\ ${HOME} $(x)', "", "-n"]
    path = tmp_path / "hard.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in hard))
    prepared = prepare_run(path, read_settings([*REHEARSAL, f"outputs={tmp_path / 'outputs'}"]), DAY)
    assert [image.request.prompt for image in prepared.run.shard(0).images] == hard


def test_the_prompts_file_is_remembered(tmp_path):
    assert prepare(tmp_path).info.prompts == str(write_prompts(tmp_path))
