"""Find pictures that should not be shown, as the safety checker published with SD v1 does, and deal with them.

    pixels (H,W,3) -> CLIP's preprocessing -> vision tower, projection -> cosine to each concept, less its threshold

The folder is the published one (CompVis/stable-diffusion-safety-checker): `config.json`, `preprocessor_config.json` and
one of `model.safetensors`, `pytorch_model.bin`. Concepts are known by their CLIP embeddings alone. Everything is read
from that folder, and transformers, which brings the vision tower, is imported when the folder is loaded.
"""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.nn import functional

from ldm.errors import WeightsError
from ldm.inference.checkpoint import fill
from ldm.inference.contents import Contents, StoredTensor, read_contents
from ldm.inference.images import Pixels
from ldm.inference.names import listing
from ldm.inference.runtime import without_init
from ldm.inference.safety_folder import CONFIG, PREPROCESSING, find_weights
from ldm.inference.tensors import TensorReader

TABLES = ("concept_embeds", "special_care_embeds")
VISION_FIELDS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size",
    "hidden_act", "layer_norm_eps",
)  # fmt: skip
SPECIAL_CARE_ADJUSTMENT = 0.01
BLUR_SHARE = 1 / 16  # of the shorter side: no face or figure is left


class SafetyPolicy(enum.Enum):
    """What becomes of a flagged picture. With OFF nothing is checked; with KEEP it is only written down."""

    KEEP = "keep"
    BLUR = "blur"
    BLACK = "black"
    DROP = "drop"
    OFF = "off"


def apply(policy: SafetyPolicy, pixels: Pixels, *, flagged: bool) -> Optional[Pixels]:
    """The picture to write, of the same size; None where it is to be dropped."""
    if not flagged or policy in (SafetyPolicy.KEEP, SafetyPolicy.OFF):
        return pixels
    if policy is SafetyPolicy.DROP:
        return None
    if policy is SafetyPolicy.BLACK:
        return np.zeros_like(pixels)
    radius = min(pixels.shape[:2]) * BLUR_SHARE
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


class SafetyChecker:
    """Flags pictures; the same ones on any device, as it works in float32 whatever the sampler's precision."""

    def __init__(self, network: ConceptNetwork, preprocessing: Preprocessing, folder: Path) -> None:
        self._network = network.eval().requires_grad_(False)
        self._preprocessing = preprocessing
        self._folder = folder

    @classmethod
    def load(cls, folder: Path, device: Optional[torch.device] = None) -> SafetyChecker:
        """Read the published folder. WeightsError lists the files that are missing, or says what is wrong with one."""
        contents = read_contents(find_weights(Path(folder)))
        preprocessing = read_preprocessing(Path(folder) / PREPROCESSING)
        # Imported before the context below, whose idle initialisers transformers would otherwise take over for good.
        from transformers import CLIPVisionModel

        vision_config = _vision_config(Path(folder) / CONFIG)
        # transformers draws numbers for what it builds; those of a user's seed are not to be moved by that.
        with torch.random.fork_rng(devices=[]), without_init():
            network = ConceptNetwork(CLIPVisionModel(vision_config), *_table_shapes(contents))
        places = _match(network, contents)
        with TensorReader(contents) as reader:
            fill(network, places, reader, dtype=torch.float32, device=device)
        return cls(network, preprocessing, Path(folder))

    def check(self, images: Sequence[Pixels]) -> List[bool]:
        """Whether each of the pictures, (H,W,3) uint8 of any sizes, shows what it should not.

        Raises WeightsError where the weights give no number: such a checker would let everything pass.
        """
        if not images:
            return []
        device = self._network.concept_embeds.device
        batch = torch.from_numpy(np.stack([preprocess(pixels, self._preprocessing) for pixels in images]))
        # torch 1.10 warns of a dtype that autocast cannot have there, though it is to be off.
        dtype = torch.bfloat16 if device.type == "cpu" else torch.float16
        with torch.autocast(device.type, dtype=dtype, enabled=False):
            special_care, concepts = (scores.double().cpu().numpy() for scores in self._network(batch.to(device)))
        if not (np.isfinite(special_care).all() and np.isfinite(concepts).all()):
            raise WeightsError(f"the weights of the safety checker in {self._folder} give NaN; fetch them again")
        return decide(special_care, concepts)


def decide(special_care: Any, concepts: Any) -> List[bool]:
    """Scores (B,3) and (B,17), cosine less threshold -> B decisions.

    A score counts if it is above 0 when rounded to three places. One of special care makes all concepts stricter.
    """
    careful = (np.round(special_care, 3) > 0).any(axis=1, keepdims=True)
    adjusted = concepts + SPECIAL_CARE_ADJUSTMENT * careful
    return [bool(flagged) for flagged in (np.round(adjusted, 3) > 0).any(axis=1)]


@dataclass(frozen=True)
class Preprocessing:
    """How a picture is made ready for CLIP: the shorter side to `size` px, the middle `crop` (height, width) px."""

    size: int
    crop: Tuple[int, int]
    resample: int
    rescale: float
    mean: Tuple[float, ...]
    std: Tuple[float, ...]


