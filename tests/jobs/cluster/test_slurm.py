"""What Slurm prints is understood, what leaks into a job is kept out, and its refusals are passed on in its words."""

from __future__ import annotations

import os
import time

import pytest

from jobs.cluster.slurm import (
    allocated_cards,
    job_end,
    job_of,
    outside_any_job,
    parse_card_lines,
    remembering,
    run_command,
    submitit_parameters,
)
from ldm.errors import ConfigError, SchedulerError

# Lines as Slurm 22.05 prints them.
SHOW_JOB = """JobId=12 ArrayJobId=12 ArrayTaskId=2 JobName=prompts-20240223
   UserId=root(0) GroupId=root(0) MCS_label=N/A
   JobState=RUNNING Reason=None Dependency=(null)
   NodeList=dcu1
   NumNodes=1 NumCPUs=8 NumTasks=1 CPUs/Task=8 ReqB:S:C:T=0:0:*:*
   TRES=cpu=8,mem=16G,node=1,billing=8,gres/dcu=2
   JOB_GRES=dcu:2
     Nodes=dcu1 CPU_IDs=0-7 Mem=16384 GRES=dcu:2(IDX:2-3)
   MinCPUsNode=8 MinMemoryCPU=2G MinTmpDiskNode=0
   TresPerNode=gres:dcu:2
"""


@pytest.mark.parametrize(
    ("text", "cards"),
    [
        (SHOW_JOB, [("dcu1", ["2", "3"])]),
        ("     Nodes=dcu1 CPU_IDs=0-7,16-23 Mem=32768 GRES=dcu:2(IDX:0-1)", [("dcu1", ["0", "1"])]),
        ("     Nodes=dcu[1-2] CPU_IDs=0-1 Mem=4096 GRES=dcu:3(IDX:0,2-3)", [("dcu[1-2]", ["0", "2", "3"])]),
        (
            "     Nodes=dcu1 CPU_IDs=0 Mem=1 GRES=dcu:2(IDX:1-2)\n     Nodes=dcu2 CPU_IDs=0 Mem=1 GRES=dcu:2(IDX:0-1)",
            [("dcu1", ["1", "2"]), ("dcu2", ["0", "1"])],
        ),
        ("     Nodes=e01r1n05 CPU_IDs=0-31 Mem=110000 GRES=dcu:Hygon:4(IDX:0-3)", [("e01r1n05", ["0", "1", "2", "3"])]),
        ("     Nodes=gpu1 CPU_IDs=0 Mem=2048 GRES=gpu:a100:1(IDX:3)", [("gpu1", ["3"])]),
        ("     Nodes=dcu1 CPU_IDs=0-7 Mem=16384 GRES_IDX=dcu(IDX:0,2-3,5)", [("dcu1", ["0", "2", "3", "5"])]),
        ("     Nodes=dcu1 CPU_IDs=0 Mem=2048 GRES=dcu:2(IDX:2-3),nvme:1(IDX:0)", [("dcu1", ["2", "3"])]),
        ("     Nodes=dcu1 CPU_IDs=0 Mem=2048 GRES=", []),
        ("     Nodes=dcu1 CPU_IDs=0 Mem=2048 GRES=dcu:2(CNT:2)", []),
        ("", []),
    ],
)
def test_the_cards_of_a_job_are_read_for_each_group_of_nodes(text, cards):
    assert parse_card_lines(text) == cards


@pytest.mark.parametrize(
    ("given", "gres", "cards"),
    [
        ("GRES=nvme:1(IDX:0),dcu:2(IDX:2-3)", "dcu", ["2", "3"]),
        ("GRES=nvme:1(IDX:0),dcu:Hygon:2(IDX:2-3)", "dcu", ["2", "3"]),
        ("GRES=gpu:v100:1(IDX:0),gpu:a100:2(IDX:2-3)", "gpu:a100", ["2", "3"]),
        ("GRES=gpu:v100:1(IDX:0),gpu:a100:2(IDX:2-3)", "gpu", ["0", "2", "3"]),
        ("GRES_IDX=nvme(IDX:0),gpu(IDX:1,3)", "gpu", ["1", "3"]),
        ("GRES=dcu:2(IDX:2-3),nvme:1(IDX:0)", "gpu", ["2", "3"]),
        ("GRES=dcux:1(IDX:0),dcu:1(IDX:2)", "dcu", ["2"]),
    ],
)
def test_of_several_resources_the_one_that_was_asked_for_counts(given, gres, cards):
    assert parse_card_lines(f"     Nodes=dcu1 CPU_IDs=0 Mem=1 {given}", gres) == [("dcu1", cards)]


