"""A run folder appears whole, is found again by its name, and gives back any shard without reading the whole plan."""

from __future__ import annotations

import datetime
import json
import os
import re
import time
from pathlib import Path

import pytest

from jobs.plan import planned_images, to_line
from jobs.rundir import RunDir, drafted, find_runs, plan_id_of, publish, shard_files
from ldm.errors import OutputError, RunError
from ldm.inference.spec import GenerationRequest
from tests.jobs.support import prepare

DAY = datetime.date(2024, 2, 23)


def planned(folder: Path, prompts: list[str], images_per_shard: int) -> RunDir:
    requests = [GenerationRequest(prompt=prompt, seed=seed) for seed, prompt in enumerate(prompts)]
    lines = [to_line(image) for image in planned_images(requests, images_per_shard)]
    (folder / "plan.jsonl").write_bytes("".join(lines).encode("utf-8"))
    return RunDir(folder)


@pytest.mark.parametrize("images_per_shard", [1, 2, 3, 100])
def test_every_shard_is_found_in_the_plan(tmp_path, images_per_shard):
    prompts = ["x" * length for length in (0, 5000, 1, 1, 700, 0, 10_000, 3)]
    run = planned(tmp_path, prompts, images_per_shard)
    shards = [run.shard(index) for index in range(-(-len(prompts) // images_per_shard))]
    assert [image.request.prompt for shard in shards for image in shard.images] == prompts
    assert {image.shard for shard in shards for image in shard.images} == {shard.index for shard in shards}


def test_a_shard_of_a_long_plan_is_found_by_reading_little_of_it(tmp_path, monkeypatch):
    run = planned(tmp_path, ["a"] * 5000, 10)
    parsed = []
    monkeypatch.setattr("jobs.rundir.from_line", lambda line: parsed.append(line) or json_image(line))
    assert [image.index for image in run.shard(321).images] == list(range(3210, 3220))
    assert len(parsed) < 50


def json_image(line: str):
    from jobs.plan import from_line

    return from_line(line)


def test_a_shard_that_the_plan_does_not_have_is_an_error(tmp_path):
    run = planned(tmp_path, ["a", "b"], 1)
    with pytest.raises(RunError, match="has no shard 2"):
        run.shard(2)


def test_a_missing_plan_is_an_error(tmp_path):
    with pytest.raises(RunError, match=r"cannot read .*No such file"):
        RunDir(tmp_path).shard(0)


def test_run_yaml_gives_back_what_was_planned(tmp_path):
    prepared = prepare(tmp_path, "cluster=scnet-dcu", "negative_prompt=${a}: b")
    assert prepared.run.info() == prepared.info
    assert plan_id_of(prepared.run) == prepared.info.plan.plan_id


def test_a_folder_without_run_yaml_is_no_run(tmp_path):
    with pytest.raises(RunError, match=r"is no run folder: it has no run\.yaml"):
        RunDir(tmp_path).info()
    assert plan_id_of(RunDir(tmp_path)) is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("format: 2", "format: 3", "must be of format 2, got 3"),
        ("plan_id", "plan_idd", "is damaged: 'plan_id'"),
        ("  batch_size", "  batch_sice", "there is no key 'batch_sice'; did you mean batch_size"),
        ("  size_multiple: 8\n", "", "is damaged: .*size_multiple"),
    ],
)
def test_a_run_yaml_of_another_program_is_refused(tmp_path, old, new, message):
    run = prepare(tmp_path).run
    run.info_path.write_text(run.info_path.read_text().replace(old, new))
    with pytest.raises(Exception, match=message) as caught:
        run.info()
    assert caught.value.exit_code == 2


def test_a_draft_that_is_not_published_leaves_nothing(tmp_path):
    with drafted(tmp_path / "outputs", "a") as draft:
        assert sorted(path.name for path in draft.iterdir()) == ["logs", "records", "samples"]
    assert list((tmp_path / "outputs").iterdir()) == []


def test_drafts_of_killed_processes_go_after_a_day_and_nothing_else_does(tmp_path):
    names = {
        ".a.0123456789ab.part": 25,
        ".b.0123456789ab.part": 25,
        ".c.0123456789ab.part": 23,  # it may yet become a run
        "a-20240223": 1000,
        ".hidden": 1000,
    }
    for name, hours in names.items():
        (tmp_path / name / "samples").mkdir(parents=True)
        (tmp_path / name / "plan.jsonl").write_text("{}")
        os.utime(tmp_path / name, (time.time() - hours * 3600,) * 2)
    with drafted(tmp_path, "d") as draft:
        found = {path.name for path in tmp_path.iterdir()} - {draft.name}
    assert found == {".c.0123456789ab.part", "a-20240223", ".hidden"}


def test_run_yaml_is_on_the_disk_before_its_folder_has_a_name(tmp_path, monkeypatch):
    calls, fsync, rename = [], os.fsync, os.rename
    monkeypatch.setattr(
        os, "fsync", lambda file: calls.append(os.path.realpath(f"/proc/self/fd/{file}")) or fsync(file)
    )
    monkeypatch.setattr(os, "rename", lambda source, target: calls.append(str(target)) or rename(source, target))
    run = prepare(tmp_path).run
    assert [re.sub(r"\.[0-9a-f]{12}\.part", "", Path(call).name) for call in calls][-3:] == [
        *("plan.jsonl", ".run.yaml", run.path.name)
    ]


def test_runs_of_a_day_are_numbered_from_the_second_on(tmp_path):
    names = []
    for _ in range(3):
        with drafted(tmp_path, "a") as draft:
            names.append(publish(draft, "a", DAY).path.name)
    assert names == ["a-20240223", "a-20240223-2", "a-20240223-3"]


def test_a_name_taken_at_the_last_moment_is_stepped_over(tmp_path, monkeypatch):
    (tmp_path / "a-20240223").mkdir()
    (tmp_path / "a-20240223" / "x").touch()
    monkeypatch.setattr(Path, "exists", lambda path: False)
    with drafted(tmp_path, "a") as draft:
        assert publish(draft, "a", DAY).path.name == "a-20240223-2"


def test_a_name_that_the_same_plan_took_meanwhile_is_its_run(tmp_path):
    run = prepare(tmp_path).run
    for name, found in [("same", "prompts-20240223"), ("other", "prompts-20240223-2")]:
        with drafted(run.path.parent, "prompts") as draft:
            text = run.info_path.read_text()
            (draft / "run.yaml").write_text(
                text if name == "same" else re.sub("plan_id: .{8}", "plan_id: 00000000", text)
            )
            assert publish(draft, "prompts", DAY).path.name == found


def test_runs_are_found_newest_first_and_by_their_whole_name(tmp_path):
    names = ["a-20240223", "a-20240223-2", "a-20240223-10", "a-20230101-3", "a-20240301"]
    others = ["b-20240223", "aa-20240223", "a-2024", "a-20240223-x", "xa-20240223", ".a.123.part"]
    for name in [*names, *others]:
        (tmp_path / name).mkdir()
    found = [run.path.name for run in find_runs(tmp_path, "a")]
    assert found == ["a-20240301", "a-20240223-10", "a-20240223-2", "a-20240223", "a-20230101-3"]
    assert find_runs(tmp_path / "missing", "a") == []


def test_a_name_with_signs_is_no_pattern(tmp_path):
    (tmp_path / "axb-20240223").mkdir()
    assert find_runs(tmp_path, "a.b") == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_an_error_of_the_output(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="choose a folder that you may write to"), drafted(tmp_path / "a", "a"):
        pass


def test_a_file_in_the_way_of_the_outputs_is_an_error_of_the_output(tmp_path):
    (tmp_path / "outputs").write_text("x")
    with pytest.raises(OutputError, match="a file stands where a folder must be"), drafted(tmp_path / "outputs", "a"):
        pass


def test_the_files_of_a_shard_are_those_of_its_pictures(tmp_path):
    prepared = prepare(tmp_path, count=5)
    run, info = prepared.run, prepared.info
    for shard in range(info.plan.shards):
        assert shard_files(run, info, shard) == [run.image_path(image.file) for image in run.shard(shard).images]


def test_submissions_are_kept_in_order(tmp_path):
    run = prepare(tmp_path).run
    assert run.submissions() == []
    run.add_submission({"script": "#!/bin/bash\nline"})
    run.add_submission({"script": "二"})
    assert [submission["script"] for submission in run.submissions()] == ["#!/bin/bash\nline", "二"]


def test_a_submission_cut_short_is_passed_over(tmp_path):
    run = prepare(tmp_path).run
    run.add_submission({"script": "one"})
    with run.submissions_path.open("a") as file:
        file.write(json.dumps({"script": "two"})[:-1])
    assert [submission["script"] for submission in run.submissions()] == ["one"]
    run.add_submission({"script": "three"})
    assert [submission["script"] for submission in run.submissions()] == ["one", "three"]
