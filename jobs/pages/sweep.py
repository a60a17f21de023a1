"""Along which fields a run varies, and the two of them whose grid shows most of it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple, Union

from ldm.inference.spec import GenerationRequest, to_json

Value = Union[str, int, float]

# In this order they are offered; of two grids that show as much, the one of the earlier fields is taken.
LABELS = {
    "prompt": "Prompt",
    "steps": "Steps",
    "guidance_scale": "Guidance scale",
    "sampler": "Sampler",
    "schedule": "Spacing",
    "eta": "Eta",
    "cache_interval": "Cache interval",
    "guidance_until": "Guidance until",
    "merge_tokens": "Merged tokens",
    "strength": "Strength",
    "size": "Size",
    "negative_prompt": "Negative prompt",
    "init": "Init image",
    "seed": "Seed",
    "take": "Picture",
}
MOST_COLUMNS = 60
LEAST_FILLED = 0.6  # of a grid's cells, for it to be shown at first


@dataclass(frozen=True)
class Sweep:
    """The fields that vary, and those of the first grid's rows and columns."""

    fields: Tuple[str, ...]
    rows: str
    columns: str


def describe_all(requests: Sequence[GenerationRequest]) -> List[Dict[str, Value]]:
    """The fields of each request by name. `take` counts pictures that differ in nothing but their seed, from 1."""
    found = []
    taken: Dict[Tuple[Value, ...], int] = {}
    for request in requests:
        values = _fields(request)
        alike = tuple(value for name, value in values.items() if name != "seed")
        taken[alike] = taken.get(alike, 0) + 1
        found.append({**values, "take": taken[alike]})
    return found


def find_sweep(described: Sequence[Dict[str, Value]]) -> Optional[Sweep]:
    """The grid with most filled cells, with the prompts as its rows if they vary; None where no two fields make one
    that is mostly full.
    """
    counts = {name: len({values[name] for values in described}) for name in LABELS} if described else {}
    fields = tuple(name for name in LABELS if counts.get(name, 0) > 1)
    best, rank = None, (False, 0)
    for rows, columns in itertools.permutations(fields, 2):
        filled = len({(values[rows], values[columns]) for values in described})
        is_full = filled >= LEAST_FILLED * counts[rows] * counts[columns] and counts[columns] <= MOST_COLUMNS
        if is_full and (rows == "prompt", filled) > rank:
            best, rank = Sweep(fields, rows, columns), (rows == "prompt", filled)
    return best


def _fields(request: GenerationRequest) -> Dict[str, Value]:
    values = to_json(request)
    sampler, init = values["sampler"], request.init
    return {
        "prompt": request.prompt,
        "steps": request.sampler.steps,
        "guidance_scale": request.sampler.guidance_scale,
        "sampler": sampler["name"],
        "schedule": sampler["schedule"],
        "eta": request.sampler.eta,
        **vars(request.sampler.shortcuts),
        "strength": init.strength if init else "",
        "size": f"{request.width} x {request.height}",
        "negative_prompt": request.negative_prompt,
        "init": init.path if init else "",
        "seed": request.seed,
    }
