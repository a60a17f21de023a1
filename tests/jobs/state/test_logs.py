"""Logs are found through what was submitted and who was at work, and the lines that matter are picked from them."""

from __future__ import annotations

import pytest

from jobs.attendance import read_attendances
from jobs.state.logs import describe_logs, describe_unfinished, reasons, rendered_logs, task_logs, unfinished
from tests.jobs.crew import attended
from tests.jobs.support import jobs, prepare

TRACEBACK = """\
2024-02-23 12:00:00,000 shard 3: 4 of 4 pictures to make
Traceback (most recent call last):
  File "jobs/worker/worker.py", line 7, in run_shard
    generate(batch)
    ^^^^^^^^^^^^^^^
RuntimeError: HIP error: invalid device function
srun: error: dcu1: task 0: Exited with exit code 1
"""


def note(run, job, shards, *logs):
    run.add_submission({"tasks": [{"job": job, "shards": shards, "logs": list(logs)}]})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all is well\n", []),
        ("", []),
        (
            TRACEBACK,
            ["RuntimeError: HIP error: invalid device function"],
        ),
        (
            "ModuleCmd_Load.c(213):ERROR:105: Unable to locate a modulefile for 'missing'\n"
            "jobs: error: the setup failed with status 1 at: module load missing\n",
            [
                "ModuleCmd_Load.c(213):ERROR:105: Unable to locate a modulefile for 'missing'",
                "jobs: error: the setup failed with status 1 at: module load missing",
            ],
        ),
        (
            "going on\nslurmstepd: error: *** JOB 12 ON dcu1 CANCELLED AT 2024-02-23T12:00:00 DUE TO TIME LIMIT ***\n",
            ["slurmstepd: error: *** JOB 12 ON dcu1 CANCELLED AT 2024-02-23T12:00:00 DUE TO TIME LIMIT ***"],
        ),
        (
            "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=12.0. Some of your processes may have been "
            "killed by the cgroup out-of-memory handler.\n",
            [
                "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=12.0. Some of your processes may have been "
                "killed by the cgroup out-of-memory handler."
            ],
        ),
        ("jobs: error: a\n" * 5, ["jobs: error: a"]),
        ("\n".join(f"jobs: error: {letter}" for letter in "abcde"), [f"jobs: error: {letter}" for letter in "cde"]),
        (
            "2024-02-23 12:00:00,000 picture 3 failed: NaN\nsrun: error: dcu1: task 0: Exited with exit code 4\n",
            ["2024-02-23 12:00:00,000 picture 3 failed: NaN"],
        ),
        (
            "srun: error: dcu1: task 0: Exited with exit code 9\n",
            ["srun: error: dcu1: task 0: Exited with exit code 9"],
        ),
        (
            "2024-02-23 12:00:00,000 stopping: the run is paused\n",
            ["2024-02-23 12:00:00,000 stopping: the run is paused"],
        ),
    ],
    ids=[
        "well",
        "empty",
        "traceback",
        "setup",
        "time limit",
        "memory",
        "repeated",
        "many",
        "a picture",
        "bare",
        "paused",
    ],
)
def test_the_lines_that_matter(text, expected):
    assert list(reasons(text.splitlines())) == expected


def test_logs_are_those_of_each_process_of_each_submission(tmp_path):
    run = prepare(tmp_path).run
    note(run, "12_0", [0, 1, 2], "12/12_0_0_log.out", "12/12_0_1_log.out")
    found = task_logs(run, [])
    assert [(log.job, log.shards, log.path.relative_to(run.logs).as_posix()) for log in found] == [
        ("12_0", (0, 2), "12/12_0_0_log.out"),
        ("12_0", (1,), "12/12_0_1_log.out"),
    ]


def test_logs_of_a_rendered_file_are_known_by_its_workers(tmp_path):
    run = prepare(tmp_path).run
    note(run, "12_0", [0], "12_0_0_log.out")
    attended(run, job="12", task="0", shards=(0,))
    attended(run, job="40", task="7", shards=(1,), rank=0)
    attended(run, job="40", task="7", shards=(2,), rank=1)
    found = task_logs(run, read_attendances(run.workers))
    assert [(log.job, log.shards, log.path.name) for log in found] == [
        ("12_0", (0,), "12_0_0_log.out"),
        ("40_7", (1, 2), "40_7.log"),
    ]


def test_logs_of_rendered_tasks_whose_setup_failed_are_found_in_the_folder(tmp_path):
    run = prepare(tmp_path).run
    attended(run, job="40", task="0", shards=(0,))
    for name in ("40_0.log", "9_1.log", "40_1.log", "9_2.log", "local-7.log", "40_1.log.part"):
        (run.logs / name).write_text("jobs: error: the setup failed with status 1 at: false\n")
    known = task_logs(run, read_attendances(run.workers))
    found = rendered_logs(run, known)
    assert sorted((log.job, log.shards, log.path.name) for log in found) == [
        ("40_1", (), "40_1.log"),
        ("9_2", (), "9_2.log"),
    ]
    [group] = unfinished(found, undone=[1], coming=["40_1"])
    assert [log.job for log in group.logs] == ["9_2"]


