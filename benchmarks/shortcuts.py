"""What each shortcut gives and costs: writes the measured part of docs/shortcuts.md, which says what they are.

    python benchmarks/shortcuts.py [--prompts N] [--rounds N] [--folder DIR] [--only PART ...]

Parts: `seconds` and `calls` of a batch of the small model by every setting; `difference` of its pictures from those of
all the work, and how many show what was asked for; `large`, what each kind of network call takes at the size of SD v1.
Three quarters of an hour on an idle core. The folder keeps random weights (9 GB, those of benchmarks/speed.py) and what
was measured: --only measures parts again and leaves the others as they were.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from pathlib import Path
from typing import Any, Callable, Dict

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - found from any folder, without installing
from on_cluster.measure import processor  # noqa: E402
from on_processor.parts import INSTRUCTIONS  # noqa: E402
from on_shortcuts import page  # noqa: E402
from on_shortcuts.large import Large  # noqa: E402
from on_shortcuts.settings import PAINTED, SIZES  # noqa: E402
from on_shortcuts.small import Small  # noqa: E402

from ldm.inference.runtime import Precision, dtype_name  # noqa: E402
from ldm.modules.processor import processor_flags  # noqa: E402

FOLDER = ROOT / "build" / "benchmarks"
CONFIG = ROOT / "configs" / "stable-diffusion" / "v1-inference.yaml"


def main() -> int:
    options = parse_options()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    file = options.folder / "shortcuts.json"
    for name in options.only:
        found = PARTS[name](options)
        kept = page.read(file)
        kept[name] = {"date": f"{datetime.date.today():%Y-%m-%d}", "about": about(), **found}
        file.write_text(json.dumps(kept), encoding="utf-8")
        print(f"measured {name}", flush=True)
    kept = page.read(file)
    missing = [name for name in PARTS if name not in kept]
    if missing:
        print(f"not measured yet: {', '.join(missing)}")
        return 0
    page.write(kept)
    print(f"wrote {page.PAGE}, {page.PLOT} and {page.SHEET}")
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200, metavar="N", help="pictures that are compared (200)")
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="turns of every setting (9)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="for 9 GB (build/benchmarks)")
    parser.add_argument("--config", type=Path, default=CONFIG, help="the large model's YAML (SD v1)")
    parser.add_argument(
        "--only", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}"
    )
    return parser.parse_args()


def about() -> str:
    instructions = " ".join(name for name in INSTRUCTIONS if name in processor_flags())
    return ", ".join(word for word in (processor(), instructions, f"torch {torch.__version__}") if word)


def seconds(options: argparse.Namespace) -> Dict[str, Any]:
    small = Small(options.prompts)
    return {"dtype": dtype_name(small.pipeline.model.dtype), "found": small.speed(options.rounds)}


def calls(options: argparse.Namespace) -> Dict[str, Any]:
    small = Small(options.prompts)
    return {"found": {setting.name: small.calls(setting.sampler) for setting in PAINTED}}


def difference(options: argparse.Namespace) -> Dict[str, Any]:
    """In float32: what rounding adds to a difference is none of a shortcut's."""
    small = Small(options.prompts, Precision.FULL)
    return {"prompts": len(small.tasks), "found": small.differences()}


def large(options: argparse.Namespace) -> Dict[str, Any]:
    measured = Large(options.config, options.folder, SIZES)
    return {"dtype": measured.dtype, "found": measured.costs(options.rounds)}


PARTS: Dict[str, Callable[[argparse.Namespace], Dict[str, Any]]] = {
    "calls": calls,
    "seconds": seconds,
    "large": large,
    "difference": difference,
}

if __name__ == "__main__":
    sys.exit(main())
