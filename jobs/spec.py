"""What a user asks for, what a cluster is like, and what is planned from both: plain frozen data, checked where built.

OmegaConf reads the annotations of `JobSpec` and `ClusterProfile`, so they are types that evaluate on Python 3.8.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Dict, Iterable, List, Optional, Pattern, Tuple

from ldm.errors import ConfigError, RequestError
from ldm.inference.spec import GenerationRequest, SamplerConfig, SamplerName, Shortcuts

REHEARSAL = "rehearsal"  # a model that paints coloured cards, without torch or weights
REHEARSAL_SIZE = 64  # px
PRECISIONS = ("full", "autocast")
DEVICES = ("auto", "cpu", "gpu", "dcu")
SAFETY_POLICIES = ("keep", "blur", "black", "drop", "off")
FORMATS = ("png", "jpeg", "webp")
OUTPUTS = ("folder", "webdataset")
POST_STEPS = ("pack", "verify", "report")
SCHEDULERS = ("local", "slurm")
OF_JOBS = (
    *("partition", "account", "qos", "gres", "python", "setup", "ld_library_path", "env", "directives", "omit"),
    *("max_submit_jobs", "max_time_min"),
)
NAME = re.compile(r"\w[\w.+-]*")
DIRECTIVE = re.compile(r"[a-z][a-z-]*")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

# These say how the work is done, not what is made: a run may go on under other values of them.
HOW = (
    *("cluster", "batch_size", "device", "cards", "max_parallel", "time_limit_min", "task_min", "seconds_per_image"),
    *("requeue", "links", "post", "mail", "webhook"),
)


@dataclass(frozen=True)
class JobSpec:
    """One job, flat: every key may stand in a job file or as key=value. None takes what the model or the file says."""

    name: Optional[str] = None  # of the run folder; None: that of the prompts file
    outputs: str = "outputs"  # where run folders are made
    cluster: str = "local"  # a profile in configs/clusters, or the path of one
    model: str = "sd-v1"
    config: Optional[str] = None
    checkpoint: Optional[str] = None
    clip: Optional[str] = None  # folder with vocab.json and merges.txt
    safety_checker: Optional[str] = None  # folder of the safety model
    safety: str = "keep"
    images_per_prompt: int = 1
    seed: int = 42  # of the first picture; the next gets one more
    negative_prompt: str = ""
    height: Optional[int] = None  # px
    width: Optional[int] = None  # px
    sampler: str = "plms"
    steps: int = 50
    guidance_scale: Optional[float] = None  # None: the model's; 7.5 for SD v1
    eta: float = 0.0
    cache_interval: int = 1  # docs/shortcuts.md has what these three cost and give
    guidance_until: float = 1.0
    merge_tokens: float = 0.0
    format: str = "png"
    quality: int = 95  # of jpeg and webp, 1 to 100
    output: str = "folder"  # or webdataset: one tar a shard
    images_per_shard: Optional[int] = None  # None: as many as make about task_min minutes
    precision: str = "autocast"
    batch_size: int = 4
    device: str = "auto"
    cards: int = 1  # per array task, one process each
    max_parallel: Optional[int] = None  # array tasks at a time
    time_limit_min: int = 120  # per array task
    task_min: int = 15  # minutes that an array task should last
    seconds_per_image: Optional[float] = None  # None: what an earlier run or `probe` measured
    requeue: bool = True
    links: Optional[int] = None  # arrays one behind the other where a job may not requeue; None: as the time needs
    post: List[str] = field(default_factory=list)  # jobs behind the last picture: pack, verify, report
    mail: Optional[str] = None  # address that Slurm writes to at the end
    webhook: Optional[str] = None  # URL that is told at the end

    def __post_init__(self) -> None:
        for name in ("images_per_prompt", "batch_size", "cards", "time_limit_min", "task_min"):
            _check_at_least_one(name, getattr(self, name))
        for name in ("images_per_shard", "max_parallel", "links"):
            _check_at_least_one(name, getattr(self, name), or_none=True)
        if self.seconds_per_image is not None and not 1e-6 <= self.seconds_per_image < math.inf:
            raise ConfigError(f"seconds_per_image must be at least 0.000001, got {self.seconds_per_image}")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"quality must be in 1..100, got {self.quality}")
        if self.name is not None and not NAME.fullmatch(self.name):
            raise ConfigError(f"name must be letters, digits and any of _ . + -, not first, got {self.name!r}")
        _check_choice("precision", self.precision, PRECISIONS)
        _check_choice("device", self.device, DEVICES)
        _check_choice("safety", self.safety, SAFETY_POLICIES)
        _check_choice("sampler", self.sampler, tuple(member.value for member in SamplerName))
        _check_choice("format", self.format, FORMATS)
        _check_choice("output", self.output, OUTPUTS)
        if self.webhook is not None and not re.match(r"https?://[^/]", self.webhook):
            raise ConfigError(f"webhook must be a URL that begins with http:// or https://, got {self.webhook!r}")
        for step in self.post:
            _check_choice("post", step, POST_STEPS)


@dataclass(frozen=True)
class ClusterProfile:
    """What a site is like: data, not code. `gres` is the resource's name without a count, such as dcu or gpu:a100."""

    scheduler: str = "local"
    partition: Optional[str] = None
    account: Optional[str] = None
    qos: Optional[str] = None
    gres: Optional[str] = None
    cards_per_node: int = 1
    cpus_per_card: int = 1
    python: Optional[str] = None  # absolute path of the interpreter in a job; None: the one that submits
    setup: List[str] = field(default_factory=list)  # shell lines, run before the work; the first that fails ends it
    env: Dict[str, str] = field(default_factory=dict)
    directives: Dict[str, str] = field(default_factory=dict)  # further #SBATCH lines by long name; "" has no value
    omit: List[str] = field(default_factory=list)  # #SBATCH lines that the site refuses, by long name
    ld_library_path: List[str] = field(default_factory=list)  # folders, in this order before what the setup leaves
    max_array_size: int = 1001  # Slurm's MaxArraySize: the highest index is one less
    max_submit_jobs: Optional[int] = None  # array tasks that one user may have in the queue
    max_time_min: Optional[int] = None  # of a job in this partition
    requeue: bool = True  # whether a job may put itself back into the queue
    price_per_card_hour: Optional[float] = None
    currency: str = ""

    def __post_init__(self) -> None:
        _check_choice("scheduler", self.scheduler, SCHEDULERS)
        for name in ("cards_per_node", "cpus_per_card", "max_array_size"):
            _check_at_least_one(name, getattr(self, name))
        for name in ("max_submit_jobs", "max_time_min"):
            _check_at_least_one(name, getattr(self, name), or_none=True)
        _check_names(
            DIRECTIVE, (*self.omit, *self.directives), "a directive is written by its long name without dashes"
        )
        _check_names(VARIABLE, self.env, "env must name variables of letters, digits and _")
        if self.price_per_card_hour is not None and self.price_per_card_hour < 0:
            raise ConfigError(f"price_per_card_hour must not be negative, got {self.price_per_card_hour}")
        idle = [name for name in OF_JOBS if getattr(self, name)] if self.scheduler == "local" else []
        if idle:
            raise ConfigError(f"{idle[0]} is for jobs of a scheduler; this profile has scheduler: local")


