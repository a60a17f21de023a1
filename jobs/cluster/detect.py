"""The first version of a cluster's profile, from what its own commands say; what could not be learned is said too."""

from __future__ import annotations

import getpass
import re
from typing import Any, Callable, Dict, List, Optional, Sequence, TypeVar

from jobs.cluster.profiles import MEANINGS, profile_text
from jobs.cluster.site import (
    Association,
    NodeKind,
    Partition,
    read_associations,
    read_config,
    read_modules,
    read_partition_limits,
    read_partitions,
    usual_cards,
)
from jobs.cluster.slurm import RunCommand, outside_any_job, run_command
from jobs.config import refuse_unknown
from jobs.spec import ClusterProfile
from ldm.errors import SchedulerError
from ldm.inference.cards import CUDA

T = TypeVar("T")

LEAST_MEMORY_MB = 8192  # of one process: a checkpoint of 4 GiB and what reads it
# The word for NVIDIA's is that of its variable; no module but one writes it out.
TOOLKITS = re.compile(rf"dtk|rocm|hip|{CUDA.partition('_')[0]}|das|conda|pytorch|python", re.IGNORECASE)
SHOWN_MODULES = 40
HEAD = (
    "First version of the profile of the cluster {cluster}, from what sinfo, scontrol, sacctmgr and module say here.",
    "Look at every field that says LOOK; then: python -m jobs doctor cluster=THIS-FILE.yaml",
)


class Draft:
    """A profile in the making: values, and notes on how each was learned."""

    def __init__(self) -> None:
        self.values: Dict[str, Any] = {**vars(ClusterProfile()), "scheduler": "slurm"}
        self.notes: Dict[str, List[str]] = {key: [text] for key, text in MEANINGS.items()}

    def set(self, key: str, value: Any, *notes: str) -> None:
        """Take a value, and say where it is from."""
        self.values[key] = value
        self.notes[key] += notes

    def note(self, key: str, *notes: str) -> None:
        """Say something of a value that stays as it is."""
        self.notes[key] += notes


def detect(partition: Optional[str] = None, run: RunCommand = run_command) -> str:
    """A profile of this cluster as YAML, of one partition: the given, else the default one or the first with cards.

    Raises SchedulerError where sinfo does not answer, ConfigError for a partition that it does not list.
    """
    partitions = read_partitions(run)
    if not partitions:
        raise SchedulerError("sinfo -a lists no partition; ask the site which one you may use")
    chosen = choose(partitions, partition)
    draft = Draft()
    config: Dict[str, str] = _asked(draft, "max_array_size", lambda: read_config(run)) or {}
    _cards(draft, chosen)
    _partition(draft, chosen, partitions, run)
    _controller(draft, config)
    limits: Dict[str, str] = _asked(draft, "directives", lambda: read_partition_limits(run, chosen.name)) or {}
    _memory(draft, chosen, config, limits)
    _accounting(draft, _asked(draft, "account", lambda: read_associations(run, getpass.getuser())))
    _modules(draft, _asked(draft, "setup", lambda: read_modules(run)))
    draft.note("python", "LOOK: it must see sdbatch's packages on the nodes too.")
    draft.note("ld_library_path", "Not to be learned here: say conda's lib folder if a job misses a library.")
    draft.note("price_per_card_hour", "Not to be learned here: the site's price list has it.")
    head = [line.format(cluster=config.get("ClusterName", "here")) for line in HEAD]
    if "KillWait" in config:
        head.append(f"A job that is cancelled or out of time is killed {config['KillWait']} after it was told.")
    return profile_text(head, draft.values, draft.notes)


def choose(partitions: Sequence[Partition], wanted: Optional[str]) -> Partition:
    """The wanted partition; else the default one if it has cards, else the largest that has, else the default one."""
    if wanted is not None:
        refuse_unknown(wanted, [each.name for each in partitions], "partition")
        return next(each for each in partitions if each.name == wanted)
    return max(partitions, key=lambda each: (each.is_up and bool(usual_cards(each)), each.is_default, each.nodes))


def nodes_with_cards(partition: Partition, gres: str) -> List[NodeKind]:
    """The kinds of nodes of a partition that have this resource."""
    return [kind for kind in partition.kinds if kind.cards(gres)]


