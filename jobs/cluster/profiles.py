"""Profiles of clusters: which there are, what one says field by field, and what in one cannot work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, List, Mapping, Sequence

from jobs.config import Settings, load_profile, profile_path, profile_paths, read_settings, read_yaml, to_yaml
from jobs.spec import ClusterProfile
from ldm.errors import ConfigError
from ldm.inference.files import naming

MEANINGS = {
    "scheduler": "slurm, or local: processes on this machine",
    "partition": "as sinfo -a lists it; null: the cluster's default",
    "account": "that the hours are charged to; null: yours by default",
    "qos": "quality of service; null: yours by default",
    "gres": "what cards are called, without a count, such as dcu or gpu:a100; null: no cards are asked for",
    "cards_per_node": "so that no job asks for more",
    "cpus_per_card": "cores for each process; usually a node's cores / its cards",
    "python": "absolute path of the interpreter in a job; null: the one that submits",
    "setup": "shell lines before the work, such as module load; the first that fails ends the job",
    "env": "variables for the job, taken to the letter",
    "directives": 'further #SBATCH lines by long name; "" has no value',
    "omit": "#SBATCH lines that the site refuses, by long name",
    "ld_library_path": "folders, in this order before what the setup leaves in LD_LIBRARY_PATH",
    "max_array_size": "MaxArraySize; the highest index of an array is one less",
    "max_submit_jobs": "array tasks that you may have in the queue; null: no limit known",
    "max_time_min": "of one job in this partition, in minutes; null: no limit known",
    "requeue": "whether a job may put itself back into the queue",
    "price_per_card_hour": "for the cost in estimates and reports; null: none is shown",
    "currency": "of the price, as it is to be printed",
}
# Slurm takes these too, and then starts the worker as often as there are tasks, or knows no card but `gpu`.
INSTEAD = {
    **dict.fromkeys(
        ("ntasks", "ntasks-per-node", "ntasks-per-core", "ntasks-per-socket", "tasks-per-node", "ntasks-per-gpu"),
        "cards=N, which starts one process a card, and cluster.cpus_per_card=N for its cores",
    ),
    **dict.fromkeys(
        ("gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket"),
        "cluster.gres=NAME and cards=N: these directives know no resource but `gpu`",
    ),
    **dict.fromkeys(("cpus-per-task", "cpus-per-gpu"), "cluster.cpus_per_card=N"),
    "array": "max_parallel=N for how many tasks run at a time",
    "output": "nothing: logs are in the run folder",
    "error": "nothing: logs are in the run folder",
}


def check_profile(settings: Settings) -> None:
    """Raise ConfigError, with what to type, for what cannot work, or will not be given, as the profile asks for it."""
    profile, wanted = settings.profile, settings.spec.time_limit_min
    check_directives(profile)
    if any(":" in folder or not folder for folder in profile.ld_library_path):
        raise ConfigError(f"ld_library_path must be a list of folders, one each, got {profile.ld_library_path}")
    if profile.max_time_min is not None and wanted > profile.max_time_min:
        raise ConfigError(
            f"time_limit_min must be at most {profile.max_time_min} on this cluster, got {wanted}; give "
            f"time_limit_min={profile.max_time_min}, or cluster.max_time_min={wanted} if the site allows that now"
        )


def check_directives(profile: ClusterProfile) -> None:
    """Raise ConfigError for a directive that sdbatch has a setting for, and that would break what the setting does."""
    for name in profile.directives:
        if name in INSTEAD:
            raise ConfigError(f"the directive {name} must not stand in a profile; use {INSTEAD[name]}")


def library_path(profile: ClusterProfile) -> str:
    """ld_library_path as one word, a leading ~ expanded here: jobs see the same home folder."""
    return ":".join(os.path.expanduser(folder) for folder in profile.ld_library_path)


def list_profiles() -> List[str]:
    """One line for each profile: its name and what it is, or what is wrong with it."""
    paths = profile_paths()
    width = max(map(len, paths), default=0)
    return [f"{name:{width}}  {_summary(path)}" for name, path in sorted(paths.items())]


def show_profile(name: str, words: Sequence[str] = ()) -> str:
    """The profile with every field as YAML, and where each value comes from; `words` are cluster.KEY=value.

    The text is itself a profile.
    """
    strange = [word for word in words if not word.startswith("cluster.")]
    if strange:
        raise ConfigError(f"a profile has settings cluster.KEY=value, got {strange[0]!r}")
    path = profile_path(name)
    profile = read_settings([f"cluster={name}", *words]).profile
    given = {word[len("cluster.") :].partition("=")[0].partition(".")[0] for word in words}
    sources = dict.fromkeys(read_yaml(path), f"from {path.name}")
    sources.update(dict.fromkeys(given, "from the command line"))
    notes = {field: [f"{text} [{sources.get(field, 'the default')}]"] for field, text in MEANINGS.items()}
    return profile_text([f"{name}: {path}, every field"], vars(profile), notes)


def profile_text(head: Sequence[str], values: Mapping[str, Any], notes: Mapping[str, Sequence[str]]) -> str:
    """A profile's YAML: `head` as comments, then each value below its notes."""
    lines = [f"# {line}".rstrip() for line in head]
    for key, value in values.items():
        lines += ["", *(f"# {note}" for note in notes.get(key, ())), to_yaml({key: value}).rstrip()]
    return "\n".join(lines) + "\n"


def save_profile(path: Path, text: str) -> None:
    """Write a profile to a new file; ConfigError where there is one, or where its name is none of a profile."""
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"a profile's file must end with .yaml, got {path}")
    if path.exists():
        raise ConfigError(f"{path} is there already, and stays as it is; give another -o FILE")
    with naming(path), path.open("x", encoding="utf-8") as file:
        file.write(text)


def _summary(path: Path) -> str:
    try:
        profile = load_profile(str(path))
    except ConfigError as error:
        return f"cannot be used: {' '.join(str(error).split())}"
    if profile.scheduler == "local":
        return "this machine, without Slurm"
    cards = f"{profile.cards_per_node} {profile.gres} a node" if profile.gres else "no cards"
    where = f"partition {profile.partition}" if profile.partition else "the default partition"
    return f"Slurm, {where}, {cards}, {profile.cpus_per_card} cores a card"
