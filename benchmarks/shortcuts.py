"""What each shortcut gives and costs, on the small model that ships here: docs/shortcuts.md says what they are.

    python benchmarks/shortcuts.py [--prompts N] [--rounds N] [--keep FILE] [--only PART ...]

Parts: `seconds` and `calls` of a batch by every setting, in turns; `difference` of the pictures from those of PLMS at
50 steps, and how many show what was asked for. --keep puts what was measured into a file, and takes from it what --only
left out. Prints the table; where all parts are there, writes docs/images/shortcuts.svg and a sheet of pictures too.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Dict

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402 - found from any folder, without installing
from on_shortcuts import page  # noqa: E402
from on_shortcuts.settings import SETTINGS  # noqa: E402
from on_shortcuts.small import SHEET, Small  # noqa: E402

from ldm.inference.images import encode_png  # noqa: E402
from ldm.training.sheet import Labelled, labelled_sheet  # noqa: E402

IMAGES = ROOT / "docs" / "images"
PARTS = ("seconds", "calls", "difference")


def main() -> int:
    options = parse_options()
    kept: Dict[str, Any] = {}
    if options.keep is not None and options.keep.exists():
        kept = json.loads(options.keep.read_text(encoding="utf-8"))
    kept.update(measure(options))
    if options.keep is not None:
        options.keep.write_text(json.dumps(kept), encoding="utf-8")
    missing = [part for part in PARTS if part not in kept]
    if missing:
        print(f"not measured yet: {', '.join(missing)}")
        return 0
    print("\n".join(page.table(kept)))
    (IMAGES / "shortcuts.svg").write_text(page.svg(kept), encoding="utf-8")
    (IMAGES / "shortcuts.png").write_bytes(encode_png(sheet(kept)))
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200, metavar="N", help="pictures that are compared (200)")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="turns of every setting (7)")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="where measurements are kept")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}"
    )
    return parser.parse_args()


def measure(options: argparse.Namespace) -> Dict[str, Any]:
    small = Small(options.prompts)
    ways = {
        "seconds": lambda: small.speed(options.rounds),
        "calls": lambda: {setting.name: small.calls(setting.sampler) for setting in SETTINGS},
        "difference": small.differences,
    }
    return {part: ways[part]() for part in options.only}


def sheet(kept: Dict[str, Any]) -> np.ndarray:
    """A row of pictures for each setting."""
    found = kept["difference"]
    pictures = [
        Labelled(np.array(pixels, dtype=np.uint8), setting.name)
        for setting in SETTINGS
        for pixels in found[setting.name]["sheet"]
    ]
    return labelled_sheet(pictures, per_row=min(SHEET, len(pictures) // len(SETTINGS)))


if __name__ == "__main__":
    sys.exit(main())
