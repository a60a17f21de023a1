"""The text of a job: reviewed as golden files, read by shellcheck, and run by bash with a stand-in for srun.

`srun` is stood in for here to look at what it is given; the tests on the real cluster run the same text under Slurm.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Sequence

import pytest

from jobs.attendance import End
from jobs.config import Settings, read_settings
from jobs.rundir import RunDir
from jobs.submit.launch import SRUN_ARGUMENTS
from jobs.submit.sbatch import (
    TEMPLATES,
    directives,
    render,
    render_after,
    setup_blocks,
    warn_of_own_folder,
    worker_device,
)
from ldm.errors import ConfigError, OutputError
from ldm.inference.models import PROJECT_ROOT
from tests.jobs.crew import attended

GOLDEN = PROJECT_ROOT / "tests" / "golden"
RUN = RunDir(Path("/public/home/user/sdbatch/outputs/portraits-20240223"))
# What stands in no golden file, for it is this machine's. Python first: it may lie below the root.
HERE = {sys.executable: "/public/home/user/ldm/bin/python", str(PROJECT_ROOT): "/public/home/user/sdbatch"}
CASES = {
    "dcu": ["cluster=scnet-dcu", "cards=2", "max_parallel=8"],
    "gpu": ["cluster=slurm-gpu", "requeue=false", "time_limit_min=30", "cluster.account=project7"],
    "site": [
        "cluster=scnet-dcu",
        "device=cpu",
        'cluster.setup=["module switch compiler/rocm/dtk-22.10.1", "source ~/miniconda3/bin/activate ldm", '
        '"export LD_LIBRARY_PATH=~/miniconda3/envs/ldm/lib:$LD_LIBRARY_PATH"]',
        "cluster.env.HSA_FORCE_FINE_GRAIN_PCIE=1",
        "cluster.env.QUOTED=it's $HOME",
        "cluster.directives.mem-per-cpu=3G",
        "cluster.directives.exclusive=",
        'cluster.omit=["open-mode", "nodes"]',
        "cluster.python=/public/home/user/miniconda3/envs/ldm/bin/python",
    ],
}


def settings(*words: str) -> Settings:
    return read_settings(words)


def shellcheck(*words: str) -> str:
    assert shutil.which("shellcheck"), "shellcheck is needed: apt-get install shellcheck"
    done = subprocess.run(["shellcheck", *words], stdout=subprocess.PIPE, check=False)
    return done.stdout.decode()


@pytest.mark.parametrize("name", CASES)
def test_a_job_is_the_text_of_its_golden_file(name):
    given = settings(*CASES[name])
    text = render(RUN, given, [0, 1, 2, 5, 6, 7], 12 // given.spec.cards)
    for here, there in HERE.items():
        text = text.replace(here, there)
    golden = GOLDEN / f"{name}.sbatch"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text(), "run `make golden` if the change is meant, and read the diff"


@pytest.mark.parametrize("name", CASES)
def test_shellcheck_has_nothing_to_say_about_a_job(tmp_path, name):
    file = tmp_path / "job.sbatch"
    file.write_text(render(RUN, settings(*CASES[name]), [0], 1))
    # Of the site's own words: a file that only the site has (SC1090, SC1091), a sign kept from the shell (SC2016).
    own = ["--exclude=SC1090,SC1091,SC2016"] if name == "site" else []
    assert shellcheck(*own, str(file)) == ""


def test_shellcheck_has_nothing_to_say_about_the_templates():
    assert shellcheck(*map(str, sorted(TEMPLATES.glob("*.sh")))) == ""


def test_cards_are_asked_for_by_gres_alone():
    text = render(RUN, settings("cluster=scnet-dcu", "cards=2"), [0], 1)
    assert "#SBATCH --gres=dcu:2\n" in text
    assert "gpus" not in text
    assert "ntasks-per-node=2\n" in text


def test_without_a_gres_no_card_is_asked_for():
    assert "gres" not in directives(RUN, settings("cluster=scnet-dcu", "cluster.gres=null"))


def test_more_cards_than_a_node_has_are_refused():
    with pytest.raises(ConfigError, match="cards must be at most 4, a node's on this cluster, got 8"):
        render(RUN, settings("cluster=scnet-dcu", "cards=8"), [0], 1)


@pytest.mark.parametrize(
    ("words", "device"),
    [
        (["cluster=scnet-dcu"], "gpu"),
        (["cluster=scnet-dcu", "device=cpu"], "cpu"),
        (["cluster=scnet-dcu", "device=dcu"], "dcu"),
        (["cluster=scnet-dcu", "cluster.gres=null"], "auto"),
        (["cluster=local"], "auto"),
    ],
)
def test_where_cards_are_asked_for_the_cpu_does_not_take_over_in_silence(words, device):
    assert worker_device(settings(*words)) == device


@pytest.mark.parametrize(("shards", "array"), [([0, 1, 2, 3], "0-1"), ([2], "1"), ([0, 3], "0-1"), (range(9), "0-4")])
def test_the_array_has_the_tasks_whose_shards_are_missing(shards, array):
    text = render(RUN, settings("cluster=scnet-dcu", "cards=2"), shards, 5)
    assert f"#SBATCH --array={array}\n" in text
    assert "export SDBATCH_PARTS=5\n" in text


@pytest.mark.parametrize("sign", ["%", "\\", "\n"])
def test_a_folder_whose_name_slurm_would_read_otherwise_is_refused(tmp_path, sign):
    with pytest.raises(OutputError, match=r"(?s)the path of a run on Slurm must not hold .*; give outputs=FOLDER"):
        render(RunDir(tmp_path / f"a{sign}b"), settings("cluster=scnet-dcu"), [0], 1)


def test_a_folder_that_nodes_may_not_see_is_told(caplog):
    warn_of_own_folder(RunDir(Path("/tmp/outputs/a-20240223")))
    assert "is on this machine alone: a node that does not see it fails without a log" in caplog.text
    caplog.clear()
    warn_of_own_folder(RUN)
    assert caplog.text == ""


class Bash:
    """Runs a rendered job as Slurm would, with a stand-in for srun that notes its words and ends as it is told."""

    def __init__(self, folder: Path, status: int = 0, restarts: int = 0) -> None:
        self.folder = folder
        self.noted = folder / "noted.json"
        script = f"""#!{sys.executable}
