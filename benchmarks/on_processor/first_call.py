"""Run a script of ours up to where the U-Net is called for the first time; print the most memory it had till then.

python benchmarks/on_processor/first_call.py scripts/txt2img.py --plms ...
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from on_processor.talk import peak_mib  # noqa: E402


def stop(*_: Any, **__: Any) -> None:
    """Say that the U-Net is called, and end without clearing up."""
    print(f"\n{peak_mib()}", flush=True)
    os._exit(0)


if __name__ == "__main__":
    from ldm.modules.memory import nothing_to_collect

    with nothing_to_collect():  # as where the script imports it
        from ldm.modules.diffusionmodules.openaimodel import UNetModel

    UNetModel.forward = stop  # type: ignore[assignment, method-assign]
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