def answers(*words: str) -> str:
    """Slurm's part, for a job whose cards differ between its two groups of nodes."""
    if words[0] == "scontrol" and words[1:3] == ("show", "job"):
        return (
            "  Nodes=dcu[1-2] CPU_IDs=0 Mem=1 GRES=dcu:2(IDX:0-1)\n  Nodes=dcu3 CPU_IDs=0 Mem=1 GRES=dcu:2(IDX:2-3)\n"
        )
    return {"dcu[1-2]": "dcu1\ndcu2\n", "dcu3": "dcu3\n"}[words[3]]


@pytest.mark.parametrize(("node", "cards"), [("dcu2", ["0", "1"]), ("dcu3", ["2", "3"]), ("dcu9", None)])
def test_a_process_learns_the_cards_of_its_own_node(node, cards):
    environ = {"SLURM_JOB_ID": "12", "SLURMD_NODENAME": node}
    assert allocated_cards(environ, run=lambda command: answers(*command)) == cards


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("   Nodes=dcu1 CPU_IDs=0 Mem=1 GRES=dcu:2(CNT:2)", "Slurm gave this job dcu:2(CNT:2) and no numbers"),
        ("   Nodes=dcu1 CPU_IDs=0 Mem=1 GRES=\n   TresPerNode=gres:dcu:2", "Slurm gave this job gres:dcu:2 and no"),
        ("   Nodes=dcu1 CPU_IDs=0 Mem=1\n   Gres=dcu:2 Reservation=(null)", "Slurm gave this job dcu:2 and no numbers"),
        ("   Nodes=dcu1 CPU_IDs=0 Mem=1 GRES_IDX=\n   Gres=(null) Reservation=(null)", ""),
        ("   Nodes=dcu1 CPU_IDs=0 Mem=1 GRES=", ""),
    ],
)
def test_cards_without_numbers_are_counted_with_a_warning(caplog, text, said):
    environ = {"SLURM_JOB_ID": "12", "SLURMD_NODENAME": "dcu1"}
    assert allocated_cards(environ, run=lambda command: text) is None
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """Nobody waits; what would have been waited, in seconds."""
    waited: list[float] = []
    monkeypatch.setattr("jobs.cluster.slurm.time.sleep", waited.append)
    return waited


@pytest.mark.parametrize("environ", [{}, {"SLURM_JOB_ID": "12"}, {"SLURMD_NODENAME": "dcu1"}])
def test_outside_a_job_nobody_is_asked(environ):
    def must_not_run(command):
        raise AssertionError(command)

    assert allocated_cards(environ, run=must_not_run) is None


def test_a_controller_that_never_answers_must_not_be_guessed_for(waits):
    def silent(command):
        raise SchedulerError("scontrol gave no answer within 60 s")

    with pytest.raises(SchedulerError) as caught:
        allocated_cards({"SLURM_JOB_ID": "12", "SLURMD_NODENAME": "dcu1"}, run=silent)
    assert str(caught.value) == (
        "cannot learn which cards are this job's: scontrol gave no answer within 60 s; "
        "name them with HIP_VISIBLE_DEVICES=0,1 or say device=cpu"
    )
    assert [0.5 * usual <= slept <= 1.5 * usual for slept, usual in zip(waits, (2, 10, 30))] == [True] * 3


