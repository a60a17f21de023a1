"""Started here, a run is made by processes that share it; what fails is said, and a second start makes the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.config import read_settings
from jobs.records import read_records, read_summary
from jobs.spec import JobSpec
from jobs.submit.launch import _parallel_tasks, after_steps, missing_shards, run_here, sweep_run
from jobs.submit.prepare import Prepared
from jobs.worker.worker import Worker, run_shard
from tests.jobs.support import FakeModel, prepare

WORKER = Worker(name="one", device="fake", batch_size=2)


def run_all(prepared: Prepared, *words: str) -> int:
    shards = missing_shards(prepared.run, prepared.info)
    settings = read_settings(["device=cpu", *words], prepared.info.settings)
    return run_here(prepared.run, settings, shards, on_wait=lambda: None)


def pictures(prepared: Prepared) -> list[str]:
    return sorted(path.name for path in (prepared.run.path / "samples").rglob("*.png"))


def log_texts(prepared: Prepared) -> list[str]:
    return [path.read_text() for path in sorted(prepared.run.logs.iterdir())]


def test_everything_is_made(tmp_path):
    prepared = prepare(tmp_path)
    assert run_all(prepared) == 0
    assert pictures(prepared) == [f"00000{index}.png" for index in range(6)]
    assert missing_shards(prepared.run, prepared.info) == []


def test_processes_share_the_shards_and_make_none_twice(tmp_path):
    prepared = prepare(tmp_path)
    assert run_all(prepared, "cards=2") == 0
    sessions = [read_summary(prepared.run.records_path(shard)).sessions for shard in range(3)]
    assert [len(each) for each in sessions] == [1, 1, 1]
    assert len({session.worker for each in sessions for session in each}) == 2
    assert len(log_texts(prepared)) == 2


def test_there_are_no_more_processes_than_shards(tmp_path):
    prepared = prepare(tmp_path, count=2)
    assert run_all(prepared, "cards=8") == 0
    assert len(log_texts(prepared)) == 1


def test_only_what_is_missing_is_made(tmp_path):
    prepared = prepare(tmp_path)
    run_shard(prepared.run.shard(1), prepared.run, FakeModel(), WORKER)
    before = (prepared.run.path / "samples/000/000002.png").stat().st_mtime_ns
    assert missing_shards(prepared.run, prepared.info) == [0, 2]
    assert run_all(prepared) == 0
    assert (prepared.run.path / "samples/000/000002.png").stat().st_mtime_ns == before
    assert {record.worker for record in read_records(prepared.run.records_path(1)).images.values()} == {"one"}


def test_a_worker_that_fails_gives_the_status(tmp_path):
    prepared = prepare(tmp_path)
    prepared.run.plan_path.unlink()
    assert run_all(prepared) == 2
    assert "jobs: error: cannot read" in log_texts(prepared)[0]


def test_what_was_started_is_noted(tmp_path):
    prepared = prepare(tmp_path)
    run_all(prepared)
    [submission] = prepared.run.submissions()
    assert submission["scheduler"] == "local"
    assert submission["tasks"][0]["shards"] == [0, 1, 2]
    assert (prepared.run.logs / submission["tasks"][0]["logs"][0]).is_file()


def test_an_interrupted_wait_ends_the_workers(tmp_path):
    prepared = prepare(tmp_path, "steps=1000", "images_per_shard=30", count=30)

    def interrupt() -> None:
        if pictures(prepared):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_here(prepared.run, prepared.info.settings, [0], on_wait=interrupt)
    made = pictures(prepared)
    assert 0 < len(made) < 30
    assert pictures(prepared) == made, "nobody goes on making pictures"


def test_ranks_of_an_enclosing_step_do_not_divide_the_work(tmp_path, monkeypatch):
    step = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "3", "SLURM_STEP_TASKS_PER_NODE": "4"}
    for name, value in {**step, "SLURM_NODEID": "0"}.items():
        monkeypatch.setenv(name, value)
    prepared = prepare(tmp_path)
    assert run_all(prepared) == 0
    assert len(pictures(prepared)) == 6


@pytest.mark.parametrize("name", ["with blanks", "it's", '"quoted"', "-dash", "$HOME", "a=b", "100%", "模糊"])
def test_a_run_may_be_anywhere(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    prepared = prepare(folder, count=1)
    assert run_all(prepared) == 0
    assert pictures(prepared) == ["000000.png"]


def test_a_run_moved_as_a_whole_goes_on(tmp_path):
    prepared = prepare(tmp_path)
    moved = prepared.run.path.rename(tmp_path / "elsewhere")
    there = Prepared(type(prepared.run)(Path(moved)), prepared.info, resumed=True)
    assert run_all(there) == 0
    assert len(pictures(there)) == 6


@pytest.mark.parametrize(("limit", "arrays", "each"), [(None, 3, None), (8, 1, 8), (8, 2, 4), (8, 3, 2), (2, 3, 1)])
def test_several_arrays_keep_the_limit_together(limit, arrays, each):
    assert _parallel_tasks(limit, arrays) == each


def test_a_sweep_takes_what_killed_processes_left_anywhere_in_the_run(tmp_path):
    prepared = prepare(tmp_path)
    run_all(prepared)
    run = prepared.run.path
    [workers] = (run / "workers").iterdir()
    folders = ("", "samples", "samples/000", "records", "workers", workers)
    left = [run / folder / ".x.0123456789ab.part" for folder in folders]
    for path in left:
        path.write_bytes(b"half")
    before = pictures(prepared)
    sweep_run(prepared.run)
    assert not any(path.exists() for path in left)
    assert pictures(prepared) == before


def test_what_comes_behind_the_pictures_has_one_order_however_it_was_asked_for():
    assert after_steps(JobSpec(post=["report", "pack", "verify"], webhook="http://x")) == [
        *("pack", "verify", "report", "notify")
    ]
    assert after_steps(JobSpec()) == []
