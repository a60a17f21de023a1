"""python -m jobs, typed as a user types it: what it prints, what it ends with, and what it never imports."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.cluster.queue import busy_shards
from jobs.rundir import RunDir
from ldm.inference.models import PROJECT_ROOT
from tests.jobs.support import jobs, write_prompts
from tests.slurm_lab.processes import eventually

REHEARSE = ("model=rehearsal", "steps=1", "images_per_shard=2")


def runs(folder: Path) -> list[str]:
    outputs = folder / "outputs"
    return sorted(path.name for path in outputs.iterdir()) if outputs.exists() else []


def test_prompts_become_pictures_a_grid_and_a_line_for_each(tmp_path):
    write_prompts(tmp_path)
    done = jobs("submit", "prompts.txt", *REHEARSE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [run] = runs(tmp_path)
    assert done.stdout.splitlines()[0] == "6 of 6 pictures done (100 %), 0 flagged, 0 failed, 0 missing"
    assert f"pictures: outputs/{run}/samples" in done.stdout
    assert f"grid:     outputs/{run}/grid-0000.png" in done.stdout
    assert len(list((tmp_path / "outputs" / run / "samples" / "000").glob("*.png"))) == 6
    assert "6/6 pictures" in done.stderr


def test_a_second_time_nothing_is_missing(tmp_path):
    write_prompts(tmp_path)
    jobs("submit", "prompts.txt", *REHEARSE, cwd=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "outputs").rglob("samples/*/*.png")}
    done = jobs("submit", "prompts.txt", *REHEARSE, cwd=tmp_path)
    assert (done.returncode, len(runs(tmp_path))) == (0, 1)
    assert "nothing is missing" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_run_is_planned_worked_on_and_looked_at_step_by_step(tmp_path):
    write_prompts(tmp_path)
    planned = jobs("plan", "prompts.txt", *REHEARSE, cwd=tmp_path)
    run = planned.stdout.strip()
    assert run == f"outputs/{runs(tmp_path)[0]}"
    assert jobs("status", run, cwd=tmp_path).stdout.startswith("0 of 6 pictures done")
    assert jobs("work", run, "--shard", "1", "batch_size=1", cwd=tmp_path).returncode == 0
    assert jobs("status", run, cwd=tmp_path).stdout.startswith("2 of 6 pictures done (33 %)")
    resumed = jobs("resume", run, "cards=2", cwd=tmp_path)
    assert resumed.stdout.startswith("6 of 6 pictures done")
    assert jobs("grid", run, cwd=tmp_path).stdout.strip() == f"{run}/grid-0000.png"


def test_a_failed_picture_is_in_the_status_and_the_rest_is_made(tmp_path):
    (tmp_path / "start.png").write_text("planned")
    lines = [{"prompt": "a", "init": "start.png", "strength": 1.0}, {"prompt": "b"}]
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = jobs("plan", "two.jsonl", *REHEARSE, cwd=tmp_path).stdout.strip()
    (tmp_path / "start.png").write_text("changed")
    done = jobs("resume", run, cwd=tmp_path)
    assert done.returncode == 4
    assert "1 of 2 pictures done (50 %), 0 flagged, 1 failed, 0 missing" in done.stdout
    assert "failed: picture 0: init image" in done.stdout


def test_render_prints_a_job_and_nothing_else(tmp_path):
    write_prompts(tmp_path)
    done = jobs("render", "prompts.txt", *REHEARSE, "cluster=scnet-dcu", cwd=tmp_path)
    assert done.stdout.startswith("#!/bin/bash\n# Makes what is missing in ")
    assert "#SBATCH --array=0-2\n" in done.stdout
    assert subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=False).returncode == 0
    again = jobs("render", f"outputs/{runs(tmp_path)[0]}", "cluster=scnet-dcu", cwd=tmp_path)
    assert again.stdout == done.stdout


def test_render_says_what_only_submit_does(tmp_path):
    write_prompts(tmp_path)
    done = jobs("render", "prompts.txt", *REHEARSE, "cluster=scnet-dcu", "post=[verify]", "links=2", cwd=tmp_path)
    assert done.returncode == 0
    assert "post=, links= is left out: only submit starts jobs behind others" in done.stderr


def test_render_of_a_finished_run_has_nothing_to_submit(tmp_path):
    write_prompts(tmp_path)
    jobs("submit", "prompts.txt", *REHEARSE, cwd=tmp_path)
    done = jobs("render", f"outputs/{runs(tmp_path)[0]}", "cluster=scnet-dcu", cwd=tmp_path)
    assert done.returncode == 2
    assert "nothing is missing in" in done.stderr


def test_a_run_without_a_picture_has_no_grid(tmp_path):
    write_prompts(tmp_path)
    run = jobs("plan", "prompts.txt", *REHEARSE, cwd=tmp_path).stdout.strip()
    done = jobs("grid", run, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "has no picture yet" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["submit", "missing.txt"], "cannot read the prompts file missing.txt: No such file or directory"),
        (["submit", "prompts.txt", "step=3"], "there is no key 'step'; did you mean steps?"),
        (["submit", "prompts.txt", "cluster=nowhere"], "there is no cluster 'nowhere'"),
        (["submit", "prompts.txt", "height=500"], "height must be a multiple of 8 px, at most 4096, got 500; try 496"),
        (["submit", "prompts.txt", "outputs=prompts.txt/x"], "a file stands where a folder must be"),
        (["render", "prompts.txt"], "cluster 'local' has no Slurm to render a job for; give cluster=NAME"),
        (["status", "nowhere"], "is no run folder: it has no run.yaml"),
        (["work", "nowhere"], "is no run folder: it has no run.yaml"),
        (["render", "prompts.txt", "outputs=50%", "cluster=scnet-dcu"], "the path of a run on Slurm must not hold '%'"),
    ],
)
def test_what_a_user_can_put_right_is_one_line_and_status_2(tmp_path, words, message):
    write_prompts(tmp_path)
    extra = ["model=rehearsal"] if words[0] in ("submit", "render") else []
    done = jobs(*words, *extra, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("jobs: error: ")
    assert message in last
    assert "Traceback" not in done.stderr


def test_without_slurm_submitting_to_it_says_so(tmp_path):
    write_prompts(tmp_path)
    done = jobs("submit", "prompts.txt", *REHEARSE, "cluster=scnet-dcu", cwd=tmp_path, env={"PATH": "/nowhere"})
    assert done.returncode == 3
    assert "sbatch is not here: load the site's Slurm, or use cluster=local" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("words", [[], ["dance"], ["status", "x", "steps=3"], ["submit", "prompts.txt", "--steps=3"]])
def test_another_command_or_option_is_refused(tmp_path, words):
    done = jobs(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert "usage: python -m jobs" in done.stderr


@pytest.mark.parametrize("words", [["--help"], ["submit", "--help"], ["work", "--help"]])
def test_help_is_given(tmp_path, words):
    done = jobs(*words, cwd=tmp_path)
    assert done.returncode == 0
    assert "usage: python -m jobs" in done.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--help"], 0),
        (["plan", "prompts.txt"], 0),
        (["render", "prompts.txt", "cluster=scnet-dcu"], 0),
        (["status", "RUN"], 0),
        (["resume", "RUN", "cluster=scnet-dcu"], 3),
        (["doctor", "cluster=scnet-dcu"], None),
        (["work", "RUN", "device=cpu"], 0),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_the_login_node_imports_no_torch_numpy_or_pillow(tmp_path, words, expected):
    write_prompts(tmp_path)
    run = jobs("plan", "prompts.txt", *REHEARSE, cwd=tmp_path).stdout.strip()
    words = [run if word == "RUN" else word for word in words]
    words += REHEARSE if words[0] in ("plan", "render") else ()
    code = f"""