def _cards(draft: Draft, chosen: Partition) -> None:
    gres = usual_cards(chosen)
    if gres is None:
        draft.note("gres", f"LOOK: the nodes of {chosen.name} have no resource; on the CPU it will be slow.")
        return
    kinds = nodes_with_cards(chosen, gres)
    least = min(kind.cards(gres) for kind in kinds)
    cores = max(1, min(kind.cpus // kind.cards(gres) for kind in kinds))
    listed = ", ".join(dict.fromkeys(str(each) for each in chosen.resources))
    draft.set("gres", gres, f"sinfo lists {listed} on the nodes of {chosen.name}.")
    draft.set("cards_per_node", least, f"The least that a node of {chosen.name} with {gres} has.")
    draft.set("cpus_per_card", cores, f"{min(kind.cpus for kind in kinds)} cores a node, shared by its cards.")


def _partition(draft: Draft, chosen: Partition, partitions: Sequence[Partition], run: RunCommand) -> None:
    others = [f"  {each}" for each in partitions]
    draft.set("partition", chosen.name, "LOOK: listed are", *others, _verdict(chosen, draft.values["gres"], run))
    limit = chosen.max_time_min
    draft.set("max_time_min", limit, "sinfo names no limit." if limit is None else "As sinfo has it.")


def _verdict(chosen: Partition, gres: Optional[str], run: RunCommand) -> str:
    """What Slurm says of a job of this user's there; being listed does not mean that one may."""
    command = ["sbatch", "--test-only", "--nodes=1", f"--partition={chosen.name}", "--wrap=true"]
    command += [f"--gres={gres}:1"] if gres else []
    try:
        with outside_any_job():
            run(command)
    except SchedulerError as error:
        return f"sbatch --test-only fails there: {error}"
    return f"sbatch --test-only finds that a job of yours may run in {chosen.name}."


def _controller(draft: Draft, config: Dict[str, str]) -> None:
    if config.get("MaxArraySize", "").isdigit():
        draft.set("max_array_size", int(config["MaxArraySize"]), "As scontrol show config has it.")
    if config.get("JobRequeue") == "0":
        draft.note("requeue", "LOOK: JobRequeue=0, so a job is put back only where it asks for that, which ours do.")
    elif config:
        draft.note("requeue", "JobRequeue=1; whether the site's rules forbid it is not to be learned here.")


def _memory(draft: Draft, chosen: Partition, config: Dict[str, str], limits: Dict[str, str]) -> None:
    """Where memory is handed out and a job has none or little by default, ask for a card's share of the node."""
    handed_out = "MEMORY" in f"{config.get('SelectTypeParameters')} {limits.get('SelectTypeParameters')}".upper()
    if not handed_out or not all(kind.memory_mb for kind in chosen.kinds):
        draft.note("directives", "Memory: not handed out by Slurm here, as far as it says, so none is asked for.")
        return
    given = limits.get("DefMemPerCPU") or config.get("DefMemPerCPU", "")
    kinds = nodes_with_cards(chosen, draft.values["gres"] or "") or list(chosen.kinds)
    share = min(kind.memory_mb // max(1, kind.cpus) for kind in kinds)
    cores = draft.values["cpus_per_card"]
    if given.isdigit() and int(given) * cores >= min(LEAST_MEMORY_MB, share * cores):
        draft.note("directives", f"Memory: {given} MB a core unless asked for more, which is enough.")
        return
    told = f"{given} MB a core, which is little" if given.isdigit() else "all of the node's, for one job alone"
    draft.set("directives", {"mem-per-cpu": f"{share}M"}, f"Memory: by default {told}; a core's share is {share} MB.")


def _accounting(draft: Draft, associations: Optional[List[Association]]) -> None:
    if associations is None:
        return
    if not associations:
        draft.note("account", "Not learned: accounting knows no account of yours.")
        return
    accounts = list(dict.fromkeys(each.account for each in associations))
    if len(accounts) > 1:
        draft.note("account", f"LOOK: you have {', '.join(accounts)}.")
    else:
        draft.note("account", f"Yours is {accounts[0]}.")
    qos = list(dict.fromkeys(name for each in associations for name in each.qos))
    draft.note("qos", f"You may use {', '.join(qos)}." if qos else "Accounting names none of yours.")
    limits = [each.max_submit_jobs for each in associations if each.max_submit_jobs]
    if limits:
        draft.set("max_submit_jobs", min(limits), "MaxSubmitJobs of your association.")
    else:
        draft.note("max_submit_jobs", "Your associations have no limit; a QOS or the site may.")


def _modules(draft: Draft, modules: Optional[List[str]]) -> None:
    if modules is None:
        return
    likely = [name for name in modules if TOOLKITS.search(name)]
    if not likely:
        what = "no module of DTK, ROCm or the like is listed" if modules else "there are no environment modules here"
        draft.note("setup", f"Not learned: {what}.")
        return
    draft.note("setup", "LOOK: none was chosen. Write as `- module load NAME`, or `- module switch NAME` where another")
    draft.note("setup", "version is loaded already, what your torch was built for; of these perhaps:")
    draft.note("setup", *(f"  {name}" for name in likely[:SHOWN_MODULES]))
    if len(likely) > SHOWN_MODULES:
        draft.note("setup", f"  and {len(likely) - SHOWN_MODULES} more: module -t avail")


def _asked(draft: Draft, key: str, ask: Callable[[], T]) -> Optional[T]:
    """What a command says; None, and a note at the field that needs it, where it fails."""
    try:
        return ask()
    except SchedulerError as error:
        draft.note(key, f"Not learned: {' '.join(str(error).split())}")
        return None