@dataclass(frozen=True)
class PlannedImage:
    """One picture of a plan. `file` is its path below the run folder."""

    index: int
    shard: int
    file: str
    request_id: str
    request: GenerationRequest


@dataclass(frozen=True)
class Shard:
    """The pictures that one process makes, in the order of the plan."""

    index: int
    images: Tuple[PlannedImage, ...]


@dataclass(frozen=True)
class PlanTotals:
    """What is known of a plan once all of it has been written: its identity and its size."""

    plan_id: str
    images: int
    shards: int
    images_per_shard: int


def template_request(spec: JobSpec, *, size: int, guidance_scale: float) -> GenerationRequest:
    """The request that every line of the prompts file starts from.

    `size` px is what the model was trained for, `guidance_scale` what it paints best with.
    """
    sampler, scale = SamplerName(spec.sampler), guidance_scale if spec.guidance_scale is None else spec.guidance_scale
    try:
        return GenerationRequest(
            prompt="",
            negative_prompt=spec.negative_prompt,
            seed=spec.seed,
            height=size if spec.height is None else spec.height,
            width=size if spec.width is None else spec.width,
            sampler=SamplerConfig(
                name=sampler,
                steps=spec.steps,
                guidance_scale=scale,
                eta=spec.eta,
                shortcuts=Shortcuts(spec.cache_interval, spec.guidance_until, spec.merge_tokens),
            ),
        )
    except RequestError as error:
        raise ConfigError(f"{error} (from the job's settings)") from error


def _check_at_least_one(name: str, value: Optional[int], *, or_none: bool = False) -> None:
    if value is None and or_none:
        return
    if value is None or value < 1:
        raise ConfigError(f"{name} must be at least 1, got {value}")


def _check_names(allowed: Pattern[str], names: Iterable[str], rule: str) -> None:
    for name in names:
        if not allowed.fullmatch(name):
            raise ConfigError(f"{rule}, got {name!r}")


def _check_choice(name: str, value: str, known: Tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name} must be one of {', '.join(known)}, got {value!r}")