@pytest.mark.parametrize("late", [1, 2, 3])
def test_a_controller_that_answers_late_is_waited_for(waits, late):
    calls = []

    def busy(command):
        calls.append(command)
        if len(calls) <= late:
            raise SchedulerError("slurm_load_jobs error: Unable to contact slurm controller")
        return answers(*command)

    assert allocated_cards({"SLURM_JOB_ID": "12", "SLURMD_NODENAME": "dcu2"}, run=busy) == ["0", "1"]
    assert len(waits) == late


def test_where_a_node_has_no_scontrol_cards_are_counted_with_a_warning(monkeypatch, waits, caplog):
    monkeypatch.setenv("PATH", "/nowhere")
    assert allocated_cards({"SLURM_JOB_ID": "12", "SLURMD_NODENAME": "dcu1"}) is None
    assert "scontrol is not here" in caplog.text
    assert waits == []


def test_an_array_task_is_asked_for_by_its_number_in_the_array():
    task = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "2"}
    assert job_of(task) == "12_2"
    assert job_of({**task, "SLURM_JOB_ID": "15"}) == "15"
    assert job_of({"SLURM_JOB_ID": "12"}) == "12"
    assert job_of({}) is None


def test_from_inside_a_job_nothing_of_it_is_handed_on(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_NTASKS", "16")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "2048")
    monkeypatch.setenv("SRUN_CPUS_PER_TASK", "8")
    monkeypatch.setenv("SBATCH_PARTITION", "x")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    before = dict(os.environ)
    with outside_any_job():
        kept = {name for name in os.environ if name.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        assert kept == {"SLURM_CONF"}
    assert dict(os.environ) == before


def test_outside_a_job_a_users_own_sbatch_settings_stay(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("SBATCH_ACCOUNT", "mine")
    with outside_any_job():
        assert os.environ["SBATCH_ACCOUNT"] == "mine"


@pytest.mark.parametrize("inside", [True, False])
def test_a_choice_of_cards_made_here_is_not_that_of_the_job(monkeypatch, inside):
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "1")
    if inside:
        monkeypatch.setenv("SLURM_JOB_ID", "12")
    with outside_any_job():
        assert "HIP_VISIBLE_DEVICES" not in os.environ
    assert os.environ["HIP_VISIBLE_DEVICES"] == "1"


def test_the_environment_comes_back_after_a_failure(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    with pytest.raises(SchedulerError), outside_any_job():
        raise SchedulerError("refused")
    assert os.environ["SLURM_JOB_ID"] == "12"


DIRECTIVES = {"job-name": "x", "nodes": "1", "ntasks-per-node": "2", "time": "120", "gres": "dcu:2", "requeue": ""}


def test_submitit_is_told_every_directive_and_no_wckey():
    parameters = submitit_parameters(DIRECTIVES, [])
    assert parameters == {
        "nodes": 1,
        "ntasks_per_node": 2,
        "time": 120,
        "job_name": "x",
        "wckey": None,
        "stderr_to_stdout": True,
        "additional_parameters": {"gres": "dcu:2", "requeue": True},
    }


def test_a_directive_that_the_site_refuses_is_left_out():
    parameters = submitit_parameters(DIRECTIVES, ["requeue", "job-name", "wckey"])
    assert parameters["additional_parameters"] == {"gres": "dcu:2"}
    assert parameters["job_name"] is None


def test_a_time_or_a_range_of_nodes_in_slurms_own_writing_is_handed_on():
    parameters = submitit_parameters({**DIRECTIVES, "time": "01:30:00", "nodes": "1-2"}, [])
    assert "time" not in parameters
    assert "nodes" not in parameters
    assert parameters["ntasks_per_node"] == 2
    assert parameters["additional_parameters"] == {
        "gres": "dcu:2",
        "requeue": True,
        "time": "01:30:00",
        "nodes": "1-2",
    }


def test_submitit_writes_a_time_in_slurms_own_writing_once(tmp_path):
    slurm = pytest.importorskip("submitit.slurm.slurm")
    parameters = submitit_parameters({**DIRECTIVES, "time": "01:30:00", "nodes": "1-2"}, [])
    text = slurm._make_sbatch_string(command="true", folder=tmp_path, **parameters)
    asked = [line for line in text.splitlines() if line.startswith(("#SBATCH --time", "#SBATCH --nodes"))]
    assert asked == ["#SBATCH --nodes=1-2", "#SBATCH --time=01:30:00"]


@pytest.mark.parametrize(("name", "value"), [("time", ""), ("nodes", ""), ("ntasks-per-node", "2x")])
def test_a_directive_that_must_be_a_number_is_named(name, value):
    message = f"the directive {name} must be a number, got {value!r}; give cluster.directives.{name}=N"
    with pytest.raises(ConfigError, match=f"^{message}$"):
        submitit_parameters({**DIRECTIVES, name: value}, [])


def test_a_directive_that_submitit_insists_on_cannot_be_left_out():
    with pytest.raises(ConfigError, match=r"submitit always writes --signal; .* use `python -m jobs render`"):
        submitit_parameters(DIRECTIVES, ["signal"])


def test_a_command_gives_what_it_prints():
    assert run_command(["printf", "a b"]) == "a b"


def test_command_outlives_a_pipe_that_was_closed():
    assert run_command(["sh", "-c", "kill -PIPE $$; echo alive"]) == "alive\n"


def test_a_refusal_is_passed_on_in_the_commands_own_words():
    with pytest.raises(SchedulerError, match=r"^sh -c .*: Invalid partition name$") as caught:
        run_command(["sh", "-c", "echo Invalid partition name >&2; exit 1"])
    assert caught.value.exit_code == 3


def test_a_missing_scheduler_is_named_with_the_way_out(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SchedulerError, match="sbatch is not here: load the site's Slurm, or use cluster=local"):
        run_command(["sbatch", "--version"])


def test_a_command_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr("jobs.cluster.slurm.COMMAND_SECONDS", 0.1)
    with pytest.raises(SchedulerError, match=r"sleep gave no answer within 0\.1 s"):
        run_command(["sleep", "5"])


@pytest.mark.parametrize(
    ("zone", "now", "text", "expected"),
    [
        ("UTC0", 0.0, "2026-11-22T10:00:00", 1795341600.0),
        ("CET-1CEST,M3.5.0,M10.5.0/3", 1792888200.0, "2026-10-25T02:50:00", 1792889400.0),
        ("CET-1CEST,M3.5.0,M10.5.0/3", 1792891800.0, "2026-10-25T02:50:00", 1792893000.0),
    ],
    ids=["plain", "an hour that comes twice, in the first", "in the second"],
)
def test_the_end_of_the_time_is_never_in_the_past(monkeypatch, zone, now, text, expected):
    """In Central Europe 02:50 came twice on 25 October 2026: at 1792889400 and an hour later."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    monkeypatch.setattr("jobs.cluster.slurm.time.time", lambda: now)
    try:
        found = job_end({"SLURM_JOB_ID": "7"}, lambda command: f"   StartTime=x EndTime={text} Deadline=N/A")
    finally:
        monkeypatch.undo()
        time.tzset()
    assert found == expected


def test_without_a_limit_or_outside_a_job_the_end_is_not_known(caplog):
    assert job_end({}, lambda command: "EndTime=2026-11-22T10:00:00") is None
    assert job_end({"SLURM_JOB_ID": "7"}, lambda command: "EndTime=Unknown Deadline=N/A") is None


def test_a_newer_slurm_tells_the_end_by_itself():
    assert job_end({"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": "1795341600"}, lambda command: 1 / 0) == 1795341600.0


def test_a_question_is_asked_once_and_again_only_if_it_failed():
    asked = []

    def answer(command):
        asked.append(command)
        if len(asked) == 1:
            raise SchedulerError("busy")
        return "yes"

    ask = remembering(answer)
    with pytest.raises(SchedulerError):
        ask(["scontrol", "x"])
    assert [ask(["scontrol", "x"]), ask(["scontrol", "x"])] == ["yes", "yes"]
    assert len(asked) == 2
