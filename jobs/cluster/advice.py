"""What exists, where Slurm says only what does not: sentences to set behind its own words."""

from __future__ import annotations

import getpass
import re
from typing import Callable, List, Tuple

from jobs.cluster.site import Partition, read_associations, read_config, read_partitions
from jobs.cluster.slurm import RunCommand
from jobs.spec import ClusterProfile
from ldm.errors import SchedulerError

Advise = Callable[[ClusterProfile, RunCommand], str]


def site_advice(error_text: str, profile: ClusterProfile, run: RunCommand) -> str:
    """What to type instead, and what this cluster has, for a refusal in Slurm's words; "" where nothing is known.

    Asks sinfo, scontrol or sacctmgr; one that does not answer costs the advice, never an error of its own.
    """
    for pattern, advise in ADVICE:
        if re.search(pattern, error_text, re.IGNORECASE):
            try:
                return advise(profile, run)
            except SchedulerError:
                return ""
    return ""


def _partitions(profile: ClusterProfile, run: RunCommand) -> str:
    there = "; ".join(map(str, read_partitions(run)))
    return f"partitions here: {there}; give cluster.partition=NAME"


def _resources(profile: ClusterProfile, run: RunCommand) -> str:
    having = [partition for partition in read_partitions(run) if partition.resources]
    if not having:
        return "no node here has cards; give cluster.gres=null device=cpu"
    there = "; ".join(f"{each.name} has {', '.join(map(str, each.resources))}" for each in having)
    return f"{there}; give cluster.gres=NAME, without the count"


def _nodes(profile: ClusterProfile, run: RunCommand) -> str:
    partitions = {partition.name: partition for partition in read_partitions(run)}
    own = profile.partition or next((name for name, each in partitions.items() if each.is_default), "")
    if own not in partitions:
        return _partitions(profile, run)
    kinds = "; ".join(dict.fromkeys(_node_text(partitions[own])))
    return f"a node of {own} has {kinds}; change cards, cluster.gres, cluster.cpus_per_card or the memory directives"


def _node_text(partition: Partition) -> List[str]:
    return [
        f"{kind.cpus} cores, {kind.memory_mb} MB, {', '.join(map(str, kind.resources)) or 'no cards'}"
        for kind in partition.kinds
    ]


def _time(profile: ClusterProfile, run: RunCommand) -> str:
    limits = {each.name: each.max_time_min for each in read_partitions(run) if each.max_time_min is not None}
    named = "; ".join(f"{name} gives at most {limit} min" for name, limit in limits.items())
    return f"{named}; give time_limit_min=N" if named else "give a smaller time_limit_min=N"


def _accounts(profile: ClusterProfile, run: RunCommand) -> str:
    associations = read_associations(run, getpass.getuser())
    qos = dict.fromkeys(name for each in associations for name in each.qos)
    accounts = dict.fromkeys(each.account for each in associations)
    if not accounts:
        return "accounting knows no account of yours; ask the site"
    return f"yours are account {', '.join(accounts)} and qos {', '.join(qos) or 'none'}; give cluster.account=NAME"


def _array(profile: ClusterProfile, run: RunCommand) -> str:
    size = read_config(run).get("MaxArraySize", "")
    return f"MaxArraySize is {size} here; give cluster.max_array_size={size}" if size else ""


def _submits(profile: ClusterProfile, run: RunCommand) -> str:
    limits = [each.max_submit_jobs for each in read_associations(run, getpass.getuser()) if each.max_submit_jobs]
    number = str(min(limits)) if limits else "N"
    return f"wait until jobs have ended, then type `resume`; give cluster.max_submit_jobs={number} for the next time"


def _wckey(profile: ClusterProfile, run: RunCommand) -> str:
    return "the site wants a workload key; give cluster.directives.wckey=NAME"


ADVICE: Tuple[Tuple[str, Advise], ...] = (
    (r"invalid partition", _partitions),
    (r"generic resource|invalid gres", _resources),
    (r"node configuration is not available|more processors requested|cpu count|memory specification", _nodes),
    (r"MaxSubmit|violates accounting", _submits),  # names time limits too
    (r"time limit", _time),
    (r"invalid account|invalid qos", _accounts),
    (r"job array", _array),
    (r"wckey", _wckey),
)
