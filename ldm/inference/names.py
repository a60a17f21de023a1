"""Which stored tensor belongs to which name of a model.

State-dict names are the file format of Stable Diffusion v1. Files differ in what they have beside the network: copies
averaged over training (EMA), the tables of the noise schedule, what the trainer left. This is settled here by name;
then every tensor that the model has must be there, none may be left over, and each must have the model's shape.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Iterable, Mapping

from ldm.errors import WeightsError
from ldm.inference.contents import Contents, StoredTensor
from ldm.inference.weightfile import UseEma, printable
from ldm.models.diffusion.ddpm import SCHEDULE_BUFFERS

SHOWN = 8  # names of each kind in one error
SCHEDULE = frozenset(SCHEDULE_BUFFERS)
POSITION_IDS = ".position_ids"
EMA_PREFIX, NETWORK_PREFIX = "model_ema.", "model."
# What the trainer leaves and generating never uses.
LEFTOVERS = (
    EMA_PREFIX, "first_stage_model.loss.", "loss.", "lvlb_weights", "logvar", "optimizer",
    "cond_stage_model.logit_scale", "cond_stage_model.text_projection",
    "cond_stage_model.transformer.logit_scale", "cond_stage_model.transformer.text_projection",
)  # fmt: skip
# transformers 5 names the parts of a CLIP text model without the level that SD v1 files have.
SHORT_TEXT_NAME = re.compile(r"^(cond_stage_model\.transformer\.)(?=embeddings\.|encoder\.|final_layer_norm\.)")
OTHER_MODELS = (
    ("conditioner.embedders.", "Stable Diffusion XL"),
    ("cond_stage_model.model.", "Stable Diffusion 2"),
    ("model.diffusion_model.joint_blocks.", "Stable Diffusion 3"),
    ("double_blocks.", "Flux"),
    ("control_model.", "a ControlNet"),
    ("lora_", "a LoRA"),
    ("down_blocks.", "one part of a diffusers folder"),
    ("text_model.", "a CLIP text encoder alone"),
)


@dataclass(frozen=True)
class Match:
    """For each name of the model that the file fills, where its tensor lies; the rest the model computes itself."""

    tensors: Mapping[str, StoredTensor]
    has_ema: bool
    uses_ema: bool
    schedule_from_file: bool
    left_aside: int


def match_names(wanted: Mapping[str, tuple[int, ...]], contents: Contents, *, use_ema: UseEma, config: str) -> Match:
    """Fill the model's names, given with their shapes, from a file's.

    Raises one WeightsError that lists up to eight missing, unexpected and wrongly shaped tensors each.
    """
    have = _canonical(contents)
    computed = {name for name in wanted if name in SCHEDULE or name.endswith(POSITION_IDS)}
    schedule = computed & SCHEDULE
    keeps_schedule = bool(schedule) and all(name in have and _is_exact(have[name]) for name in schedule)
    ema = _ema_names(wanted, have)
    uses_ema = _choose_ema(use_ema, ema, contents)
    chosen = {name: have[name] for name in wanted if name in have and (name not in computed or keeps_schedule)}
    chosen = {name: stored for name, stored in chosen.items() if not name.endswith(POSITION_IDS)}
    if uses_ema:
        chosen.update({name: have[copy] for name, copy in ema.items()})
    known = {name for name in have if name in wanted or name in SCHEDULE or is_leftover(name)}
    problems = [
        listing(wanted.keys() - chosen.keys() - computed, "missing"),
        listing(have.keys() - known, "unexpected"),
        listing(_wrong_shapes(wanted, chosen), "of another shape"),
    ]
    if any(problems):
        raise WeightsError(
            f"{contents.path} does not fit {config}: {'; '.join(filter(None, problems))}"
            f"{_likeness(have)}; give the config that it was trained with"
        )
    return Match(
        chosen, any(name.startswith(EMA_PREFIX) for name in have), uses_ema, keeps_schedule, len(have) - len(chosen)
    )


def canonical_name(name: str) -> str:
    """The name that an SD v1 file has for what some tools write otherwise."""
    if name.startswith("state_dict."):
        name = name[len("state_dict.") :]
    return SHORT_TEXT_NAME.sub(r"\1text_model.", name)


def _canonical(contents: Contents) -> dict[str, StoredTensor]:
    have = {canonical_name(name): stored for name, stored in contents.tensors.items()}
    if len(have) != len(contents.tensors):
        twice = sorted(name for name, count in Counter(map(canonical_name, contents.tensors)).items() if count > 1)
        raise WeightsError(
            f"{contents.path} has some tensors under two names, among them {printable(twice[0])}; which to take is "
            "not known, so give another file of the model"
        )
    return have


def is_leftover(name: str) -> bool:
    """Whether a tensor is known to be of no use for generating."""
    return name.endswith(POSITION_IDS) or name.startswith(LEFTOVERS)


def ema_name(name: str) -> str:
    """Where a file keeps the averaged copy of a network tensor: without the dots, which a buffer name must not have."""
    return EMA_PREFIX + name[len(NETWORK_PREFIX) :].replace(".", "")


def _is_exact(stored: StoredTensor) -> bool:
    # A table of the schedule rounded to half precision is worse than the one computed from the config.
    return stored.dtype in ("float32", "float64")


def _ema_names(wanted: Iterable[str], have: Mapping[str, StoredTensor]) -> dict[str, str]:
    """The network's names with their averaged copies; empty unless every one has a copy."""
    names = {name: ema_name(name) for name in wanted if name.startswith(NETWORK_PREFIX)}
    return names if all(copy in have for copy in names.values()) else {}


def _choose_ema(use_ema: UseEma, ema: Mapping[str, str], contents: Contents) -> bool:
    if use_ema is UseEma.YES and not ema:
        raise WeightsError(
            f"{contents.path} has no whole set of averaged weights (model_ema.*); "
            "take the plain ones with use_ema 'auto' or 'no'"
        )
    return bool(ema) and use_ema is not UseEma.NO


def _wrong_shapes(wanted: Mapping[str, tuple[int, ...]], chosen: Mapping[str, StoredTensor]) -> list[str]:
    return [
        f"{name} ({_shape(stored.shape)}, the model has {_shape(wanted[name])})"
        for name, stored in chosen.items()
        if stored.shape != wanted[name]
    ]


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in shape) or "a number"


def listing(names: Iterable[str], what: str) -> str:
    """How many tensors there are of a kind, and the first eight: '9 missing: a, b, ...'; empty where there are none."""
    names = sorted(names)
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} {what}: {', '.join(map(printable, names[:SHOWN]))}{more}"


def _likeness(have: Iterable[str]) -> str:
    names = list(have)
    for prefix, model in OTHER_MODELS:
        if any(name.startswith(prefix) for name in names):
            return f"; by its names it is {model}"
    return ""
