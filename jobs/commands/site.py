"""Commands about the site rather than a run: doctor, kernels, profile."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.commands.common import with_settings
from ldm.errors import ConfigError

if TYPE_CHECKING:
    from jobs.commands.common import Subparsers

DOCTOR = "look whether what a run under these settings needs is here: packages, weights, Slurm's partition and cards"
KERNELS = "say what pictures would be computed with on this machine: device, dtype, attention, packed weights"
PROFILE = (
    "list the profiles of clusters; show one, every field with its source; or write a first version of this site's"
)


def add(commands: Subparsers) -> None:
    examined = commands.add_parser("doctor", help="look whether everything is here", description=DOCTOR)
    with_settings(examined).set_defaults(run=doctor)
    computed = commands.add_parser("kernels", help="say what torch would compute with here", description=KERNELS)
    with_settings(computed).set_defaults(run=kernels)
    shown = commands.add_parser("profile", help="list, show or detect profiles of clusters", description=PROFILE)
    shown.add_argument("name", metavar="NAME", nargs="?", help="a profile in configs/clusters, or the path of one")
    shown.add_argument("--detect", action="store_true", help="ask Slurm and `module` here, and print a profile")
    shown.add_argument("--partition", metavar="P", help="with --detect: the partition to describe")
    shown.add_argument("-o", dest="file", metavar="FILE", type=Path, help="a new .yaml file instead of the terminal")
    with_settings(shown).set_defaults(run=profile)


def doctor(options: argparse.Namespace) -> int:
    from jobs.config import read_settings
    from jobs.doctor.doctor import examine
    from jobs.doctor.doctor_torch import examine_torch
    from jobs.doctor.verdict import Verdict

    settings = read_settings(options.settings)
    findings = [*examine(settings), *examine_torch(options.settings)]
    print("\n".join(map(str, findings)))
    bad, doubtful = (sum(each.verdict is verdict for each in findings) for verdict in (Verdict.FAIL, Verdict.WARN))
    print(f"{bad} to mend, {doubtful} to look at")
    return ConfigError.exit_code if any(finding.verdict is Verdict.FAIL for finding in findings) else 0


def kernels(options: argparse.Namespace) -> int:
    from jobs.config import read_settings
    from ldm.inference.kernels import describe_kernels
    from ldm.inference.runtime import Precision

    spec = read_settings(options.settings).spec
    print("\n".join(describe_kernels(spec.device, Precision(spec.precision))))
    return 0


def profile(options: argparse.Namespace) -> int:
    from jobs.cluster.detect import detect
    from jobs.cluster.profiles import list_profiles, save_profile, show_profile

    if options.detect and (options.name or options.settings):
        raise ConfigError("--detect describes this site, so it takes no profile and no settings")
    if options.partition and not options.detect:
        raise ConfigError("--partition goes with --detect; of a profile give NAME cluster.partition=P")
    if not options.detect and not options.name:
        print("\n".join(list_profiles()))
        return 0
    text = detect(options.partition) if options.detect else show_profile(options.name, options.settings)
    if options.file is None:
        sys.stdout.write(text)
        return 0
    save_profile(options.file, text)
    print(f"wrote {options.file}; look at it, then: python -m jobs doctor cluster={shlex.quote(str(options.file))}")
    return 0
