"""How fast the networks are on this processor: against diffusers, against the plain way, against what it can do at all.

    python benchmarks/speed.py [--quick] [--folder DIR] [--peer PYTHON] [--patience MINUTES] [--only PART ...]
                               [--levers NAME ...]

Writes docs/benchmarks.md, or docs/benchmarks-float32.md where a processor has no fast bfloat16, and its plot in about
an hour on two idle cores, and up to its patience later where they are not; with --quick it only shows what it would
write, in a few minutes, too few rounds to judge. The folder keeps random weights of Stable Diffusion v1's size (13 GB:
.safetensors, .ckpt, and diffusers' own files) from one call to the next, and what was measured: --only measures parts
again and leaves the others as they were. diffusers is looked for in .venv-peers. Status 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Tuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from on_cluster.measure import Measured  # noqa: E402 - found from any folder
from on_processor import levers, page, parts, rows  # noqa: E402
from on_processor.parts import Bench, NotHere, Series  # noqa: E402
from on_processor.talk import ServerError  # noqa: E402
from on_processor.turns import Patience  # noqa: E402

FOLDER = ROOT / "build" / "benchmarks"
CONFIG = ROOT / "configs" / "stable-diffusion" / "v1-inference.yaml"
PEER = ROOT / ".venv-peers" / "bin" / "python"
ROUNDS, QUICK_ROUNDS = 5, 2
PATIENCE_MINUTES = 20
Part = Callable[[], Iterator[Series]]
PARTS = (*parts.TASKS, "compiled", "whole", "start", "overhead", "large", "accuracy", "small", "levers")


def main() -> int:
    options = parse_options()
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    patience = Patience(0 if options.quick else 60 * options.patience)
    bench = Bench(options.config, options.folder, find_peer(options.peer), rounds, patience)
    bench.prepare()
    kept = options.folder / ("quick.json" if options.quick else "found.json")
    failed = measure(bench, options, kept)
    found = page.read(kept)
    if options.quick:
        print(page.text(found))
        return 1 if failed else 0
    file = page.page_of(found)
    page.write(found)
    print(f"wrote {file} and {page.plot_of(file)}")
    missed = rows.missed(page.all_series(found), page.dtypes_of(found))
    print(*(f"missed: {name}" for name in missed), sep="\n")
    return 1 if failed or missed else 0


def measure(bench: Bench, options: argparse.Namespace, kept: Path) -> List[str]:
    """Keep what the wanted parts find, as soon as they find it; the last words of those that failed."""
    about = parts.about(bench)
    failed = []
    for name, part in wanted_parts(bench, options):
        try:
            for series in part():
                page.keep(kept, name, about, series)
                show(series)
        except NotHere as error:
            print(f"{name}: {error}", flush=True)
        except ServerError as error:
            failed.append(f"{name}: {error}")
            print(failed[-1], flush=True)
    return failed


def wanted_parts(bench: Bench, options: argparse.Namespace) -> List[Tuple[str, Part]]:
    """Each part by its name; the levers are as many as are to be moved."""
    once: Dict[str, Part] = {
        **{name: partial(parts.forwards, bench, name) for name in parts.TASKS},
        "compiled": partial(parts.compiled, bench),
        "whole": partial(parts.whole, bench),
        "start": partial(parts.start, bench),
        "overhead": partial(parts.overhead, bench),
        "large": partial(parts.large, bench, parts.QUICK_LARGE_SIZE if options.quick else parts.LARGE_SIZE),
        "accuracy": partial(parts.accuracy, bench),
        "small": partial(parts.small, bench),
    }
    wanted = options.only or PARTS
    moved = [("levers", partial(parts.moved, bench, name)) for name in options.levers if "levers" in wanted]
    return [(name, once[name]) for name in wanted if name in once] + moved


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds, and leave the page alone")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="for 13 GB (build/benchmarks)")
    parser.add_argument("--config", type=Path, default=CONFIG, help="the model's YAML (SD v1)")
    parser.add_argument("--peer", metavar="PYTHON", help="that has diffusers (.venv-peers), or 'none' to leave it out")
    parser.add_argument(
        "--patience",
        type=float,
        default=PATIENCE_MINUTES,
        metavar="MINUTES",
        help=f"to wait in all while the host of a virtual machine takes its processors away ({PATIENCE_MINUTES})",
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument(
        "--levers",
        nargs="+",
        choices=list(levers.LEVERS),
        default=list(levers.LEVERS),
        metavar="NAME",
        help=f"that the part `levers` moves, of {', '.join(levers.LEVERS)}",
    )
    return parser.parse_args()


def find_peer(asked: Optional[str]) -> Optional[Path]:
    """The Python that has diffusers; SystemExit says how to get it."""
    if asked == "none":
        return None
    peer = Path(asked) if asked else PEER
    command = (str(peer), "-c", "import diffusers, transformers")
    if not peer.exists() or subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode:
        raise SystemExit(
            f"diffusers is needed to compare with, and {peer} does not have it: make the environment with "
            "tools/venv.sh peers, name another with --peer PYTHON, or leave it out with --peer none"
        )
    return peer


def show(series: Series) -> None:
    """The medians of a part, as soon as they are there."""
    for name, ways in series.items():
        medians = {way: Measured(values) for way, values in ways.items() if values and way != "stolen"}
        shown = [f"{way} {found.median:.3g} (spread {found.spread:.0%})" for way, found in medians.items()]
        stolen = [f"of the processors' time {max(ways['stolen']):.0%} stolen"] if ways.get("stolen") else []
        print(f"{name}: {'; '.join(shown + stolen)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
