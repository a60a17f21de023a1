"""The published folder of the safety checker (CompVis/stable-diffusion-safety-checker), looked at before the work.

Without torch: a missing file or a Git LFS pointer is said before a model is loaded or a job is queued.
"""

from __future__ import annotations

from pathlib import Path
from typing import List

from ldm.errors import WeightsError
from ldm.inference.weightfile import recognise

CONFIG, PREPROCESSING = "config.json", "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def find_weights(folder: Path) -> Path:
    """The file of weights in the folder: the first that holds some. WeightsError lists what is missing or wrong."""
    missing = [name for name in (CONFIG, PREPROCESSING) if not (folder / name).is_file()]
    there = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not there:
        missing.append(" or ".join(WEIGHTS))
    if missing:
        raise WeightsError(
            f"the safety checker needs {CONFIG}, {PREPROCESSING} and {' or '.join(WEIGHTS)} of "
            f"CompVis/stable-diffusion-safety-checker in {folder.absolute()}; not there: {', '.join(missing)}; "
            "copy them, or name their folder with --safety-checker FOLDER"
        )
    problems: List[WeightsError] = []
    for path in there:
        try:
            recognise(path)
            return path
        except WeightsError as error:
            problems.append(error)
    raise problems[0]
