"""What one picture is asked to be, and what is written down about it once it is made.

Plain frozen data without torch: the control plane on a login node, the worker in a job and the scripts share it.
Values are checked where they are built and nowhere else. Sizes are pixels; a seed feeds one CPU generator per picture.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import json
import math
from dataclasses import dataclass, field
from json.encoder import encode_basestring, encode_basestring_ascii
from typing import Any, Callable, Dict, Optional, Tuple

from ldm.errors import RequestError

SIZE_MULTIPLE = 8  # the first stage of SD v1 shrinks each side by 8
SIZE_LIMIT = 4096
SEED_LIMIT = 2**32

CACHE_INTERVALS = (1, 5)  # beyond, little is left to gain
MOST_MERGED = 0.75  # of the tokens: one in four is merged into
LCM_STEPS = 50  # of the schedule that consistency models are taught (Luo et al. 2023: 1000 timesteps, every 20th)

REALS = ("guidance_scale", "eta", "guidance_until", "merge_tokens")  # of a sampler's fields
PARTS_KEPT = 1024  # texts of samplers and init images, of which the many requests of a plan have few


class SamplerName(enum.Enum):
    """The samplers, named as the original's options name them."""

    DDIM = "ddim"
    PLMS = "plms"
    DPM_SOLVER = "dpm_solver"
    LCM = "lcm"


class Spacing(enum.Enum):
    """How the sampling steps are spread over the training timesteps (DDIM appendix D.2)."""

    UNIFORM = "uniform"
    QUAD = "quad"


@dataclass(frozen=True)
class Shortcuts:
    """Work that is left out at the price of another picture; none by default.

    `cache_interval`: the deep blocks of the network are run in one step of so many, 1 in every one. `guidance_until`:
    the share of the steps, the noisiest first, that are guided. `merge_tokens`: the share of the places of a large map
    that are merged with a place like them before they attend to each other.
    """

    cache_interval: int = 1
    guidance_until: float = 1.0
    merge_tokens: float = 0.0

    def __post_init__(self) -> None:
        least, most = CACHE_INTERVALS
        if not least <= self.cache_interval <= most:
            raise RequestError(f"cache_interval must be in {least}..{most} (1 = off), got {self.cache_interval}")
        if not 0.0 < self.guidance_until <= 1.0:
            raise RequestError(
                f"guidance_until must be above 0 and at most 1 (1.0 = every step), got {self.guidance_until}; "
                "guidance_scale=1.0 guides no step"
            )
        if not 0.0 <= self.merge_tokens <= MOST_MERGED:
            raise RequestError(f"merge_tokens must be in 0..{MOST_MERGED} (0 = off), got {self.merge_tokens}")


NO_SHORTCUTS = Shortcuts()


@dataclass(frozen=True)
class SamplerConfig:
    """How the noise is taken away. `guidance_scale` 1.0 means no guidance; `eta` is DDIM's share of fresh noise."""

    name: SamplerName = SamplerName.PLMS
    steps: int = 50
    guidance_scale: float = 7.5
    eta: float = 0.0
    schedule: Spacing = Spacing.UNIFORM
    shortcuts: Shortcuts = NO_SHORTCUTS

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 1000:
            raise RequestError(f"steps must be in 1..1000, got {self.steps}")
        if self.name is SamplerName.LCM and self.steps > LCM_STEPS:
            raise RequestError(f"steps must be in 1..{LCM_STEPS} for sampler 'lcm', got {self.steps}; 4 to 8 are usual")
        if not 0.0 <= self.guidance_scale <= 100.0:
            raise RequestError(f"guidance_scale must be in 0..100 (1.0 = off), got {self.guidance_scale}")
        if not 0.0 <= self.eta <= 1.0:
            raise RequestError(f"eta must be in 0..1, got {self.eta}")
        if self.eta and self.name is not SamplerName.DDIM:
            raise RequestError(f"eta={self.eta} needs sampler 'ddim'; {self.name.value!r} takes none")
        if self.schedule is not Spacing.UNIFORM and self.name in (SamplerName.DPM_SOLVER, SamplerName.LCM):
            raise RequestError(
                f"schedule={self.schedule.value!r} needs sampler 'ddim' or 'plms'; "
                f"{self.name.value!r} has steps of its own"
            )
        if self.shortcuts.guidance_until < 1.0 and self.guidance_scale == 1.0:
            raise RequestError(
                f"guidance_until={self.shortcuts.guidance_until} needs guidance; guidance_scale 1.0 is none"
            )


@dataclass(frozen=True)
class InitImage:
    """The picture that img2img starts from; `strength` 1.0 starts from the noisiest step, little of it remains."""

    path: str
    sha256: str
    strength: float = 0.75

    def __post_init__(self) -> None:
        if not 0.0 < self.strength <= 1.0:
            raise RequestError(f"strength must be above 0 and at most 1, got {self.strength}")

    def steps_of(self, steps: int) -> int:
        """How many of a sampler's steps are taken from here, as the original counts them."""
        taken = int(self.strength * steps)
        if taken < 1:
            raise RequestError(
                f"strength {self.strength} of {steps} steps is no step at all; "
                f"it must be at least {math.ceil(1000 / steps) / 1000:.3g} with so many"
            )
        return taken