def test_tasks_that_failed_for_one_reason_are_told_once_newest_first(tmp_path):
    run = prepare(tmp_path, count=12).run
    for task in range(4):
        note(run, f"12_{task}", [task], f"12_{task}.out")
        (run.logs / f"12_{task}.out").write_text(f"jobs: error: no card 3 on dcu{task}\n")
    note(run, "13", [4], "13.out")
    (run.logs / "13.out").write_text(TRACEBACK)
    first, second = unfinished(task_logs(run, []), undone=range(6), coming=())
    assert [log.job for log in first.logs] == ["13"]
    assert [log.job for log in second.logs] == ["12_3", "12_2", "12_1", "12_0"]
    assert describe_unfinished(second, {"12_3": "FAILED 2:0"}) == [
        f"job 12_3 and 3 more, shards 0-3, FAILED 2:0: {run.logs / '12_3.out'}",
        "    jobs: error: no card 3 on dcu3",
    ]


def test_a_task_that_finished_or_may_still_do_so_is_not_told(tmp_path):
    run = prepare(tmp_path).run
    for task in range(3):
        note(run, f"12_{task}", [task], f"12_{task}.out")
        (run.logs / f"12_{task}.out").write_text("jobs: error: x\n")
    [group] = unfinished(task_logs(run, []), undone=[1, 2], coming=["12_2"])
    assert [log.job for log in group.logs] == ["12_1"]


def test_a_task_without_any_log_is_told_with_what_that_means(tmp_path):
    run = prepare(tmp_path).run
    note(run, "12_0", [0, 1], "12_0_0.out", "12_0_1.out")
    [group] = unfinished(task_logs(run, []), undone=[0, 1, 2], coming=())
    [line] = describe_unfinished(group, {"12_0": "FAILED 0:53"})
    assert line.startswith(f"job 12_0, shards 0-1, FAILED 0:53: there is no {run.logs / '12_0_1.out'}: ")
    assert line.endswith("its node does not see that folder")


def test_the_first_process_tells_for_those_that_never_began(tmp_path):
    run = prepare(tmp_path).run
    note(run, "12_0", [0, 1], "12_0_0.out", "12_0_1.out")
    (run.logs / "12_0_0.out").write_text("jobs: error: the setup failed with status 1 at: false\n")
    [group] = unfinished(task_logs(run, []), undone=[0, 1, 2], coming=())
    assert [log.path.name for log in group.logs] == ["12_0_0.out"]


def test_a_log_without_a_reason_gives_its_last_line(tmp_path):
    run = prepare(tmp_path).run
    note(run, "12_0", [0], "12_0.out")
    (run.logs / "12_0.out").write_text("shard 0: 2 of 2 pictures to make\n\n")
    [group] = unfinished(task_logs(run, []), undone=[0], coming=())
    assert group.lines == ("shard 0: 2 of 2 pictures to make",)


def test_the_last_lines_of_the_newest_logs_come_first(tmp_path):
    run = prepare(tmp_path).run
    for task in range(25):
        note(run, f"12_{task}", [0], f"12_{task}.out")
        (run.logs / f"12_{task}.out").write_text("".join(f"line {line}\n" for line in range(30)))
    lines = describe_logs(task_logs(run, []), lines=2)
    assert lines[:3] == [f"{run.logs / '12_24.out'} (job 12_24, shard 0)", "    line 28", "    line 29"]
    assert lines[-1] == "and 5 older ones; --shard N shows those of one shard"


def test_the_command_shows_and_filters(tmp_path):
    run = prepare(tmp_path).run
    for task in range(2):
        note(run, f"local-{task}", [task], f"{task}.log")
        (run.logs / f"{task}.log").write_text(f"begun\njobs: error: reason {'ab'[task]}\n")
    both = jobs("logs", str(run.path), "--lines", "1", cwd=tmp_path).stdout.splitlines()
    assert both[1::2] == ["    jobs: error: reason b", "    jobs: error: reason a"]
    one = jobs("logs", str(run.path), "--shard", "0", cwd=tmp_path).stdout.splitlines()
    assert one[1:] == ["    begun", "    jobs: error: reason a"]
    failed = jobs("logs", str(run.path), "--failed", cwd=tmp_path).stdout
    assert "job local-1, shard 1: " in failed
    assert "    begun" not in failed
    assert jobs("logs", str(run.path), "--shard", "2", cwd=tmp_path).stdout == "there is no log yet\n"


def test_a_run_without_trouble_has_nothing_to_say(tmp_path):
    run = prepare(tmp_path).run
    done = jobs("logs", str(run.path), "--failed", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "no task that has ended has left work undone\n")
