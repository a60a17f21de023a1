"""What the batch system costs beside making pictures, and how it scales, on a private Slurm cluster started here.

    python benchmarks/cluster.py [--full] [--only PART ...] [--chaos FILE ...]

Quick and small without --full, to see that all of it works: a minute or two, and too small to judge. With --full, most
of an hour on an idle machine: a million rows, 100,000 images, 64 simulated nodes; it writes docs/benchmarks-cluster.md
and its plot, with a row of what chaos.py --json has found if told where; --full --only measures parts again, such as
one that other work on the machine got in the way of, and replaces their rows there. Status 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Sequence, Tuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from on_cluster import control_plane, overhead, page, scaling  # noqa: E402 - found from any folder
from on_cluster.measure import Row, markdown  # noqa: E402

from tests.integration.login_node import LoginNode  # noqa: E402
from tests.slurm_lab.cluster import SlurmLab  # noqa: E402


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    rows: int
    images: int  # of the run whose status is asked for
    repeats: int
    task_images: int  # of a second each, in the task whose overhead is measured
    shared_images: int  # that two nodes make faster than one
    nodes: Tuple[int, ...]
    images_per_node: int


PARTS = ("plan", "status", "start", "overhead", "two", "curve")
QUICK = Sizes(20_000, 2_000, 2, 8, 8, (1, 2, 4), 4)
FULL = Sizes(1_000_000, 100_000, 3, 60, 120, (1, 2, 4, 8, 16, 32, 64), 120)


def main() -> int:
    options = parse_options()
    if options.full and options.only and "curve" in options.only:
        raise SystemExit("the curve is a part of the page that is written as a whole: leave out --only, or --full")
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # of a developer's: every start would compile everything
    sizes = FULL if options.full else QUICK
    points: List[scaling.Point] = []
    with tempfile.TemporaryDirectory(prefix="sdbatch-cluster-") as name:
        folder = Path(name)
        with SlurmLab(accounting=False, dcu_nodes=max(sizes.nodes)) as lab:
            login = LoginNode(lab, folder)
            parts: Dict[str, Callable[[], List[Row]]] = {
                "plan": lambda: control_plane.planning(folder, sizes.rows, sizes.repeats),
                "status": lambda: [control_plane.status(folder, sizes.images, sizes.repeats, lab.env)],
                "start": lambda: control_plane.starting(folder, 2 * sizes.repeats + 1),
                "overhead": lambda: overhead.overhead(login, sizes.task_images, sizes.repeats),
                "two": lambda: [scaling.two_against_one(login, sizes.shared_images, sizes.repeats)],
            }
            wanted = options.only or PARTS
            table = measured(parts, [name for name in wanted if name != "curve"])
            if "curve" in wanted:
                points = scaling.curve(login, sizes.nodes, sizes.images_per_node)
            slurm = lab.output("sbatch", "--version").strip()
    if points:
        print("\n".join(scaling.curve_table(points)))
    if options.chaos:
        table.append(page.chaos_row(options.chaos))
    if options.full and options.only:
        page.replace_rows(table)
    elif options.full:
        page.write(table, points, sizes.images_per_node, slurm)
        print(f"wrote {page.PAGE} and {page.PLOT}")
    return 1 if options.full and any(row.met is False for row in table) else 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the sizes that count, and write the page")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--chaos", type=Path, nargs="+", metavar="FILE", help="what chaos.py --json has written")
    return parser.parse_args()


def measured(parts: Dict[str, Callable[[], List[Row]]], wanted: Sequence[str]) -> List[Row]:
    """The rows of the wanted parts, each shown as soon as it is there."""
    table: List[Row] = []
    for name in wanted:
        rows = parts[name]()
        table += rows
        print("\n".join(markdown(rows)[2:]), flush=True)
    return table


if __name__ == "__main__":
    sys.exit(main())