@dataclass(frozen=True)
class GenerationRequest:
    """One picture, wholly described: the same request gives the same picture, in whatever batch or shard it is made."""

    prompt: str
    negative_prompt: str = ""
    seed: int = 42
    height: int = 512
    width: int = 512
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    init: Optional[InitImage] = None

    def __post_init__(self) -> None:
        if not 0 <= self.seed < SEED_LIMIT:
            raise RequestError(f"seed must be in 0..{SEED_LIMIT - 1}, got {self.seed}")
        check_size("height", self.height)
        check_size("width", self.width)
        if self.init is not None:
            self.init.steps_of(self.sampler.steps)

    @property
    def batch_key(self) -> Tuple[Any, ...]:
        """Equal for requests that can be sampled together: those of one size, sampler and strength."""
        return self.height, self.width, self.sampler, None if self.init is None else self.init.strength

    @property
    def request_id(self) -> str:
        """16 hex digits that change when, and only when, a field changes; an init image counts by its content."""
        canonical = _text(self, _init_text(self.init, with_path=False), encode_basestring_ascii)
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:16]


@dataclass(frozen=True)
class ImageRecord:
    """What a worker writes down about one planned image once its file is whole.

    `seconds` is its share of the batch. `note` says what was unusual about it, such as a second try in float32.
    """

    index: int
    request_id: str
    file: str
    sha256: str
    prompt: str
    seed: int
    flagged: bool
    seconds: float
    device: str
    worker: str
    note: str = ""


def check_size(name: str, value: int, multiple: int = SIZE_MULTIPLE) -> None:
    """Refuse a side in pixels that the model cannot make, and name the nearest one that it can."""
    if value % multiple or not multiple <= value <= SIZE_LIMIT:
        nearest = min(max(round(value / multiple), 1) * multiple, SIZE_LIMIT)
        raise RequestError(
            f"{name} must be a multiple of {multiple} px, at most {SIZE_LIMIT}, got {value}; try {nearest}"
        )


def to_json(request: GenerationRequest) -> Dict[str, Any]:
    """Plain values that json can write; `from_json` reads them back to an equal request."""
    init = request.init
    return {
        **vars(request),
        "sampler": _sampler_values(request.sampler),
        "init": None if init is None else dict(vars(init)),
    }


def to_text(request: GenerationRequest) -> str:
    """What json writes of `to_json(request)` with sorted keys, three times as fast: a plan has a million of them."""
    return _text(request, _init_text(request.init, with_path=True), encode_basestring)


def from_json(values: Dict[str, Any]) -> GenerationRequest:
    """The request that `to_json` wrote."""
    values = dict(values)
    sampler = dict(values.pop("sampler"))
    sampler["name"] = SamplerName(sampler["name"])
    sampler["schedule"] = Spacing(sampler["schedule"])
    shortcuts = {name: sampler.pop(name) for name in vars(NO_SHORTCUTS) if name in sampler}
    init = values.pop("init")
    return GenerationRequest(
        sampler=SamplerConfig(**sampler, shortcuts=Shortcuts(**shortcuts)),
        init=None if init is None else InitImage(**init),
        **values,
    )


def _text(request: GenerationRequest, init: str, quoted: Callable[[str], str]) -> str:
    return (
        f'{{"height":{request.height:d},"init":{init},"negative_prompt":{quoted(request.negative_prompt)},'
        f'"prompt":{quoted(request.prompt)},"sampler":{_sampler_text(request.sampler)},"seed":{request.seed:d},'
        f'"width":{request.width:d}}}'
    )


@functools.lru_cache(maxsize=PARTS_KEPT)
def _sampler_text(sampler: SamplerConfig) -> str:
    """One text for equal samplers, whichever was asked for first: 7, 7.0 and -0.0, 0.0 are equal."""
    return _dumps({name: value + 0.0 if name in REALS else value for name, value in _sampler_values(sampler).items()})


@functools.lru_cache(maxsize=PARTS_KEPT)
def _init_text(init: Optional[InitImage], *, with_path: bool) -> str:
    if init is None:
        return "null"
    values = {**vars(init), "strength": init.strength + 0.0}
    return _dumps({name: value for name, value in values.items() if with_path or name != "path"})


def _sampler_values(sampler: SamplerConfig) -> Dict[str, Any]:
    """The fields, and those of the shortcuts that are taken: what takes none is written as before there were any."""
    usual = vars(NO_SHORTCUTS)
    taken = {name: value for name, value in vars(sampler.shortcuts).items() if value != usual[name]}
    values = {**vars(sampler), "name": sampler.name.value, "schedule": sampler.schedule.value, **taken}
    del values["shortcuts"]
    return values


def _dumps(values: Dict[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
