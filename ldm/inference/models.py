"""The models by name: where their files are looked for, and what sizes a config asks for.

Relative names count from the working directory, then from the project root, so that commands work from anywhere.
No torch in here: a login node plans with it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Sequence, Tuple

from ldm.errors import ConfigError, RequestError, WeightsError
from ldm.inference.spec import SIZE_MULTIPLE
from ldm.util import PLACEHOLDERS

PROJECT_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class ModelEntry:
    """A model that has a name. `checkpoints`: the first that is there is read. `safety_checker`: None needs none.

    `guidance_scale`: what it paints best with; None where that is the command's own default, as for SD v1.
    """

    name: str
    config: str
    checkpoints: Tuple[str, ...]
    safety_checker: Optional[str] = None
    guidance_scale: Optional[float] = None


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model, found on this machine. `name` is what is written into pictures."""

    name: str
    config: Path
    checkpoint: Path
    safety_checker: Optional[str] = None
    guidance_scale: Optional[float] = None


@dataclass(frozen=True)
class ModelShape:
    """A latent has `channels`, and sides `factor` times shorter than the picture's. Pixels of a side that the U-Net was
    trained for: `size`; that the first stage was: `first_stage_size`. `tokenizer`: the folder that some people name as
    `version` of the text encoder.
    """

    channels: int
    factor: int
    size: int
    first_stage_size: int
    tokenizer: Optional[str] = None

    @property
    def size_multiple(self) -> int:
        """Sides of a picture are multiples of this many pixels."""
        return max(self.factor, SIZE_MULTIPLE)


SAFETY_CHECKER = "models/stable-diffusion-safety-checker"

SD_V1 = ModelEntry(
    name="sd-v1",
    config="configs/stable-diffusion/v1-inference.yaml",
    checkpoints=(
        "models/ldm/stable-diffusion-v1/model.safetensors",
        "models/ldm/stable-diffusion-v1/model.ckpt",
        "models/stable-diffusion-v-1-4-original/sd-v1-4.ckpt",
    ),
    safety_checker=SAFETY_CHECKER,
)
# Trained on pictures of emoji alone, so there is nothing for a checker to find.
EMOJI_V1 = ModelEntry(
    name="emoji-v1",
    config="configs/emoji/v1.yaml",
    checkpoints=("models/emoji-v1/model.safetensors",),
    guidance_scale=3.0,
)
LAION_400M = ModelEntry(
    name="laion400m",
    config="configs/latent-diffusion/txt2img-1p4B-eval.yaml",
    checkpoints=("models/ldm/text2img-large/model.ckpt",),
    safety_checker=SAFETY_CHECKER,
)

MODELS = {entry.name: entry for entry in (SD_V1, EMOJI_V1)}
SHIPPED = EMOJI_V1


def entry_named(name: str) -> ModelEntry:
    """The model of this name; RequestError names those that there are."""
    if name not in MODELS:
        raise RequestError(
            f"model must be one of {', '.join(MODELS)}, got {name!r}; "
            "another model is given by its files, config and checkpoint"
        )
    return MODELS[name]


def find_files(entry: ModelEntry, *, config: Optional[str] = None, checkpoint: Optional[str] = None) -> ModelFiles:
    """The files of `entry` on this machine, `config` and `checkpoint` taking the place of its own.

    Raises ConfigError or WeightsError, which say where was looked and what to do.
    """
    found_config = find_file([config or entry.config])
    if found_config is None:
        raise ConfigError(
            f"no config of {entry.name}: looked for {looked_for([config or entry.config])}; give --config FILE"
        )
    wanted = [checkpoint] if checkpoint else list(entry.checkpoints)
    found = find_file(wanted)
    if found is None:
        raise WeightsError(f"no weights of {entry.name}: looked for {looked_for(wanted)}; {_remedy(entry)}")
    name = Path(checkpoint).stem if checkpoint else entry.name
    return ModelFiles(
        name=name,
        config=found_config,
        checkpoint=found,
        safety_checker=entry.safety_checker,
        guidance_scale=entry.guidance_scale,
    )


def find_file(names: Sequence[str], *, folder: bool = False) -> Optional[Path]:
    """The first of `names` that is there; one below the working directory stays relative, as it was typed."""
    for name in names:
        typed = Path(os.path.expanduser(name))
        for path in (typed, PROJECT_ROOT / typed):
            try:
                # A link that leads nowhere counts as found: who opens it can say so.
                if path.is_dir() if folder else path.is_file() or path.is_symlink():
                    return path
            except OSError as error:
                raise WeightsError(f"cannot look at {path}: {error.strerror}; see who may enter its folder") from error
    return None


def looked_for(names: Sequence[str]) -> str:
    """The places of `find_file`, for an error."""
    roots = dict.fromkeys([str(Path.cwd()), str(PROJECT_ROOT)])
    return f"{' and '.join(names)} in {' and in '.join(roots)}"


def read_shape(config: Path) -> ModelShape:
    """What the model of this YAML works on; ConfigError where the YAML does not say."""
    params = _subtree(_load_yaml(config), "model.params", config)
    words = params.get("cond_stage_config") if isinstance(params, dict) else None
    if words in PLACEHOLDERS:
        raise ConfigError(
            f"{config}: cond_stage_config must be a text encoder, for pictures are made from prompts; got {words!r}"
        )
    first_stage = _subtree(params, "first_stage_config.params.ddconfig", config)
    levels = _subtree(first_stage, "ch_mult", config)
    if not isinstance(levels, list):
        raise ConfigError(f"{config}: ch_mult must be a list, got {levels!r}")
    factor = 2 ** (len(levels) - 1)
    return ModelShape(
        channels=_number(params, "channels", config),
        factor=factor,
        size=_number(params, "image_size", config) * factor,
        first_stage_size=_number(first_stage, "resolution", config),
        tokenizer=_tokenizer(params),
    )


def _tokenizer(params: Any) -> Optional[str]:
    """What the text encoder names; None where it names none."""
    for key in ("cond_stage_config", "params", "version"):
        params = params.get(key) if isinstance(params, dict) else None
    return None if params is None else str(params)


def _load_yaml(path: Path) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        return OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} must be a YAML file: {reason}") from error


def _number(node: Any, key: str, path: Path) -> int:
    """A whole number above 0; a square may be written as two."""
    value = _subtree(node, key, path)
    first = value[0] if isinstance(value, list) and len(value) == 2 and value[0] == value[1] else value
    if type(first) is not int or first < 1:
        raise ConfigError(f"{path}: {key} must be a whole number above 0, got {value!r}")
    return first


def _subtree(node: Any, dotted: str, path: Path) -> Any:
    for key in dotted.split("."):
        node = node.get(key) if isinstance(node, dict) else None
        if node is None:
            raise ConfigError(f"{path} must have the key {key!r} of {dotted}; see {SD_V1.config}")
    return node


def _remedy(entry: ModelEntry) -> str:
    if entry is SHIPPED:
        return f"they come with the project: git checkout models/{entry.name}, or name others with --ckpt FILE"
    return f"put the file there, name another with --ckpt FILE, or take the model that is here: --model {SHIPPED.name}"
