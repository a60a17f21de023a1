"""How much faster more nodes are, with a model that only sleeps, so that two cores can stand for many cards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Sequence

from jobs.records import read_records
from jobs.rundir import RunDir
from on_cluster.measure import Measured, Row
from tests.integration.login_node import LoginNode

BAR = 1.9  # times one node's throughput on two
SETTINGS = (
    *("model=rehearsal", "steps=1000", "batch_size=4"),  # 4 s a batch
    *("cluster=scnet-dcu", "cluster.cpus_per_card=1", "cluster.directives.exclusive="),  # one task a node
)


@dataclass(frozen=True)
class Point:
    """One run on some nodes. Times in seconds: `whole` from the start of the first job to the end of the last;
    `start_up` from there to each process's first picture, on average; `rates` of each process at work, images/s."""

    nodes: int
    images: int
    whole: float
    start_up: float
    rates: Sequence[float]

    @property
    def throughput(self) -> float:
        """Images a second, with start-up and all."""
        return self.images / self.whole

    @property
    def at_work(self) -> float:
        """Images a second while all processes are at work."""
        return sum(self.rates)


def make(login: LoginNode, purpose: str, nodes: int, images_per_node: int) -> Point:
    """A run of one task a node; no other may have its purpose and its nodes."""
    images = nodes * images_per_node
    name = f"{purpose}-on-{nodes}"
    prompts = login.prompts([f"picture {index}" for index in range(images)], f"{name}.txt")
    submission = login.submit(prompts, *SETTINGS, f"images_per_shard={images_per_node}")
    states = set(login.lab.wait(submission.job).values())
    if states != {"COMPLETED"}:
        raise RuntimeError(f"the tasks of {submission.run} ended as {', '.join(states)}")
    spans = [span for job, span in login.lab.spans().items() if job.partition("_")[0] == submission.job]
    first, last = min(begun for begun, _ in spans), max(ended for _, ended in spans)
    run = RunDir(submission.run)
    sessions = [read_records(run.records_path(shard)).sessions[0] for shard in range(nodes)]
    return Point(
        nodes=nodes,
        images=images,
        whole=last - first,
        start_up=sum(session.started - first for session in sessions) / nodes,
        rates=[session.made / (session.updated - session.started) for session in sessions],
    )


def two_against_one(login: LoginNode, images: int, repeats: int) -> Row:
    """The same work on one node and on two, in turns."""
    rounds = [f"shared-{number}" for number in range(repeats)]
    pairs = [(make(login, name, 1, images), make(login, name, 2, images // 2)) for name in rounds]
    ratio = Measured([two.throughput / one.throughput for one, two in pairs])
    text = f"{ratio.text('x')}, {images} images of a second, start-up and all"
    return Row("two nodes against one, same work", "1.9x throughput", text, ratio.median >= BAR)


def curve(login: LoginNode, nodes: Sequence[int], images_per_node: int) -> List[Point]:
    """The same work for each node on ever more nodes."""
    return [make(login, "curve", number, images_per_node) for number in nodes]


def curve_table(points: Sequence[Point]) -> List[str]:
    """The curve as lines of Markdown. Efficiency is against the first point's throughput a node."""
    lines = [
        "| nodes | images | seconds | of them start-up | images/s | efficiency | images/s at work | efficiency |",
        "| --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for point in points:
        lines.append(
            f"| {point.nodes} | {point.images:,} | {point.whole:.1f} | {point.start_up:.1f} | {point.throughput:.2f} "
            f"| {efficiency(points, point):.1%} | {point.at_work:.2f} | {efficiency(points, point, at_work=True):.1%} |"
        )
    return lines


def efficiency(points: Sequence[Point], point: Point, *, at_work: bool = False) -> float:
    """The throughput of a node, as a share of that of a node in the first point."""
    mine, first = (each.at_work if at_work else each.throughput for each in (point, points[0]))
    return (mine / point.nodes) / (first / points[0].nodes)
