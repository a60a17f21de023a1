"""What a cluster has, in its own words: partitions, nodes, cards, limits. Text of Slurm's commands to plain data.

sinfo -a               partitions, hidden ones too, with cores, memory and resources of each kind of node
scontrol show ...      limits of the controller and of a partition
sacctmgr show assoc    accounts, QOS and limits of the user, where accounting is on and lets him ask
module -t avail        the modules by name
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from jobs.cluster.slurm import RunCommand

SINFO = ("sinfo", "-a", "-h", "-o", "%R|%P|%a|%l|%D|%c|%m|%G")
TEMPLATES = Path(__file__).resolve().parent / "templates"
FIND_MODULE = TEMPLATES / "find_module.sh"
CARDS = ("dcu", "gpu")  # what card resources are called, the likelier first
NO_LIMIT = ("", "infinite", "UNLIMITED", "NONE", "n/a", "(null)", "NOT_SET", "INVALID")
DURATION = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass(frozen=True)
class Resource:
    """A generic resource of a node, such as dcu:Hygon:4: name dcu, kind Hygon, count 4."""

    name: str
    kind: str
    count: int

    def __str__(self) -> str:
        return ":".join(filter(None, [self.name, self.kind, str(self.count)]))


@dataclass(frozen=True)
class NodeKind:
    """Nodes of a partition that are alike. `memory_mb` is of one node."""

    nodes: int
    cpus: int
    memory_mb: int
    resources: Tuple[Resource, ...]

    def cards(self, name: str) -> int:
        """How many of a resource a node has; `name` such as dcu or gpu:a100."""
        base, _, kind = name.partition(":")
        return sum(each.count for each in self.resources if each.name == base and kind in ("", each.kind))


@dataclass(frozen=True)
class Partition:
    """A partition. `max_time_min`: None where it sets no limit."""

    name: str
    is_default: bool
    is_up: bool
    max_time_min: Optional[int]
    kinds: Tuple[NodeKind, ...]

    @property
    def nodes(self) -> int:
        return sum(kind.nodes for kind in self.kinds)

    @property
    def resources(self) -> Tuple[Resource, ...]:
        """Each resource that some node has, once, in the order of the nodes."""
        return tuple(dict.fromkeys(each for kind in self.kinds for each in kind.resources))

    def __str__(self) -> str:
        having = ", ".join(map(str, self.resources)) or "no cards"
        limit = "no time limit" if self.max_time_min is None else f"at most {self.max_time_min} min"
        nodes = "1 node" if self.nodes == 1 else f"{self.nodes} nodes"
        return f"{self.name} ({having}; {nodes}; {limit}{'' if self.is_up else '; not up'})"


@dataclass(frozen=True)
class Association:
    """What accounting lets a user do under one account."""

    account: str
    qos: Tuple[str, ...]
    default_qos: str
    max_submit_jobs: Optional[int]


def read_partitions(run: RunCommand) -> List[Partition]:
    """The partitions in sinfo's order; SchedulerError where sinfo fails."""
    return parse_partitions(run(SINFO))


def read_config(run: RunCommand) -> Dict[str, str]:
    """The controller's configuration, `Key = value` lines."""
    pairs = (line.split(" = ", 1) for line in run(["scontrol", "show", "config"]).splitlines() if " = " in line)
    return {key.strip(): value.strip() for key, value in pairs}


def read_partition_limits(run: RunCommand, partition: str) -> Dict[str, str]:
    """The words of `scontrol show partition`, such as MaxTime=3-00:00:00."""
    words = run(["scontrol", "show", "partition", partition]).split()
    return {key: value for key, _, value in (word.partition("=") for word in words)}


def read_associations(run: RunCommand, user: str) -> List[Association]:
    """What accounting knows of the user; SchedulerError where there is no accounting."""
    wanted = "format=account,qos,defaultqos,maxsubmit"
    return parse_associations(run(["sacctmgr", "-n", "-P", "show", "assoc", "where", f"user={user}", wanted]))


def read_modules(run: RunCommand) -> List[str]:
    """The names of all modules; none where the machine has no environment modules. SchedulerError if it fails."""
    return parse_modules(run(["bash", str(TEMPLATES / "modules.sh")]))


def parse_partitions(text: str) -> List[Partition]:
    """The partitions in the output of `sinfo` in the format of SINFO; a line of another form is passed over."""
    found: Dict[str, Partition] = {}
    for line in text.splitlines():
        fields = line.strip().split("|")
        if len(fields) != 8:
            continue
        name, marked, state, limit, nodes, cpus, memory, resources = fields
        kind = NodeKind(_number(nodes), _number(cpus), _number(memory), parse_resources(resources))
        before = found[name].kinds if name in found else ()
        found[name] = Partition(name, marked.endswith("*"), state == "up", minutes(limit), (*before, kind))
    return list(found.values())


def parse_resources(text: str) -> Tuple[Resource, ...]:
    """The resources in a node's list, such as `dcu:Hygon:4(S:0-1),nvme:1`."""
    found: List[Resource] = []
    for word in re.sub(r"\([^)]*\)", "", text).split(","):
        name, *rest = word.strip().split(":")
        if name:
            count = rest.pop() if rest and re.fullmatch(r"\d+[KMGT]?", rest[-1]) else "1"
            found.append(Resource(name, ":".join(rest), _number(count)))
    return tuple(found)


def parse_associations(text: str) -> List[Association]:
    """The associations in the output of `sacctmgr -P`, `account|qos,qos|default qos|max submit` a line."""
    found: List[Association] = []
    for line in text.splitlines():
        fields = line.strip().split("|")
        if len(fields) == 4 and fields[0]:
            account, qos, default_qos, submit = fields
            names = tuple(name for name in qos.split(",") if name)
            found.append(Association(account, names, default_qos, int(submit) if submit.isdigit() else None))
    return found


def parse_modules(text: str) -> List[str]:
    """The names in `module -t avail`, of environment-modules or Lmod, without folders, defaults' marks and notes."""
    words = [line.strip() for line in text.splitlines()]
    names = [re.sub(r" *(\([^)]*\)|<[^>]*>)+$", "", word) for word in words]
    return [name for name in dict.fromkeys(names) if re.fullmatch(r"[\w][\w.+/-]*[^/:]", name)]


def minutes(text: str) -> Optional[int]:
    """Slurm's time, such as 3-00:00:00, 2:00:00, 30:00 or UNLIMITED, in minutes rounded down; None: no limit."""
    if text in NO_LIMIT:
        return None
    match = DURATION.fullmatch(text)
    if not match:
        return None
    days, first, second, third = (None if word is None else int(word) for word in match.groups())
    if days is not None:
        return days * 1440 + (first or 0) * 60 + (second or 0)
    return (first or 0) * 60 + (second or 0) if third is not None else first


def usual_cards(partition: Partition) -> Optional[str]:
    """The resource that is most likely the cards of a partition; None where it has no resource at all."""
    names = [each.name for each in partition.resources]
    return next((name for name in (*CARDS, *names) if name in names), None)


def _number(text: str) -> int:
    """The number at the start of a field such as 32+ or 4K; 0 where there is none."""
    match = re.match(r"\d+", text)
    return int(match.group()) if match else 0
