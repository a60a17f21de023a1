"""A process in a job finds its card and its shards, loads the model only if there is work, and ends with a status."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest

from jobs.attendance import End, read_attendances
from jobs.records import read_summary
from jobs.storage.pack import Finish, finish_shard
from jobs.worker import work as module
from jobs.worker.measuring import Findings, Tried, read_findings
from jobs.worker.place import Place
from jobs.worker.work import work
from jobs.worker.worker import Loaded, Worker, run_shard
from ldm.errors import ConfigError, DeviceError, RunError
from tests.jobs.support import FakeModel, prepare

CARD_VARIABLES = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
STEP = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_NODEID")


@pytest.fixture(autouse=True)
def environ(monkeypatch):
    """A process of its own: what it does to the environment is undone, and no launcher's variables are there."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MIOPEN_"))}
    monkeypatch.setattr(module, "job_end", lambda environ, ask: None)
    for name in CARD_VARIABLES:
        clean.pop(name, None)
    monkeypatch.setattr(os, "environ", clean)
    return clean


@pytest.fixture
def model(monkeypatch):
    fake = FakeModel()
    monkeypatch.setattr(module, "load_model", lambda info, spec: Loaded(fake, f"fake on {spec.device}"))
    return fake


def step(environ, rank, tasks, nodes=1, node=0):
    environ.update(zip(STEP, map(str, (rank, tasks, rank % (tasks // nodes), f"{tasks // nodes}(x{nodes})", node))))
    environ.update(SLURM_JOB_ID="12", SLURMD_NODENAME="dcu1")


def done(prepared) -> list[int]:
    run, shards = prepared.run, range(prepared.info.plan.shards)
    return [shard for shard in shards if read_summary(run.records_path(shard)) is not None]


def test_alone_a_process_does_everything(tmp_path, model):
    prepared = prepare(tmp_path)
    assert work(prepared.run) == 0
    assert done(prepared) == [0, 1, 2]


def test_batches_are_measured_behind_the_pictures_if_somebody_asked(tmp_path, model, monkeypatch):
    prepared = prepare(tmp_path, "height=128")
    made, loads = [], []

    def measure(request):
        made.append((done(prepared), request.height))
        return Findings("gpu X", request.height, request.width, (Tried(1, 0.5),), 7)

    monkeypatch.setattr(module, "load_model", lambda info, spec: loads.append(True) or Loaded(model, "fake", measure))
    assert work(prepared.run) == 0
    assert read_findings(prepared.run) is None
    prepared.run.measure_path.touch()
    for _ in range(2):  # nothing is left to make, and then nothing to measure
        assert work(prepared.run) == 0
        assert read_findings(prepared.run).most == 7
    assert made == [([0, 1, 2], 128)]
    assert len(loads) == 2, "once for the pictures, once where they were made before"


def test_batches_that_cannot_be_measured_cost_no_picture_and_keep_nobody_waiting(tmp_path, model, monkeypatch, caplog):
    prepared = prepare(tmp_path)

    def full(request):
        raise RuntimeError("HIP error: invalid device function")

    monkeypatch.setattr(module, "load_model", lambda info, spec: Loaded(model, "fake", full))
    prepared.run.measure_path.touch()
    assert work(prepared.run) == 0
    assert done(prepared) == [0, 1, 2]
    assert read_findings(prepared.run).advised is None
    assert "batch sizes cannot be measured: HIP error: invalid device function" in caplog.text


def test_the_processes_of_a_step_share_the_shards(tmp_path, model, environ):
    prepared = prepare(tmp_path)
    step(environ, rank=1, tasks=2)
    assert work(prepared.run, ["device=cpu"]) == 0
    assert done(prepared) == [1]


def test_only_the_shards_that_are_named(tmp_path, model):
    prepared = prepare(tmp_path)
    assert work(prepared.run, shards=[2]) == 0
    assert done(prepared) == [2]


def test_the_processes_of_a_task_share_the_shards_that_are_named(tmp_path, model, environ):
    prepared = prepare(tmp_path)
    step(environ, rank=1, tasks=2)
    assert work(prepared.run, ["device=cpu"], shards=[0, 2]) == 0
    assert done(prepared) == [2]


@pytest.mark.parametrize(("part", "rank", "expected"), [((0, 2), 0, [0]), ((0, 2), 1, [1]), ((1, 2), 0, [2])])
def test_parts_and_ranks_together_are_everything_once(tmp_path, model, environ, part, rank, expected):
    prepared = prepare(tmp_path)
    step(environ, rank=rank, tasks=2)
    assert work(prepared.run, ["device=cpu"], part=part) == 0
    assert done(prepared) == expected


def test_a_shard_that_the_run_does_not_have_is_refused(tmp_path, model):
    with pytest.raises(RunError, match="the run has the shards 0 to 2, not 3"):
        work(prepare(tmp_path).run, shards=[3])


def test_nothing_to_do_loads_no_model(tmp_path, model, monkeypatch):
    prepared = prepare(tmp_path)
    work(prepared.run)

    def must_not_load(info, spec):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(module, "load_model", must_not_load)
    assert work(prepared.run) == 0


def test_a_failed_picture_gives_the_status(tmp_path, monkeypatch):
    fake = FakeModel(fail=["picture number 3"])
    monkeypatch.setattr(module, "load_model", lambda info, spec: Loaded(fake, "fake"))
    assert work(prepare(tmp_path).run) == 4


def test_how_it_works_may_differ_from_the_plan_and_what_is_made_may_not(tmp_path, model):
    prepared = prepare(tmp_path)
    work(prepared.run, ["batch_size=1"])
    assert [len(batch) for batch in model.batches] == [1] * 6
    with pytest.raises(ConfigError, match="steps is fixed by the plan"):
        work(prepared.run, ["steps=2"])


def test_of_sixteen_processes_on_two_cards_two_work(tmp_path, model, environ, monkeypatch, caplog):
    monkeypatch.setattr(module, "allocated_cards", lambda environ, gres, ask: ["2", "3"])
    prepared = prepare(tmp_path)
    caplog.set_level("INFO")
    step(environ, rank=5, tasks=16)
    assert work(prepared.run) == 0
    assert done(prepared) == []
    assert "process 5 has no card of its own: 2 are here; start one process a card" in caplog.text
    step(environ, rank=1, tasks=16)
    assert work(prepared.run) == 0
    assert done(prepared) == [1]
    assert environ["HIP_VISIBLE_DEVICES"] == environ["CUDA_VISIBLE_DEVICES"] == "3"


def test_fewer_processes_than_cards_are_told(tmp_path, model, environ, monkeypatch, caplog):
    monkeypatch.setattr(module, "allocated_cards", lambda environ, gres, ask: ["0", "1", "2", "3"])
    step(environ, rank=0, tasks=1)
    assert work(prepare(tmp_path).run) == 0
    assert (
        "4 cards and 1 processes: start one a card, as with srun --ntasks=4 --ntasks-per-node=4, to use all"
        in caplog.text
    )


def test_in_the_shell_of_an_allocation_the_way_to_its_nodes_is_told(tmp_path, model, environ, caplog):
    environ["SLURM_JOB_ID"] = "12"
    run = prepare(tmp_path).run
    assert work(run, ["device=cpu"]) == 0
    assert f"a shell of job 12 and none of its nodes; to work there: srun python -m jobs work {run.path}" in caplog.text


def test_on_a_node_of_the_job_there_is_nothing_to_warn_of(tmp_path, model, environ, caplog):
    step(environ, rank=0, tasks=1)
    assert work(prepare(tmp_path).run, ["device=cpu"]) == 0
    assert "to work there" not in caplog.text


def test_cards_that_a_job_was_given_are_used_or_it_ends(tmp_path, model, environ, monkeypatch):
    monkeypatch.setattr(module, "allocated_cards", lambda environ, gres, ask: ["0"])
    step(environ, rank=0, tasks=1)
    prepared = prepare(tmp_path)
    work(prepared.run)
    summary = read_summary(prepared.run.records_path(0))
    assert summary is not None
    assert summary.sessions[0].device == "fake on gpu"


def test_on_the_cpu_nobody_needs_a_card(tmp_path, model, environ, monkeypatch):
    def must_not_ask(environ, gres, ask):
        raise AssertionError("asked for cards")

    monkeypatch.setattr(module, "allocated_cards", must_not_ask)
    step(environ, rank=0, tasks=1)
    assert work(prepare(tmp_path).run, ["device=cpu"]) == 0
    assert "HIP_VISIBLE_DEVICES" not in environ


def test_in_a_job_kernels_are_cached_in_a_folder_of_the_process_that_goes_with_it(tmp_path, environ, monkeypatch):
    seen = []

    def look(info, spec):
        seen.append((environ["MIOPEN_USER_DB_PATH"], os.path.isdir(environ["MIOPEN_USER_DB_PATH"])))
        return Loaded(FakeModel(), "fake")

    monkeypatch.setattr(module, "load_model", look)
    step(environ, rank=0, tasks=1)
    work(prepare(tmp_path).run, ["device=cpu"])
    [(folder, existed)] = seen
    assert existed
    assert not os.path.exists(folder)


def test_a_kernel_cache_that_the_site_has_set_stays(tmp_path, model, environ):
    step(environ, rank=0, tasks=1)
    environ["MIOPEN_USER_DB_PATH"] = "/site/cache"
    work(prepare(tmp_path).run, ["device=cpu"])
    assert environ["MIOPEN_USER_DB_PATH"] == "/site/cache"
    assert "MIOPEN_CUSTOM_CACHE_DIR" not in environ


def test_a_place_of_its_own_is_what_a_lone_process_has():
    assert Place() == Place(rank=0, processes=1, local_rank=0, node=0, tasks=(1,))


def test_tasks_that_slurm_gave_cards_of_their_own_all_work(tmp_path, model, environ):
    """As under --gpus-per-task=1, where each of them sees one card."""
    prepared = prepare(tmp_path)
    environ.update(SLURM_GPUS_PER_TASK="1", CUDA_VISIBLE_DEVICES="2")
    step(environ, rank=1, tasks=2)
    assert work(prepared.run) == 0
    assert done(prepared) == [1]
    assert environ["HIP_VISIBLE_DEVICES"] == environ["CUDA_VISIBLE_DEVICES"] == "2"


def attendances(prepared):
    return read_attendances(prepared.run.workers)


def test_a_process_says_who_it_is_and_how_it_ended(tmp_path, model, environ):
    prepared = prepare(tmp_path)
    step(environ, rank=1, tasks=2)
    environ.update(SLURM_ARRAY_JOB_ID="12", SLURM_ARRAY_TASK_ID="4")
    work(prepared.run, ["device=cpu"])
    [process] = attendances(prepared)
    assert (process.host, process.job, process.task, process.rank) == ("dcu1", "12", "4", 1)
    assert (process.shards, process.made, process.failed, process.end) == ((1,), 2, 0, End.DONE)
    assert process.loading is not None
    assert process.started <= process.ended


def test_a_process_that_fails_leaves_the_reason(tmp_path, monkeypatch):
    def no_card(info, spec):
        raise DeviceError("the card is gone")

    monkeypatch.setattr(module, "load_model", no_card)
    prepared = prepare(tmp_path)
    with pytest.raises(DeviceError):
        work(prepared.run)
    assert [(each.end, each.message) for each in attendances(prepared)] == [(End.ERROR, "the card is gone")]


def send(number):
    """A model that gets a signal while it makes its second batch, which then lasts an hour."""
    batches = []

    def generate(requests):
        batches.append(requests)
        if len(batches) == 2:
            os.kill(os.getpid(), number)
            time.sleep(3600)
        return FakeModel()(requests)

    return generate


@pytest.mark.parametrize(
    ("number", "status", "end"),
    [
        (signal.SIGTERM, 143, End.TOLD_TO_STOP),
        (signal.SIGINT, 143, End.TOLD_TO_STOP),
        (signal.SIGUSR2, 75, End.OUT_OF_TIME),
        (signal.SIGUSR1, 75, End.OUT_OF_TIME),
    ],
)
def test_a_signal_drops_a_batch_that_would_last_and_keeps_what_was_made(tmp_path, monkeypatch, number, status, end):
    monkeypatch.setattr("jobs.worker.stop.WARNED_SECONDS", -1.0)
    monkeypatch.setattr("jobs.worker.stop.TOLD_SECONDS", -1.0)
    monkeypatch.setattr(module, "load_model", lambda info, spec: Loaded(send(number), "fake"))
    prepared = prepare(tmp_path, "images_per_shard=6", "batch_size=2")
    before = signal.getsignal(number)
    assert work(prepared.run) == status
    assert signal.getsignal(number) == (before if number in (signal.SIGTERM, signal.SIGINT) else signal.SIG_IGN)
    summary = read_summary(prepared.run.records_path(0))
    assert (summary.made, summary.done, summary.sessions[0].trying) == (2, False, ())
    assert [(each.end, each.made) for each in attendances(prepared)] == [(end, 2)]


def test_a_process_stops_before_a_batch_that_would_not_end_in_time(tmp_path, model, monkeypatch):
    monkeypatch.setattr(module, "job_end", lambda environ, ask: time.time() + 5)
    prepared = prepare(tmp_path, "batch_size=2")
    assert work(prepared.run) == 75
    assert [len(batch) for batch in model.batches] == [2], "the first is always tried"
    [process] = attendances(prepared)
    assert process.end is End.OUT_OF_TIME
    assert re.fullmatch(r"[45] s are left and the next batch needs 1\d s", process.message)


def test_a_limit_too_short_for_one_batch_is_an_error_and_no_endless_round(tmp_path, monkeypatch):
    def slow(requests):
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGUSR2)
        time.sleep(3600)

    monkeypatch.setattr("jobs.worker.stop.WARNED_SECONDS", 0.0)
    monkeypatch.setattr(module, "job_end", lambda environ, ask: time.time() + 0.4)
    monkeypatch.setattr(module, "load_model", lambda info, spec: Loaded(slow, "fake"))
    prepared = prepare(tmp_path)
    with pytest.raises(RunError, match="too short for one batch"):
        work(prepared.run)
    assert [each.end for each in attendances(prepared)] == [End.ERROR], "not out of time, at which the job is put back"


def test_shards_at_which_a_worker_died_come_behind_all_others(tmp_path):
    prepared = prepare(tmp_path)
    run = prepared.run

    def die(requests):
        raise SystemExit("as if the process were gone")

    with pytest.raises(SystemExit):
        run_shard(run.shard(0), run, die, Worker("one", "fake", batch_size=2))
    run_shard(run.shard(1), run, FakeModel(), Worker("two", "fake", batch_size=2))
    assert module.dangerous_last(run, [0, 1, 2]) == [1, 2, 0]


def test_what_a_twin_takes_away_as_it_ends_is_made_good(tmp_path, model, monkeypatch):
    """It read the records before this one wrote them, and writes them behind it."""
    prepared = prepare(tmp_path, "images_per_shard=6")
    records = prepared.run.records_path(0)
    taken = []

    def finish_once(run, info, shard, *names):
        if not taken and records.exists():
            taken.append(records.unlink())
        return finish_shard(run, info, shard, *names)

    monkeypatch.setattr(module, "finish_shard", finish_once)
    assert work(prepared.run) == 0
    assert taken
    assert done(prepared) == [0]


def test_a_process_that_leaves_something_undone_does_not_say_that_it_did_it(tmp_path, model, monkeypatch):
    prepared = prepare(tmp_path)
    monkeypatch.setattr(module, "finish_shard", lambda *words: Finish.LEFT)
    assert work(prepared.run) == 4
    assert attendances(prepared)[0].message == "3 shards with something left"


def test_a_paused_run_is_left_alone(tmp_path, model):
    prepared = prepare(tmp_path)
    prepared.run.pause_path.touch()
    assert work(prepared.run) == 0
    assert model.batches == []
    assert [each.end for each in attendances(prepared)] == [End.PAUSED]


def test_what_killed_workers_left_in_a_finished_shard_is_swept(tmp_path, model):
    prepared = prepare(tmp_path)
    work(prepared.run)
    left = [
        prepared.run.path / "samples/000/.000002.png.0123456789ab.part",
        prepared.run.path / "records/.shard-00001.jsonl.0123456789ab.part",
    ]
    for path in left:
        path.write_bytes(b"half")
    work(prepared.run, shards=[0, 2])
    assert all(path.exists() for path in left)
    work(prepared.run, shards=[1])
    assert not any(path.exists() for path in left)


def test_a_folder_of_many_finished_shards_is_swept_at_one_look(tmp_path, model, monkeypatch):
    prepared = prepare(tmp_path)
    work(prepared.run)
    swept = []
    monkeypatch.setattr("jobs.worker.worker.sweep", lambda folder, names: swept.append((folder.name, len(names))))
    work(prepared.run)
    assert swept == [("records", 3), ("000", prepared.info.plan.images)]


def test_a_damaged_shard_is_named_and_the_others_are_made(tmp_path, model, caplog):
    prepared = prepare(tmp_path, "output=webdataset")
    assert work(prepared.run, shards=[0]) == 0
    tar = prepared.run.tar_path(0)
    tar.write_bytes(tar.read_bytes()[:1000])
    assert work(prepared.run) == 4
    assert done(prepared) == [0, 1, 2]
    assert f"{tar} is damaged" in caplog.text
    assert "1 shards damaged" in attendances(prepared)[-1].message
