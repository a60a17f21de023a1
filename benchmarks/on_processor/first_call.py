"""Run a script of ours until its U-Net was called once; print the moments at which it was called and was done.

python benchmarks/on_processor/first_call.py scripts/txt2img.py --plms ...
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from on_processor.talk import ending_after  # noqa: E402

if __name__ == "__main__":
    from ldm.modules.memory import nothing_to_collect

    with nothing_to_collect():  # as where the script imports it
        from ldm.modules.diffusionmodules.openaimodel import UNetModel

    UNetModel.forward = ending_after(UNetModel.forward)  # type: ignore[assignment, method-assign]
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
