"""The text of a job for Slurm, as data around shell that stands in files of its own (templates/).

    directives (#SBATCH), exports, find_module.sh, site.sh, the site's own lines, ready.sh, ending.sh,
    array.sh or after.sh

`submit` gives the same lines up to ending.sh to submitit, so both ways meet the same site and end alike.
"""

from __future__ import annotations

import dataclasses
import logging
import shlex
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from jobs.cluster.profiles import check_profile, library_path
from jobs.cluster.site import FIND_MODULE
from jobs.config import Settings
from jobs.plan import index_ranges
from jobs.rundir import RunDir
from jobs.spec import REHEARSAL
from ldm.errors import ConfigError, OutputError
from ldm.inference.models import PROJECT_ROOT

log = logging.getLogger(__name__)

TEMPLATES = Path(__file__).resolve().parent / "templates"
NODE_LOCAL = ("/tmp/", "/var/tmp/", "/dev/shm/")
# Workers stop in time by themselves. USR2 is for preemption, at sites that send it then; before the end of the time it
# is to come as late as can be, for Slurm may send it a minute early.
SIGNAL = "USR2@1"
UNQUOTABLE = "%\\\n"  # Slurm expands the first two in the path of a log, and a directive is one line


def render(run: RunDir, settings: Settings, shards: Sequence[int], parts: int) -> str:
    """A plain sbatch file whose array makes `shards`, in so many `parts` of the run.

    Array task k of N makes the shards k, k + N, ..., so N stays when the file is submitted again for what is missing.
    """
    spec, profile = settings.spec, settings.profile
    indices = sorted({shard // spec.cards % parts for shard in shards})
    limit = f"%{spec.max_parallel}" if spec.max_parallel else ""
    header = directives(run, settings)
    header["array"] = index_ranges(indices) + limit
    header["output"] = str(log_pattern(run))
    lines = [f"#SBATCH {flag(key, value)}" for key, value in sorted(header.items()) if key not in profile.omit]
    purpose = f"# Makes what is missing in {run.path}. Submit it with sbatch, as often as needed."
    blocks = [
        "\n".join(["#!/bin/bash", purpose, *lines]),
        *setup_blocks(run, settings, {"SDBATCH_PARTS": str(parts)}, packages=()),
        _template("array.sh"),
    ]
    return "\n\n".join(block.strip() for block in blocks) + "\n"


def directives(run: RunDir, settings: Settings) -> Dict[str, str]:
    """What both ways ask of Slurm, by long name; an empty value is a flag.

    Cards are asked for by --gres alone: --gpus-per-node and its kin know no other resource than `gpu`.
    """
    spec, profile = settings.spec, settings.profile
    check_run_path(run)
    check_profile(settings)
    if profile.gres and spec.cards > profile.cards_per_node:
        raise ConfigError(f"cards must be at most {profile.cards_per_node}, a node's on this cluster, got {spec.cards}")
    asked: Dict[str, Any] = {
        "job-name": run.path.name,
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "nodes": 1,
        "ntasks-per-node": spec.cards,
        "cpus-per-task": profile.cpus_per_card,
        "gres": f"{profile.gres}:{spec.cards}" if profile.gres else None,
        "time": spec.time_limit_min,
        "open-mode": "append",
        "requeue" if may_requeue(settings) else "no-requeue": "",
        "signal": SIGNAL,
        "mail-user": spec.mail,
        "mail-type": spec.mail and "END,FAIL",
        **profile.directives,
    }
    return {key: str(value) for key, value in asked.items() if value is not None}


def render_after(
    run: RunDir, settings: Settings, steps: Sequence[str], dependency: Optional[str], log_path: Path
) -> str:
    """A plain sbatch file for the commands behind the last picture, on one core, once the jobs it depends on ended."""
    settings = dataclasses.replace(settings, spec=dataclasses.replace(settings.spec, cards=1))
    header = {
        **directives(run, settings),
        "job-name": run.name_after,
        **({} if dependency is None else {"dependency": dependency}),
        "output": str(log_path),
        "cpus-per-task": "1",
    }
    dropped = {"gres", "signal", *settings.profile.omit}
    commands = [step for step in steps if step != "notify"]  # which takes an address, and comes last
    extra = {"SDBATCH_STEPS": " ".join(commands), "SDBATCH_WEBHOOK": settings.spec.webhook or ""}
    lines = [f"#SBATCH {flag(key, value)}" for key, value in sorted(header.items()) if key not in dropped]
    blocks = [
        "\n".join(["#!/bin/bash", *lines]),
        *setup_blocks(run, settings, extra, packages=()),
        _template("after.sh"),
    ]
    return "\n\n".join(block.strip() for block in blocks) + "\n"


def may_requeue(settings: Settings) -> bool:
    """Whether a job may put itself back into the queue."""
    return settings.spec.requeue and settings.profile.requeue


def setup_blocks(
    run: RunDir, settings: Settings, extra: Dict[str, str], packages: Sequence[str] = ("submitit",)
) -> List[str]:
    """The shell text before the work: exports, what the site's lines rely on, those lines, and what follows them.

    `packages` are what the job's Python must have beside those that the work needs.
    """
    spec, profile = settings.spec, settings.profile
    values = {
        "OMP_NUM_THREADS": str(profile.cpus_per_card),
        **{name: str(value) for name, value in profile.env.items()},
        "SDBATCH_ROOT": str(PROJECT_ROOT),
        "SDBATCH_RUN": str(run.path),
        "SDBATCH_PYTHON": profile.python or sys.executable,
        "SDBATCH_PACKAGES": " ".join([*_packages(settings), *packages]),
        "SDBATCH_LD_LIBRARY_PATH": library_path(profile),
        "SDBATCH_CARDS": str(spec.cards),
        "SDBATCH_CPUS_PER_CARD": str(profile.cpus_per_card),
        "SDBATCH_BATCH_SIZE": str(spec.batch_size),
        "SDBATCH_DEVICE": worker_device(settings),
        "SDBATCH_REQUEUE": str(int(may_requeue(settings))),
        **extra,
    }
    exports = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in values.items())
    before = "\n".join([_shell(FIND_MODULE).strip(), _template("site.sh")])
    return [exports, before, "\n".join(profile.setup), _template("ready.sh"), _template("ending.sh")]


def _packages(settings: Settings) -> Sequence[str]:
    """What a worker imports; the rehearsal makes its pictures without torch."""
    return ("yaml", "omegaconf") if settings.spec.model == REHEARSAL else ("yaml", "omegaconf", "numpy", "torch")


def worker_device(settings: Settings) -> str:
    """The device of a job: where cards are asked for, `auto` must not end on the CPU in silence."""
    asks_for_cards = settings.profile.scheduler == "slurm" and settings.profile.gres is not None
    return "gpu" if settings.spec.device == "auto" and asks_for_cards else settings.spec.device


def worker_words(settings: Settings) -> List[str]:
    """What a worker is told beyond its run folder: how to work, which may differ from what the plan recorded."""
    return [f"batch_size={settings.spec.batch_size}", f"device={worker_device(settings)}"]


def log_pattern(run: RunDir) -> Path:
    """Where Slurm writes the log of an array task."""
    return run.logs / "%A_%a.log"


def check_run_path(run: RunDir) -> None:
    """Refuse a run folder whose path Slurm would read otherwise than it is written."""
    found = [character for character in UNQUOTABLE if character in str(run.path)]
    if found:
        raise OutputError(f"the path of a run on Slurm must not hold {found[0]!r}, got {run.path}; give outputs=FOLDER")


def warn_of_own_folder(run: RunDir) -> None:
    """Say so where the run's folder is one that nodes lack."""
    if str(run.path).startswith(NODE_LOCAL):
        log.warning("%s is on this machine alone: a node that does not see it fails without a log", run.path)


def flag(key: str, value: str) -> str:
    """A directive as it stands behind #SBATCH."""
    return f"--{key}={shlex.quote(value)}" if value else f"--{key}"


def _template(name: str) -> str:
    return _shell(TEMPLATES / name)


def _shell(path: Path) -> str:
    """The text of a script, to stand in another."""
    return path.read_text(encoding="utf-8").partition("\n")[2]  # without shellcheck's own line
