"""How well pictures fit their prompts, by CLIP (Radford et al. 2021), with weights from a file and nowhere else.

The score is 100 * max(cos, 0) of the embeddings of picture and prompt (CLIPScore, Hessel et al. 2021, eq. 1, with w 100
for 2.5), so it is 0 to 100, and about 25 to 35 where a picture fits; scores of one CLIP compare with no other's.
"""

from __future__ import annotations

import functools
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.pages.gallery import Score
from jobs.pages.thumbnails import small_copy
from ldm.errors import ConfigError, WeightsError
from ldm.inference.spec import SIZE_LIMIT

if TYPE_CHECKING:
    from torch import Tensor

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of what CLIP was trained on, by channel
STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = 3
PROMPTS_KEPT = 4096
SCRIPT = "import torch; torch.save(torch.jit.load('{0}', map_location='cpu').state_dict(), '{1}')"


def load_score(weights: Path, device: str = "auto") -> Score:
    """The score of CLIP with the state dict in a file.

    Raises ConfigError without the package `clip` of the extra `eval`, WeightsError for a file of anything else.
    """
    clip = _package()
    _refuse_program(weights)
    model = _build(clip, weights).float().eval()
    return _scorer(clip, model, device)


def _package() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it imports pkg_resources, which setuptools calls deprecated
            import clip
            import clip.model
    except ImportError as error:
        raise ConfigError(
            f"a CLIP score needs the package clip-anytorch, which cannot be imported here ({error}); "
            "type: pip install clip-anytorch 'setuptools<81'"
        ) from error
    return clip


def _refuse_program(weights: Path) -> None:
    """OpenAI's own files are TorchScript programs: their owner may take the weights out, they are not run here."""
    if not zipfile.is_zipfile(weights):
        return
    with zipfile.ZipFile(weights) as archive:
        is_program = any(name.endswith("/constants.pkl") for name in archive.namelist())
    if is_program:
        kept = weights.with_name(f"{weights.stem}-weights.pt")
        raise WeightsError(
            f"{weights} is a TorchScript program, which is not run here; if you trust it, take its weights out: "
            f'python -c "{SCRIPT.format(weights, kept)}", then give {kept}'
        )


def _build(clip: Any, weights: Path) -> Any:
    from ldm.inference.contents import read_contents
    from ldm.inference.tensors import TensorReader

    contents = read_contents(weights)
    with TensorReader(contents) as reader:
        state = {name: reader.read(stored).float() for name, stored in contents.tensors.items()}
    try:
        return clip.model.build_model(state)
    except (KeyError, IndexError, RuntimeError, ValueError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise WeightsError(
            f"{weights} must hold the weights of a CLIP in OpenAI's layout, and does not ({reason})"
        ) from error


def _scorer(clip: Any, model: Any, device_name: str) -> Score:
    import numpy as np
    import torch
    from torch.nn.functional import cosine_similarity

    from ldm.inference.runtime import pick_device
    from ldm.inference.safety import Preprocessing, preprocess

    device = pick_device(device_name)
    model.to(device)
    side = model.visual.input_resolution
    how = Preprocessing(side, (side, side), BICUBIC, 1 / 255, MEAN, STD)

    @functools.lru_cache(maxsize=PROMPTS_KEPT)
    def embed_prompt(prompt: str) -> Tensor:
        tokens = clip.tokenize([prompt], context_length=model.context_length, truncate=True)
        found: Tensor = model.encode_text(tokens.to(device))
        return found

    def score(data: bytes, prompt: str) -> float:
        pixels = torch.from_numpy(preprocess(np.asarray(small_copy(data, SIZE_LIMIT)), how))
        with torch.no_grad():
            picture = model.encode_image(pixels[None].to(device))
            return 100 * max(0.0, float(cosine_similarity(picture, embed_prompt(prompt))))

    return score
