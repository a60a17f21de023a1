"""The real thing behind the worker's `generate`: the planned model, loaded once. The only module of jobs with torch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, List, Optional, Sequence, Tuple

from jobs.rundir import RunInfo, RunModel
from jobs.spec import JobSpec
from jobs.worker import Generate, Picture
from ldm.errors import WeightsError
from ldm.inference.files import sha256_of
from ldm.inference.infotext import describe, format_infotext
from ldm.inference.spec import GenerationRequest
from ldm.inference.weightfile import MODEL_HASH_DIGITS

if TYPE_CHECKING:
    from ldm.inference.censor import Censor
    from ldm.inference.pipeline import GeneratedImage

log = logging.getLogger(__name__)


def load(info: RunInfo, spec: JobSpec) -> Tuple[Generate, str]:
    """What makes the pictures of this run, and the name of the device that it does it on."""
    from ldm.inference.pipeline import Pipeline
    from ldm.inference.runtime import Precision, describe_device, visible_cards

    model = info.model
    check_unchanged(model)
    pipeline = Pipeline.load(
        Path(model.config),
        Path(model.checkpoint),
        device=spec.device,
        precision=Precision(spec.precision),
        clip=model.clip,
    ).with_censor(_censor(model, spec))
    device = describe_device(pipeline.model.device)
    log.info("on %s, %d cards seen", device, visible_cards())

    def generate(requests: Sequence[GenerationRequest]) -> List[Picture]:
        return [to_picture(image, model) for image in pipeline.generate(requests)]

    return generate, device


def check_unchanged(model: RunModel) -> None:
    """Raise WeightsError if config or checkpoint are no longer what was planned; a checkpoint is told by its size."""
    try:
        size = Path(model.checkpoint).stat().st_size
        config_sha256 = sha256_of(Path(model.config))
    except OSError as error:
        raise WeightsError(f"cannot read {error.filename}, which the run was planned with: {error.strerror}") from error
    if size != model.checkpoint_bytes:
        raise WeightsError(
            f"{model.checkpoint} has {size} bytes, the run was planned with {model.checkpoint_bytes}; submit it anew"
        )
    if config_sha256 != model.config_sha256:
        raise WeightsError(f"{model.config} is not as it was when the run was planned; submit it anew")


def to_picture(image: GeneratedImage, model: RunModel) -> Picture:
    """The PNG of a picture with its parameters inside; no file for one that the safety policy dropped."""
    from ldm.inference.images import encode_png

    if image.pixels is None:
        return Picture(data=None, flagged=image.flagged, seconds=image.seconds)
    extra = {"Model hash": model.checkpoint_sha256[:MODEL_HASH_DIGITS], "Model": model.name}
    text = format_infotext(describe(image.request, extra))
    return Picture(data=encode_png(image.pixels, text), flagged=image.flagged, seconds=image.seconds)


def _censor(model: RunModel, spec: JobSpec) -> Optional[Censor]:
    if model.safety_checker is None:
        return None
    from ldm.inference.censor import Censor
    from ldm.inference.safety import SafetyPolicy

    return Censor(Path(model.safety_checker), SafetyPolicy(spec.safety))
