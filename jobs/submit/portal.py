"""What the web form of a platform asks for a run, to be typed by hand: no sbatch and no submitit are needed.

The commands start one process a card themselves, for such forms run them as one shell, whatever tasks they ask for.
"""

from __future__ import annotations

import shlex
import sys
from typing import List, Sequence, Tuple

from jobs.cluster.profiles import check_profile, library_path
from jobs.config import Settings
from jobs.rundir import RunDir
from jobs.submit.sbatch import worker_device
from ldm.inference.models import PROJECT_ROOT

MEMORY = ("mem", "mem-per-cpu", "mem-per-gpu")


def portal_text(run: RunDir, settings: Settings, shards: Sequence[int]) -> str:
    """The fields of the form with what to put there, and the command lines to paste, for one job that makes `shards`.

    Raises ConfigError for what the profile cannot ask.
    """
    check_profile(settings)
    fields = [*_fields(settings, min(settings.spec.cards, len(shards))), ("work folder", str(PROJECT_ROOT))]
    width = max(len(name) for name, _ in fields)
    lines = [f"# One job for what is missing in {run.path}; submit the same again if it ends before its time."]
    lines += [f"# {name:{width}}  {value}" for name, value in fields]
    return "\n".join([*lines, "# command lines:", *_commands(run, settings)]) + "\n"


def _fields(settings: Settings, cards: int) -> List[Tuple[str, str]]:
    spec, profile = settings.spec, settings.profile
    hours, minutes = divmod(spec.time_limit_min, 60)
    fields = [
        ("partition", profile.partition or "the default one"),
        ("nodes", "1"),
        ("cores", str(cards * profile.cpus_per_card)),
        (f"cards ({(profile.gres or 'none').upper()})", str(cards if profile.gres else 0)),
        ("time limit", f"{spec.time_limit_min} min ({hours:02}:{minutes:02}:00)"),
    ]
    fields += [(name, profile.directives[name]) for name in MEMORY if name in profile.directives]
    named = (("account", profile.account), ("qos", profile.qos))
    return fields + [(name, value) for name, value in named if value]


def _commands(run: RunDir, settings: Settings) -> List[str]:
    """The shell lines: those of the site, then the project's; a line that fails ends the job, as submit has it."""
    spec, profile = settings.spec, settings.profile
    exports = {"OMP_NUM_THREADS": str(profile.cpus_per_card), **profile.env}
    libraries = library_path(profile)
    words = [profile.python or sys.executable, "-m", "jobs", "resume", str(run.path), "cluster=local"]
    words += [f"cards={spec.cards}", f"batch_size={spec.batch_size}", f"device={worker_device(settings)}"]
    return [
        "set -e; ulimit -c 0",
        *(f"export {name}={shlex.quote(str(value))}" for name, value in exports.items()),
        *profile.setup,
        *(
            [f'export LD_LIBRARY_PATH={shlex.quote(libraries)}"${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"']
            if libraries
            else []
        ),
        f"cd {shlex.quote(str(PROJECT_ROOT))}",
        shlex.join(words),
    ]