import json, os, sys
json.dump([sys.argv[1:], dict(os.environ)], open({str(self.noted)!r}, "w"))
sys.exit({status})
"""
        (folder / "bin").mkdir()
        (folder / "bin" / "srun").write_text(script)
        (folder / "bin" / "srun").chmod(0o755)
        asked = shlex.quote(str(folder / "scontrol"))
        (folder / "bin" / "scontrol").write_text(
            f'#!/bin/sh\necho "$@" >> {asked}\n[ "$1" != show ] || echo "   Requeue=1 Restarts={restarts} Batch=1"\n'
        )
        (folder / "bin" / "scontrol").chmod(0o755)

    def run(self, text: str, task: int = 3) -> subprocess.CompletedProcess[str]:
        (self.folder / "job").write_text(text)
        numbers = {"SLURM_JOB_ID": "15", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": str(task)}
        environ = {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", **numbers}
        command = ["bash", str(self.folder / "job")]
        return subprocess.run(command, env=environ, cwd="/", capture_output=True, text=True, timeout=60, check=False)

    @property
    def words(self) -> list[str]:
        return list(json.loads(self.noted.read_text())[0])

    @property
    def environ(self) -> dict[str, str]:
        return dict(json.loads(self.noted.read_text())[1])


def job(run: Path, *words: str, setup: Sequence[str] = ()) -> str:
    """A rendered job of a cluster whose setup is `setup`."""
    given = settings("cluster=scnet-dcu", f"cluster.setup={json.dumps(list(setup))}", *words)
    return render(RunDir(run), given, [0], 1)


@pytest.mark.parametrize("status", [0, 1, 4, 7, 137])
def test_the_exit_status_of_the_work_is_that_of_the_job(tmp_path, status):
    done = Bash(tmp_path, status).run(job(tmp_path))
    assert done.returncode == status
    assert f"ended with status {status} on" in done.stderr


@pytest.mark.parametrize("status", [75, 140], ids=["it stopped in time", "USR2 came before it could listen"])
def test_a_job_whose_time_was_up_puts_itself_back_into_the_queue(tmp_path, status):
    done = Bash(tmp_path, status).run(job(tmp_path))
    assert done.returncode == 75
    assert (tmp_path / "scontrol").read_text() == "show job 12_3\nrequeue 12_3\n"
    assert "job 12_3 goes on from the queue" in done.stderr


def test_a_job_that_runs_elsewhere_by_now_is_left_alone(tmp_path):
    """Its node was given up and its own processes lived on: putting it back would end its successor."""
    done = Bash(tmp_path, 75, restarts=1).run(job(tmp_path))
    assert done.returncode == 75
    assert (tmp_path / "scontrol").read_text() == "show job 12_3\n"
    assert "job 12_3 has been started again elsewhere" in done.stderr


@pytest.mark.parametrize(
    ("status", "other", "requeued"),
    [
        (137, {"end": End.OUT_OF_TIME}, True),
        (139, {"end": End.OUT_OF_TIME}, True),
        (137, {"end": End.DONE}, False),
        (137, {"end": None}, False),
        (143, {"end": End.OUT_OF_TIME}, False),  # cancelled
        (4, {"end": End.OUT_OF_TIME}, False),  # 75 would have been the higher one
        (137, {"end": End.OUT_OF_TIME, "task": "4"}, False),
        (137, {"end": End.OUT_OF_TIME, "rank": 2}, False),
    ],
)
def test_where_one_process_was_killed_the_job_goes_on_for_another_whose_time_was_up(tmp_path, status, other, requeued):
    attended(RunDir(tmp_path), **{"job": "12", "task": "3", "rank": 1, "host": "node-0-1", **other})
    done = Bash(tmp_path, status).run(job(tmp_path, "cards=2"))
    assert done.returncode == status
    assert ("job 12_3 goes on from the queue" in done.stderr) is requeued


@pytest.mark.parametrize("word", ["requeue=false", "cluster.requeue=false"])
def test_where_jobs_may_not_requeue_none_tries(tmp_path, word):
    done = Bash(tmp_path, 75).run(job(tmp_path, word))
    assert done.returncode == 75
    assert f"the time was up; where no further job waits: python -m jobs resume {tmp_path}" in done.stderr
    assert not (tmp_path / "scontrol").exists()


@pytest.mark.parametrize("name", ["plain", "with blanks", "it's", '"quoted"', "-dash", "$HOME", "a;b&c", "模糊", "`x`"])
def test_a_run_folder_of_any_name_reaches_the_worker_whole(tmp_path, name):
    bash = Bash(tmp_path)
    assert bash.run(job(tmp_path / name, "batch_size=2")).returncode == 0
    worker = ["-m", "jobs", "work", "--part", "3/1", str(tmp_path / name), "batch_size=2", "device=gpu"]
    assert bash.words[-len(worker) :] == worker


def test_one_process_a_card_with_its_cores_and_none_ends_the_others(tmp_path):
    bash = Bash(tmp_path)
    bash.run(job(tmp_path, "cards=2"))
    assert bash.words[:4] == ["--ntasks=2", "--cpus-per-task=8", "--kill-on-bad-exit=0", "--wait=0"]


def test_mail_is_asked_of_slurm_only_for_those_who_want_it():
    assert "mail-user" not in directives(RUN, settings("cluster=scnet-dcu"))
    asked = directives(RUN, settings("cluster=scnet-dcu", "mail=me@site"))
    assert (asked["mail-user"], asked["mail-type"]) == ("me@site", "END,FAIL")


def test_what_comes_behind_the_pictures_asks_for_no_card_and_does_each_step_whatever_happened(tmp_path):
    steps = settings("cluster=scnet-dcu", "cluster.setup=[]", "cards=2", "cluster.python=/bin/echo")
    text = render_after(RunDir(tmp_path), steps, ["verify", "report"], "afterany:12:13", tmp_path / "after.log")
    assert "--gres" not in text
    assert "#SBATCH --dependency=afterany:12:13\n" in text
    assert "#SBATCH --cpus-per-task=1\n" in text
    text = text.replace('"$SDBATCH_PYTHON" - <<', "cat <<")  # this python is none, and is not asked what it has
    done = Bash(tmp_path).run(text)
    assert done.stdout.splitlines()[-2:] == [f"-m jobs verify {tmp_path}", f"-m jobs report {tmp_path}"]
    assert done.returncode == 0


def failing(folder: Path, *words: str) -> str:
    """The job behind the pictures, with a Python of which `verify` fails."""
    python = folder / "python"
    python.write_text('#!/bin/sh\necho "$@"\n[ "$3" != verify ] || exit 4\n')
    python.chmod(0o755)
    given = settings("cluster=scnet-dcu", "cluster.setup=[]", f"cluster.python={python}", *words)
    return render_after(RunDir(folder), given, ["verify", "report"], None, folder / "after.log")


def test_a_step_that_fails_keeps_no_other_from_being_done(tmp_path):
    done = Bash(tmp_path).run(failing(tmp_path, "webhook=https://site/hook"))
    steps = [f"-m jobs verify {tmp_path}", f"-m jobs report {tmp_path}"]
    assert done.stdout.splitlines()[-3:] == [*steps, f"-m jobs notify {tmp_path} webhook=https://site/hook"]
    assert done.returncode == 4


def test_nothing_comes_behind_the_pictures_of_a_paused_run(tmp_path):
    (tmp_path / "pause").touch()
    done = Bash(tmp_path).run(failing(tmp_path))
    assert done.returncode == 0
    assert "verify" not in done.stdout
    assert "the run is paused" in done.stderr


def test_the_workers_get_the_environment_of_the_job_whatever_it_was_submitted_with(tmp_path):
    bash = Bash(tmp_path)
    bash.run(job(tmp_path))
    assert "--export=ALL" in bash.words
    assert "--export=ALL" in SRUN_ARGUMENTS


def test_the_worker_finds_the_project_wherever_the_job_runs(tmp_path):
    bash = Bash(tmp_path)
    bash.run(job(tmp_path, setup=["export PYTHONPATH=/site/lib"]))
    assert bash.environ["PYTHONPATH"] == f"{PROJECT_ROOT}:/site/lib"


def test_what_the_site_sets_reaches_the_worker(tmp_path):
    bash = Bash(tmp_path)
    bash.run(job(tmp_path, "cluster.env.A=it's $HOME", setup=["export B=$A-b", 'export C="${UNSET_BY_NOBODY}"']))
    assert (bash.environ["A"], bash.environ["B"], bash.environ["C"]) == ("it's $HOME", "it's $HOME-b", "")


def test_folders_of_the_profile_come_first_among_the_libraries_in_their_order(tmp_path):
    bash = Bash(tmp_path)
    folders = "cluster.ld_library_path=[~/env/lib, /opt/dtk/lib]"
    bash.run(job(tmp_path, folders, setup=["export LD_LIBRARY_PATH=/set/up"]))
    assert bash.environ["LD_LIBRARY_PATH"] == f"{Path.home()}/env/lib:/opt/dtk/lib:/set/up"
    bash.run(job(tmp_path, folders, setup=["unset LD_LIBRARY_PATH"]))
    assert bash.environ["LD_LIBRARY_PATH"] == f"{Path.home()}/env/lib:/opt/dtk/lib"


def test_without_folders_the_libraries_are_as_the_setup_left_them(tmp_path):
    bash = Bash(tmp_path)
    bash.run(job(tmp_path, setup=["export LD_LIBRARY_PATH=/set/up"]))
    assert bash.environ["LD_LIBRARY_PATH"] == "/set/up"


def test_a_python_without_the_packages_is_named(tmp_path):
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nPYTHONPATH= exec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    bash = Bash(tmp_path)
    done = bash.run(job(tmp_path, f"cluster.python={bare}"))
    assert done.returncode == 1
    assert "jobs: error: the job's Python, " in done.stderr
    assert "has no yaml, omegaconf, numpy, torch; give cluster.python=/absolute/path/of/python" in done.stderr
    assert not bash.noted.exists(), "no work under it"


def test_a_python_that_is_not_there_is_named(tmp_path):
    done = Bash(tmp_path).run(job(tmp_path, "cluster.python=/missing/bin/python"))
    assert done.returncode == 127
    assert "the job's Python, /missing/bin/python, is no program on" in done.stderr


def test_vendor_lines_may_use_what_is_not_set_and_fail_in_what_they_test(tmp_path):
    vendor = tmp_path / "env.sh"
    vendor.write_text('export LIB="$NOT_SET/lib"\nif [ "$NOT_SET" = x ]; then false; fi\nfalse || true\n')
    bash = Bash(tmp_path)
    assert bash.run(job(tmp_path, setup=[f"source {vendor}"])).returncode == 0
    assert bash.environ["LIB"] == "/lib"


def test_no_core_is_dumped(tmp_path):
    done = Bash(tmp_path).run(job(tmp_path, setup=["ulimit -S -c unlimited || echo hard limit", "ulimit -c"]))
    assert done.stdout.splitlines() == ["hard limit", "0"]


@pytest.mark.parametrize(
    "line",
    ["false", "missing_command --x", "source /missing/activate", "true | false | true", "f() { false; true; }; f",
     "module switch compiler/rocm/missing-1.0"],
)  # fmt: skip
def test_a_line_of_the_setup_that_fails_ends_the_job_and_is_named(tmp_path, line):
    bash = Bash(tmp_path)
    done = bash.run(job(tmp_path, setup=["true", line, "echo went on"]))
    assert done.returncode != 0
    assert "went on" not in done.stdout
    assert not bash.noted.exists(), "no work without the setup"
    assert "jobs: error: the setup failed with status" in done.stderr
    assert line in done.stderr or f"{line.split()[-1]}: No such file or directory" in done.stderr


def test_both_ways_to_slurm_prepare_the_job_in_the_same_words():
    given = settings("cluster=scnet-dcu")
    blocks = setup_blocks(RUN, given, {})
    text = render(RUN, given, [0], 1)
    assert all(block.strip() in text for block in blocks[1:])
    alone = [line for line in blocks[0].splitlines() if line not in text]
    assert alone == ["export SDBATCH_PACKAGES='yaml omegaconf numpy torch submitit'"], "the one way goes by submitit"


def test_every_export_is_one_word_to_the_shell():
    exports = setup_blocks(RunDir(Path("/a b/it's")), settings("cluster=scnet-dcu", "cluster.env.X=1; rm -rf /"), {})[0]
    assert all(len(shlex.split(line)) == 2 for line in exports.splitlines())
