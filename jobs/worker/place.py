"""Where this process stands among those that share the work, and which of a node's cards is its own.

Ranks are read as torchrun, Slurm and Open MPI write them, in this order, so that one command works under each. Slurm's
are believed in a step only: a batch script has a rank too, but it is one process however many tasks the job has.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import socket
from dataclasses import dataclass
from typing import List, Mapping, MutableMapping, Optional, Sequence, Tuple, TypeVar

from ldm.errors import ConfigError
from ldm.inference.cards import CUDA, HIP, BoundCard, bind_card, listed_cards

log = logging.getLogger(__name__)

T = TypeVar("T")

# rank, processes, rank on the node
RANK_VARIABLES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
)
TASKS_VARIABLE, NODE_VARIABLE = "SLURM_STEP_TASKS_PER_NODE", "SLURM_NODEID"


@dataclass(frozen=True)
class Place:
    """A process among those started together; counts from 0. `tasks`: the processes of each node, by its number."""

    rank: int = 0
    processes: int = 1
    local_rank: int = 0
    node: int = 0
    tasks: Tuple[int, ...] = (1,)


def find_place(environ: Mapping[str, str]) -> Place:
    """The place that the launcher's variables give; alone where there are none."""
    for variables in RANK_VARIABLES:
        if all(name in environ for name in variables):
            rank, processes, local_rank = (_number(environ, name) for name in variables)
            node, tasks = _nodes(environ, processes) if variables[0].startswith("SLURM_") else (0, (processes,))
            return Place(rank, processes, local_rank, node, tasks)
    return Place()


def parse_tasks(text: str) -> Tuple[int, ...]:
    """The tasks of each node as Slurm writes them, such as 3,1 or 2(x2),1; ConfigError if it did not."""
    if not re.fullmatch(r"(\d+(\(x\d+\))?(,|$))+", text):
        raise ConfigError(f"{TASKS_VARIABLE} must be as 3,1 or 2(x2), got {text!r}")
    groups = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return tuple(int(tasks) for tasks, nodes in groups for _ in range(int(nodes or 1)))


def with_a_card(place: Place, cards: int) -> Optional[Place]:
    """The place among the processes that have a card of their own, `cards` on every node; None without one."""
    if place.local_rank >= cards:
        return None
    working = [min(tasks, cards) for tasks in place.tasks]
    if sum(working) == place.processes:
        return place
    return dataclasses.replace(
        place,
        rank=sum(working[: place.node]) + place.local_rank,
        processes=sum(working),
        tasks=tuple(working),
    )


def share(items: Sequence[T], part: int, parts: int) -> List[T]:
    """The items of one of `parts` that take turns; together the parts are all items, once."""
    return [item for number, item in enumerate(items) if number % parts == part]


def parse_part(text: str) -> Tuple[int, int]:
    """'3/8', the fourth of eight parts, as (3, 8)."""
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and int(part) < int(parts)):
        raise ConfigError(f"a part is written as K/N with K from 0 to N-1, got {text!r}")
    return int(part), int(parts)


def take_card(
    place: Place, environ: MutableMapping[str, str], allocated: Optional[Sequence[str]]
) -> Optional[BoundCard]:
    """Make this process's card the only one torch will see. `allocated`: what Slurm gave, where no variable says."""
    if listed_cards(environ) is None and allocated:
        environ[HIP] = environ[CUDA] = ",".join(allocated)
    return bind_card(place.local_rank, environ)


def worker_name(environ: Mapping[str, str]) -> str:
    """Who writes a record: host, job if there is one, and process, such as dcu1/123_4/9876."""
    job = environ.get("SLURM_ARRAY_JOB_ID", environ.get("SLURM_JOB_ID", ""))
    task = environ.get("SLURM_ARRAY_TASK_ID", "")
    words = [socket.gethostname(), f"{job}_{task}" if task else job, str(os.getpid())]
    return "/".join(word for word in words if word)


def _nodes(environ: Mapping[str, str], processes: int) -> Tuple[int, Tuple[int, ...]]:
    """The number of this node in the step, and the tasks of each node; one node where Slurm does not say."""
    if TASKS_VARIABLE not in environ or NODE_VARIABLE not in environ:
        return 0, (processes,)
    node, tasks = _number(environ, NODE_VARIABLE), parse_tasks(environ[TASKS_VARIABLE])
    if sum(tasks) != processes or node >= len(tasks):
        raise ConfigError(
            f"{TASKS_VARIABLE} must hold {processes} tasks and node {node}, got {environ[TASKS_VARIABLE]}"
        )
    return node, tasks


def _number(environ: Mapping[str, str], name: str) -> int:
    if not environ[name].isdigit():
        raise ConfigError(f"{name} must be a whole number, got {environ[name]!r}")
    return int(environ[name])