def preprocess(pixels: Pixels, how: Preprocessing) -> Any:
    """(H,W,3) uint8 -> (3, *crop) float32, normalised by channel."""
    image = Image.fromarray(pixels)
    short = min(image.size)
    width, height = (int(how.size * side / short) for side in image.size)
    image = image.resize((width, height), resample=how.resample)
    top, left = (height - how.crop[0]) // 2, (width - how.crop[1]) // 2
    image = image.crop((left, top, left + how.crop[1], top + how.crop[0]))
    values = np.asarray(image, dtype=np.float32) * np.float32(how.rescale)
    normalised = (values - np.asarray(how.mean, dtype=np.float32)) / np.asarray(how.std, dtype=np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1))


def read_preprocessing(path: Path) -> Preprocessing:
    """The file of transformers' CLIPFeatureExtractor (sizes as numbers) or CLIPImageProcessor (sizes by name)."""
    values = _read_json(path)
    steps = ("do_resize", "do_center_crop", "do_normalize", "do_rescale")
    left_out = [name for name in steps if values.get(name) is False]
    if left_out:
        raise WeightsError(f"{path} must describe CLIP's preprocessing, found {', '.join(left_out)} false")
    try:
        size, crop = values["size"], values["crop_size"]
        return Preprocessing(
            size=int(size["shortest_edge"] if isinstance(size, Mapping) else size),
            crop=(int(crop["height"]), int(crop["width"])) if isinstance(crop, Mapping) else (int(crop), int(crop)),
            resample=int(values["resample"]),
            rescale=float(values.get("rescale_factor", 1 / 255)),
            mean=tuple(float(value) for value in values["image_mean"]),
            std=tuple(float(value) for value in values["image_std"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} does not describe CLIP's preprocessing ({error!r}); fetch it again") from error


class ConceptNetwork(nn.Module):
    """CLIP's vision tower, and the embeddings and thresholds of the concepts, of which there are `concepts` (17, D)."""

    concept_embeds: Tensor
    concept_embeds_weights: Tensor
    special_care_embeds: Tensor
    special_care_embeds_weights: Tensor

    def __init__(self, vision_model: Any, concepts: Tuple[int, int], special_care: Tuple[int, int]) -> None:
        super().__init__()
        self.vision_model = vision_model
        self.visual_projection = nn.Linear(vision_model.config.hidden_size, concepts[1], bias=False)
        for name, shape in (("concept_embeds", concepts), ("special_care_embeds", special_care)):
            self.register_buffer(name, torch.empty(shape))
            self.register_buffer(f"{name}_weights", torch.empty(shape[0]))

    def forward(self, images: Tensor) -> Tuple[Tensor, Tensor]:
        """(B,3,h,w) -> scores (B,3) of special care and (B,17) of concepts: cosine less threshold."""
        pooled = self.vision_model(pixel_values=images)[1]
        embedded = functional.normalize(self.visual_projection(pooled))
        special_care = embedded @ functional.normalize(self.special_care_embeds).t() - self.special_care_embeds_weights
        concepts = embedded @ functional.normalize(self.concept_embeds).t() - self.concept_embeds_weights
        return special_care, concepts


def _vision_config(path: Path) -> Any:
    """A transformers CLIPVisionConfig of the sizes in the file; what it leaves out has the library's default."""
    from transformers import CLIPVisionConfig

    values = _read_json(path)
    vision = values.get("vision_config") or values.get("vision_config_dict")
    if not isinstance(vision, dict):
        raise WeightsError(f"{path} must have 'vision_config' of a CLIP model, found {', '.join(values) or 'nothing'}")
    return CLIPVisionConfig(**{name: vision[name] for name in VISION_FIELDS if name in vision})


def _table_shapes(contents: Contents) -> Tuple[Tuple[int, int], Tuple[int, int]]:
    shapes = [contents.tensors[name].shape for name in TABLES if name in contents.tensors]
    if len(shapes) != len(TABLES) or any(len(shape) != 2 for shape in shapes):
        raise WeightsError(
            f"{contents.path} holds no tables {' and '.join(TABLES)}: it is another model than the safety checker; "
            "copy the file of CompVis/stable-diffusion-safety-checker"
        )
    (concepts, width), (special_care, special_width) = shapes
    return (concepts, width), (special_care, special_width)


def _match(network: nn.Module, contents: Contents) -> Dict[str, StoredTensor]:
    """The network's names with their stored tensors; `vision_model.` stands once or twice, by transformers' version."""
    wanted = {_core(name): (name, tuple(value.shape)) for name, value in network.state_dict().items()}
    have = {_core(name): stored for name, stored in contents.tensors.items()}
    for names in (wanted, have):
        for name in [name for name in names if name.endswith("position_ids")]:
            del names[name]
    both = wanted.keys() & have.keys()
    problems = [
        listing(wanted.keys() - both, "missing"),
        listing(have.keys() - both, "unexpected"),
        listing((name for name in both if have[name].shape != wanted[name][1]), "of another shape"),
    ]
    if any(problems):
        listed = "; ".join(filter(None, problems))
        raise WeightsError(f"{contents.path} does not fit {CONFIG} beside it: {listed}; fetch both again")
    return {wanted[name][0]: have[name] for name in both}


def _core(name: str) -> str:
    while name.startswith("vision_model."):
        name = name[len("vision_model.") :]
    return name


def _read_json(path: Path) -> Dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as JSON ({error}); fetch it again") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path} must hold a JSON object, found {type(values).__name__}; fetch it again")
    return values
