"""Does the cluster have what the profile says, and would Slurm take the job? Only asked, nothing is submitted."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Iterator, List, Optional

from jobs.cluster.advice import site_advice
from jobs.cluster.site import Partition, read_config, read_modules, read_partitions
from jobs.cluster.slurm import RunCommand, outside_any_job
from jobs.config import Settings
from jobs.doctor.verdict import Finding, failure, ok, warning
from jobs.rundir import RunDir
from jobs.spec import ClusterProfile
from jobs.submit.sbatch import directives
from ldm.errors import SchedulerError, SdbatchError
from ldm.inference.files import file_system_of

OWN_FILE_SYSTEMS = frozenset(["btrfs", "ext2", "ext3", "ext4", "overlay", "ramfs", "tmpfs", "xfs"])
STACK = re.compile(r"dtk|rocm", re.IGNORECASE)
STACKS_SHOWN = 4
LOADING = ("load", "add", "switch", "swap")


def examine_cluster(settings: Settings, run: RunCommand) -> List[Finding]:
    """What can be told of the profile on the login node."""
    try:
        version = run(["sbatch", "--version"]).strip()
        partitions = read_partitions(run)
    except SchedulerError as error:
        return [failure(str(error))]
    profile = settings.profile
    chosen = next((each for each in partitions if each.name == (profile.partition or _default(partitions))), None)
    found = [ok(version)]
    if chosen is None:
        names = ", ".join(sorted(each.name for each in partitions))
        missing = f"no partition {profile.partition!r}" if profile.partition else "there is no default partition"
        return [*found, failure(f"{missing}; there are {names}")]
    found += [*_cards(settings, chosen), *_limits(settings, chosen, run), *_would_be_taken(settings, run)]
    return [*found, *_setup(profile, run), *_paths(settings)]


def _default(partitions: List[Partition]) -> Optional[str]:
    return next((each.name for each in partitions if each.is_default), None)


def _cards(settings: Settings, chosen: Partition) -> Iterator[Finding]:
    spec, profile = settings.spec, settings.profile
    if not profile.gres:
        return
    having = ", ".join(map(str, chosen.resources)) or "none"
    text = f"partition {chosen.name} has the resources {having}, asked for is {profile.gres}"
    kinds = [kind for kind in chosen.kinds if kind.cards(profile.gres)]
    if not kinds:
        yield failure(text)
        return
    yield ok(text)
    most = max(kind.cards(profile.gres) for kind in kinds)
    cores = max(kind.cpus for kind in kinds)
    if profile.cards_per_node > most:
        yield warning(f"cards_per_node is {profile.cards_per_node}, and no node of {chosen.name} has more than {most}")
    if spec.cards * profile.cpus_per_card > cores:
        asked = f"{spec.cards} cards with {profile.cpus_per_card} cores each"
        yield failure(f"{asked} are more than the {cores} cores of a node; give cluster.cpus_per_card={cores // most}")


def _limits(settings: Settings, chosen: Partition, run: RunCommand) -> Iterator[Finding]:
    limit, asked = chosen.max_time_min, settings.spec.time_limit_min
    if limit is not None and asked > limit:
        yield failure(f"{chosen.name} gives at most {limit} min, asked for are {asked}; give time_limit_min={limit}")
    try:
        size = read_config(run).get("MaxArraySize", "")
    except SchedulerError as error:
        yield warning(f"the limit of arrays is not known: {error}")
        return
    if size.isdigit() and settings.profile.max_array_size > int(size):
        yield failure(f"max_array_size is {settings.profile.max_array_size}, here {size}; give "
                      f"cluster.max_array_size={size}")  # fmt: skip


def _would_be_taken(settings: Settings, run: RunCommand) -> Iterator[Finding]:
    """Slurm's own word on a job of these settings; a partition may be listed and yet closed to the user."""
    try:
        asked = directives(RunDir(Path(settings.spec.outputs) / "doctor"), settings)
    except SdbatchError as error:
        yield failure(str(error))
        return
    words = [f"--{key}={value}" if value else f"--{key}" for key, value in asked.items()]
    kept = [word for word in words if word[2:].partition("=")[0] not in settings.profile.omit]
    try:
        with outside_any_job():
            run(["sbatch", "--test-only", *kept, "--wrap=true"])
    except SchedulerError as error:
        advice = site_advice(str(error), settings.profile, run)
        yield failure(f"Slurm would not take the job: {error}{advice and f'; {advice}'}")
        return
    yield ok("Slurm would take the job (sbatch --test-only)")


def _setup(profile: ClusterProfile, run: RunCommand) -> Iterator[Finding]:
    """Modules that the setup names and `module avail` does not; one that is hidden may still load."""
    wanted = [name for line in profile.setup for name in _modules_of(line)]
    if profile.setup and not wanted:
        return
    try:
        there = read_modules(run)
    except SchedulerError as error:
        yield warning(f"`module avail` failed: {error}")
        return
    stacks = [name for name in there if STACK.search(name)]
    if not profile.setup and stacks:
        yield warning(f"the setup loads no module; here are {', '.join(stacks[:STACKS_SHOWN])}")
    if wanted and not there:
        yield warning("the setup uses `module`, which this machine does not know; the job looks for it itself")
        return
    for name in wanted:
        if any(each == name or each.startswith(f"{name}/") for each in there):
            yield ok(f"module {name}")
        else:
            near = difflib.get_close_matches(name, there, n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            yield warning(f"`module avail` does not list {name}{hint}")


def _modules_of(line: str) -> List[str]:
    """The modules that a line of the setup loads."""
    words = line.split()
    if words[:1] != ["module"] or len(words) < 3 or words[1] not in LOADING:
        return []
    return words[-1:] if words[1] in ("switch", "swap") else words[2:]


def _paths(settings: Settings) -> Iterator[Finding]:
    """Paths of the profile, and the folder of the runs: nodes must see them, which is guessed at from here."""
    profile = settings.profile
    if profile.python and not os.path.isabs(profile.python):
        yield warning(f"python is {profile.python}; give its absolute path, so that every node takes the same")
    elif profile.python and not os.access(profile.python, os.X_OK):
        yield warning(f"python is {profile.python}, which is no program on this machine")
    for folder in profile.ld_library_path:
        if not os.path.isdir(os.path.expanduser(folder)):
            yield warning(f"ld_library_path names {folder}, which is no folder on this machine")
    outputs = os.path.realpath(os.path.expanduser(settings.spec.outputs))
    kind = file_system_of(Path(outputs))
    if kind in OWN_FILE_SYSTEMS:
        yield warning(f"runs go to {outputs}, on {kind}: often one machine's own, and every node must see it")
