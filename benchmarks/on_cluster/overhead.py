"""What a task costs beyond loading the model and sampling, taken apart by leaving one thing out after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List

from jobs.records import read_records
from jobs.rundir import RunDir
from on_cluster.measure import Measured, Row
from tests.integration.login_node import LoginNode, records

TASK_SECONDS = 15 * 60.0
BAR = 0.02
CLUSTER = "model=rehearsal", "cluster=scnet-dcu", "cluster.cpus_per_card=1", "steps=1000", "batch_size=4"
SECONDS_PER_IMAGE = 1.0  # about what a card takes for 512 px in 50 steps


@dataclass(frozen=True)
class Round:
    """Seconds of one job of each kind, from its start to its end as the controller notes them; and of sampling."""

    empty: float  # the script is `true`
    srun: float  # `srun true`
    rendered: float  # our script by plain sbatch
    submitted: float  # the same work by `jobs submit`, which goes through submitit
    session: float  # from the first picture's beginning to the last record, in the job by plain sbatch
    sampling: float  # of it, in the model
    images: int

    def shares(self) -> Dict[str, float]:
        """Seconds of each part of a task of 15 minutes."""
        per_image = (self.session - self.sampling) / self.images
        return {
            "Slurm: start and end of a job": self.empty,
            "srun": self.srun - self.empty,
            "our start and end: the site's setup, Python, what is missing": self.rendered - self.srun - self.session,
            "records and files of the pictures": per_image * TASK_SECONDS / SECONDS_PER_IMAGE,
            "submitit": self.submitted - self.rendered,
        }


def overhead(login: LoginNode, images: int, repeats: int) -> List[Row]:
    """The parts of a task, and all of them."""
    rounds = [measure(login, images, number) for number in range(repeats)]
    parts = [each.shares() for each in rounds]
    table = []
    for name in parts[0]:
        seconds = Measured([part[name] for part in parts])
        table.append(Row(f"overhead: {name}", "", f"{seconds.text('s')}, {seconds.median / TASK_SECONDS:.2%}"))
    whole = Measured([sum(part.values()) for part in parts])
    share = whole.median / TASK_SECONDS
    text = f"{whole.text('s')}, {share:.2%}"
    return [Row("overhead of a task of 15 minutes", "under 2 %; submitit's own share named", text, share < BAR), *table]


def measure(login: LoginNode, images: int, number: int) -> Round:
    """One job of each kind, one after the other."""
    prompts = login.prompts([f"picture {index}" for index in range(images)], f"overhead-{number}.txt")
    work = (*CLUSTER, f"images_per_shard={images}")
    empty, srun = (wall(login, login.lab.sbatch(script, "-o", "/dev/null")) for script in ("true", "srun true"))
    file = login.render(prompts, *work, f"name=rendered-{number}")
    rendered = wall(login, login.sbatch(file))
    submission = login.submit(prompts, *work, f"name=submitted-{number}")
    submitted = wall(login, submission.job)
    run = next(login.folder.glob(f"rendered-{number}-*"))
    [session] = read_records(RunDir(run).records_path(0)).sessions
    sampling = sum(float(record["seconds"]) for record in records(run))
    return Round(empty, srun, rendered, submitted, session.updated - session.started, sampling, images)


def wall(login: LoginNode, job: str) -> float:
    """Seconds from the start to the end of a job of one task, once it has ended well."""
    states = set(login.lab.wait(job).values())
    if states != {"COMPLETED"}:
        raise RuntimeError(f"job {job} ended as {', '.join(states)}")
    [(begun, ended)] = [span for name, span in login.lab.spans().items() if name.partition("_")[0] == job]
    return ended - begun