import sys
from jobs.cli import main
try:
    status = main({words!r})
except SystemExit as end:
    status = end.code
heavy = {{"torch", "numpy", "PIL", "transformers", "tokenizers"}} & set(sys.modules)
sys.stderr.write(f"\\n{{status}} {{sorted(heavy)}}")
"""
    environ = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT), "PATH": "/usr/bin:/bin" if expected != 3 else "/nowhere"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True)
    status, heavy = done.stderr.splitlines()[-1].split(" ", 1)
    assert heavy == "[]", done.stderr
    assert expected is None or int(status) == expected, done.stderr


@pytest.mark.parametrize("name", ["with blanks", "it's", "-dash", "a=b", "$HOME", "模糊"])
def test_prompts_and_runs_of_any_name(tmp_path, name):
    shutil.move(str(write_prompts(tmp_path, 1)), str(tmp_path / f"{name}.txt"))
    done = jobs("submit", "--", f"{name}.txt", *REHEARSE, f"outputs={name}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / name).rglob("samples/*/*.png"))) == 1


def test_an_interrupted_submit_says_how_to_go_on(monkeypatch, capsys):
    from jobs import cli
    from jobs.commands import seeing

    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(seeing, "status", interrupted)
    assert cli.main(["status", "x"]) == 130
    assert "the same command goes on with what is missing" in capsys.readouterr().err


@pytest.mark.parametrize("status", [0, 4])
def test_in_a_job_the_status_of_the_command_is_that_of_the_process(monkeypatch, status):
    from jobs.commands import making

    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    if status == 0:
        assert making.run_in_job(lambda words: status, ["status", "x"]) is None
    else:
        with pytest.raises(SystemExit) as ended:
            making.run_in_job(lambda words: status, ["status", "x"])
        assert ended.value.code == status


def test_a_warning_before_the_worker_listens_puts_the_job_back(monkeypatch):
    from jobs.commands import making

    before = signal.getsignal(signal.SIGUSR2)
    try:
        with pytest.raises(SystemExit) as ended:
            making.run_in_job(lambda words: os.kill(os.getpid(), signal.SIGUSR2), ["work", "x"])
    finally:
        signal.signal(signal.SIGUSR2, before)
        signal.signal(signal.SIGUSR1, before)
    assert ended.value.code == 75


def test_what_processes_here_are_at_is_left_to_them(tmp_path):
    write_prompts(tmp_path, 60)
    run = tmp_path / jobs("plan", "prompts.txt", "model=rehearsal", "steps=1000", cwd=tmp_path).stdout.strip()
    with worker_here(tmp_path, "work", str(run)) as worker:
        assert eventually(lambda: list(run.glob("workers/*/*.json")) and busy_shards(RunDir(run), {}))
        done = jobs("resume", str(run), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "nothing to start: processes here are at what is missing" in done.stdout
        assert worker.poll() is None


@contextlib.contextmanager
def worker_here(folder, *words):
    """A worker that somebody else has started; ended with the block."""
    environ = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}
    worker = subprocess.Popen(
        [sys.executable, "-m", "jobs", *words], cwd=folder, env=environ, stderr=subprocess.DEVNULL
    )
    try:
        yield worker
    finally:
        worker.kill()
        worker.wait()


def test_a_run_keeps_the_profile_that_it_was_planned_with_and_says_so(tmp_path):
    write_prompts(tmp_path)
    profile = tmp_path / "mine.yaml"
    profile.write_text("scheduler: local\n")
    run = jobs("plan", "prompts.txt", *REHEARSE, "cluster=mine.yaml", cwd=tmp_path).stdout.strip()
    refused = jobs("plan", "prompts.txt", *REHEARSE, "cluster=mine", cwd=tmp_path)
    assert "there is no cluster 'mine' in configs/clusters; did you mean mine.yaml?" in refused.stderr
    os.utime(profile, (time.time() + 9,) * 2)
    assert "cluster=mine.yaml takes what it says now" in jobs("resume", run, cwd=tmp_path).stderr
    assert "takes what it says now" not in jobs("resume", run, "cluster=mine.yaml", cwd=tmp_path).stderr


def test_a_paused_run_is_not_started_without_a_word(tmp_path):
    write_prompts(tmp_path)
    run = jobs("plan", "prompts.txt", *REHEARSE, cwd=tmp_path).stdout.strip()
    assert jobs("pause", run, cwd=tmp_path).returncode == 0
    done = jobs("submit", "prompts.txt", *REHEARSE, cwd=tmp_path)
    assert done.returncode == 2
    assert f"the run is paused; python -m jobs resume {run} goes on" in done.stderr
    assert jobs("resume", run, cwd=tmp_path).returncode == 0


def test_a_reader_that_has_seen_enough_ends_a_command_without_a_traceback(tmp_path):
    write_prompts(tmp_path)
    command = [sys.executable, "-m", "jobs", "render", "prompts.txt", *REHEARSE, "cluster=scnet-dcu"]
    environ = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}
    with subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as done:
        done.stdout.close()
        said = done.stderr.read().decode()
        assert done.wait() == 141
    assert "Traceback" not in said
