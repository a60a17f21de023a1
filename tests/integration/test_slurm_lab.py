"""The private Slurm cluster itself: it grants what users' sites grant, its nodes can die, and it leaves nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm_lab import cluster, fixtures, machine
from tests.slurm_lab.cluster import SlurmLab
from tests.slurm_lab.processes import PATIENCE_S, eventually, is_running, processes_of

pytestmark = pytest.mark.slurm

ALLOCATION = ("salloc", "-p", "kshdtest", "-N", "1", "-n", "16", "--gres=dcu:2")
CARDS = "printenv HIP_VISIBLE_DEVICES CUDA_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES SLURM_STEP_GPUS"


def test_five_nodes_are_up(slurm: SlurmLab) -> None:
    assert sorted(slurm.output("sinfo", "-h", "-N", "-o", "%N %P").split("\n"))[1:] == [
        "dcu1 kshdtest*",
        "dcu2 kshdtest*",
        "dcu3 kshdtest*",
        "dcu4 kshdtest*",
        "gpu1 gpu",
    ]


def test_users_allocation_runs_16_tasks_on_one_node(slurm: SlurmLab) -> None:
    printed = slurm.output(*ALLOCATION, "srun", "bash", "-c", "echo $SLURMD_NODENAME $SLURM_PROCID").split("\n")
    nodes, ranks = zip(*(line.split() for line in printed if line))
    assert len(set(nodes)) == 1
    assert sorted(map(int, ranks)) == list(range(16))


def test_allocation_holds_the_cards_that_were_asked_for(slurm: SlurmLab) -> None:
    told = slurm.output(*ALLOCATION, "bash", "-c", "scontrol show job -d $SLURM_JOB_ID")
    assert "GRES=dcu:2(IDX:0-1)" in told


def test_more_cards_than_a_node_has_are_refused(slurm: SlurmLab) -> None:
    refused = slurm.run("sbatch", "--gres=dcu:8", "--wrap", "true")
    assert refused.returncode == 1
    assert "Requested node configuration is not available" in refused.stderr


def test_generic_gres_tells_the_task_no_device(slurm: SlurmLab) -> None:
    assert slurm.run("srun", "--gres=dcu:2", *CARDS.split()).stdout == ""


def test_patched_site_tells_the_task_its_devices(slurm: SlurmLab) -> None:
    slurm.export_devices(True)
    try:
        held = slurm.sbatch("sleep 60", "-w", "dcu3", "--gres=dcu:1", "-o", "/dev/null")
        slurm.wait_for(held, {"RUNNING"})
        told = slurm.output("srun", "-w", "dcu3", "--gres=dcu:3", "printenv", "HIP_VISIBLE_DEVICES")
    finally:
        slurm.export_devices(False)
    slurm.output("scancel", held)
    assert told == "1,2,3\n"


def test_gres_gpu_tells_the_task_its_devices(slurm: SlurmLab) -> None:
    assert slurm.output("srun", "-p", "gpu", "--gres=gpu:2", "printenv", "CUDA_VISIBLE_DEVICES") == "0,1\n"


@pytest.mark.parametrize(
    ("line", "compiler"),
    [
        ("module load compiler/rocm/dtk-22.10.1", "/opt/dtk-22.10.1"),
        ("module load compiler/rocm/dtk-21.10.1; module switch compiler/rocm/dtk-22.10.1", "/opt/dtk-22.10.1"),
        ("module load compiler/rocm/dtk-21.10.1; module load compiler/rocm/dtk-22.10.1", "/opt/dtk-21.10.1"),
        ("module load compiler/rocm/dtk-21.10.1; module switch compiler/rocm/missing", ""),
    ],
)
def test_users_module_lines_reach_the_tasks(slurm: SlurmLab, line: str, compiler: str) -> None:
    script = f". /etc/profile.d/modules.sh; {line}; srun -n 2 bash -c 'echo \"<$ROCM_PATH>\"'"
    assert slurm.output(*ALLOCATION, "bash", "-c", script) == f"<{compiler}>\n" * 2


def test_array_tasks_run_on_several_nodes(slurm: SlurmLab, tmp_path: Path) -> None:
    """Each task keeps its node until all four have one."""
    script = "echo $SLURMD_NODENAME; until [ $(ls | wc -l) = 4 ]; do sleep 0.1; done"
    job = slurm.sbatch(script, "--array=0-3", "--exclusive", "-o", "%a", cwd=tmp_path)
    assert set(slurm.wait(job).values()) == {"COMPLETED"}
    assert sorted(file.read_text() for file in tmp_path.iterdir()) == ["dcu1\n", "dcu2\n", "dcu3\n", "dcu4\n"]


def test_without_accounting_sacct_says_disabled(slurm: SlurmLab) -> None:
    told = slurm.run("sacct")
    assert told.returncode == 1
    assert "Slurm accounting storage is disabled" in told.stderr


def test_with_accounting_sacct_knows_a_failed_job(slurm_with_accounting: SlurmLab) -> None:
    lab = slurm_with_accounting
    job = lab.sbatch("exit 7", "-o", "/dev/null")
    assert lab.wait(job) == {job: "FAILED"}
    row = ("sacct", "-n", "-P", "-X", "-j", job, "-o", "state,exitcode")
    assert eventually(lambda: lab.output(*row).strip() == "FAILED|7:0")


def read(file: Path) -> str:
    return file.read_text().strip() if file.exists() else ""


def test_crashed_node_takes_its_job_along_and_comes_back(slurm: SlurmLab, tmp_path: Path) -> None:
    job = slurm.sbatch("srun sh -c 'echo $$; exec sleep 600'", "-w", "dcu4", "--no-requeue", "-o", f"{tmp_path}/out")
    task = int(eventually(lambda: read(tmp_path / "out")))
    slurm.kill_node("dcu4")
    assert eventually(lambda: not is_running(task))
    slurm.start_node("dcu4")
    slurm.output("scancel", job)
    slurm.wait(job)
    assert slurm.output("srun", "-w", "dcu4", "printenv", "SLURMD_NODENAME") == "dcu4\n"


def test_job_outlives_the_daemon_of_its_node(slurm: SlurmLab, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    job = slurm.sbatch(f"echo $$; until [ -e {stop} ]; do sleep 0.1; done", "-w", "dcu4", "-o", f"{tmp_path}/out")
    task = int(eventually(lambda: read(tmp_path / "out")))
    slurm.kill_node("dcu4", daemon_only=True)
    assert is_running(task)
    slurm.start_node("dcu4")
    stop.touch()
    assert slurm.wait(job) == {job: "COMPLETED"}


@pytest.mark.skipif(os.geteuid() != 0, reason="a host name of its own takes root")
def test_nodes_in_namespaces_have_their_own_name_and_disk() -> None:
    fixtures.require_slurm()
    with SlurmLab(accounting=False, dcu_nodes=2, namespaces=True) as lab:
        assert lab.output("srun", "-w", "dcu2", "sh", "-c", "touch /var/tmp/seen; hostname") == "dcu2\n"
        assert lab.output("srun", "-w", "dcu1", "sh", "-c", "ls /var/tmp; hostname") == "dcu1\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="all other tests show it when they run as an ordinary user")
def test_ordinary_user_brings_up_the_whole_cluster(short_tmp: Path) -> None:
    """Root, who has every permission, runs the scripts as `nobody` and looks at the cluster through them."""
    fixtures.require_slurm()
    scripts = shutil.copytree(cluster.HERE, short_tmp / "scripts")
    lab = short_tmp / "lab"
    shutil.chown(short_tmp, "nobody")
    guard, port = machine.reserve_ports()
    environment = machine.clean_environment(os.environ)
    environment.update(LAB=str(lab), PORT=str(port), DCU_NODES="1", SLURM_CONF=f"{lab}/etc/slurm.conf")

    def as_nobody(*command: str) -> str:
        drop = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        done = subprocess.run(
            [*drop, *command],
            env=environment,
            cwd=short_tmp,
            text=True,
            timeout=PATIENCE_S,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            check=True,
        )
        return done.stdout

    with guard:
        try:
            as_nobody("bash", f"{scripts}/up.sh")
            assert as_nobody("srun", "--gres=dcu:2", "id", "-un") == "nobody\n"
            assert as_nobody("srun", "-p", "gpu", "--gres=gpu:1", "printenv", "CUDA_VISIBLE_DEVICES") == "0\n"
            assert eventually(lambda: "COMPLETED" in as_nobody("sacct", "-n", "-X", "-o", "state"))
        finally:
            as_nobody("bash", f"{scripts}/down.sh")


def test_a_controller_that_has_crashed_is_started_again(short_tmp: Path) -> None:
    fixtures.require_slurm()
    with SlurmLab(accounting=False, dcu_nodes=1) as lab:
        assert not lab.revive_controller()
        os.kill(int((lab.folder / "pid" / "slurmctld.pid").read_text()), signal.SIGKILL)
        assert eventually(lab.revive_controller)
        assert lab.wait(lab.sbatch("true", "-o", "/dev/null")).popitem()[1] == "COMPLETED"
        assert not lab.revive_controller()


def test_nothing_is_left_when_the_session_dies(short_tmp: Path) -> None:
    """Another test session brings a cluster up beside ours, and is killed before it can take it down."""
    fixtures.require_slurm()
    code = (
        "from tests.slurm_lab.cluster import SlurmLab; lab = SlurmLab(accounting=False); lab.up(); "
        "lab.sbatch('sleep 600', '-o', '/dev/null'); print(lab.folder, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=cluster.HERE.parents[1],
        text=True,
        bufsize=1,
        env={**os.environ, "TMPDIR": str(short_tmp)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as session:
        assert session.stdout is not None
        folder = Path(session.stdout.readline().strip())
        assert len(processes_of(folder)) >= 8  # munged, slurmctld, 5 nodes, and the job
        session.kill()
    assert eventually(lambda: not processes_of(folder))
    assert eventually(lambda: not folder.exists())


def test_missing_slurm_fails_with_the_line_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SDBATCH_NO_SLURM", raising=False)
    monkeypatch.setattr(fixtures, "missing_programs", lambda: ["slurmctld"])
    with pytest.raises(pytest.fail.Exception, match=r"need slurmctld; install: apt-get install .* munge .* slurmctld"):
        fixtures.require_slurm()


def test_slurm_is_left_out_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDBATCH_NO_SLURM", "1")
    with pytest.raises(pytest.skip.Exception, match="SDBATCH_NO_SLURM=1"):
        fixtures.require_slurm()
