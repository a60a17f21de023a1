"""The real thing behind the worker's `generate`: the planned model, loaded once. The only module of jobs with torch."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Iterator, List, Optional, Sequence, Union

from jobs.rundir import RunInfo, RunModel
from jobs.spec import JobSpec
from jobs.storage.formats import parameters_text
from jobs.worker.measuring import Findings, try_sizes
from jobs.worker.worker import Generate, Loaded, Picture
from ldm.errors import GenerationError, NoMemoryError, WeightsError
from ldm.inference.digests import remembered_sha256, sha256_of, state_of
from ldm.inference.spec import GenerationRequest
from ldm.inference.weightfile import naming_the_file

if TYPE_CHECKING:
    from ldm.inference.censor import Censor
    from ldm.inference.images import Pixels
    from ldm.inference.pipeline import Attempted, GeneratedImage, Pipeline

log = logging.getLogger(__name__)


def load(info: RunInfo, spec: JobSpec) -> Loaded:
    """What makes the pictures of this run."""
    from ldm.inference.runtime import visible_cards

    with settled(info.model):
        pipeline = load_pipeline(info, spec).with_censor(_censor(info.model, spec))
    device = device_of(pipeline)
    log.info("on %s, %d cards seen", device, visible_cards())
    return Loaded(generate_with(pipeline, info), device, functools.partial(measure, pipeline))


def generate_with(pipeline: Pipeline, info: RunInfo) -> Generate:
    """What makes the pictures of a run with a pipeline that is loaded."""

    def generate(requests: Sequence[GenerationRequest]) -> List[Union[Picture, GenerationError]]:
        with naming_lack_of_memory(len(requests), pipeline.spare_memory):
            attempted = pipeline.attempt(requests)
        return [picture_or_second_try(*each, pipeline, info) for each in zip(requests, attempted)]

    return generate


def load_pipeline(info: RunInfo, spec: JobSpec) -> Pipeline:
    """The model of this run on the job's device, without a checker of pictures."""
    from ldm.inference.pipeline import Pipeline
    from ldm.inference.runtime import Precision

    model = info.model
    check_unchanged(model)
    return Pipeline.load(
        Path(model.config),
        Path(model.checkpoint),
        device=spec.device,
        precision=Precision(spec.precision),
        clip=model.clip,
    )


def device_of(pipeline: Pipeline) -> str:
    """What the bytes of a picture may depend on: the device and the dtype that it computes in."""
    from ldm.inference.runtime import describe_device, dtype_name

    return f"{describe_device(pipeline.model.device)}, {dtype_name(pipeline.model.dtype)}"


def measure(pipeline: Pipeline, request: GenerationRequest) -> Findings:
    """How quick the pipeline's device is at each number of pictures like this one."""
    from ldm.inference.runtime import graphs_of, memory_of

    place = pipeline.model.device
    graphs = graphs_of(place)
    tried, most = try_sizes(
        functools.partial(pipeline.run_network, request),
        (lambda: None) if graphs is None else graphs.wait,
        memory_of(place),
        begin=pipeline.drop_recordings,
        calls_to_settle=pipeline.calls_to_settle,
    )
    return Findings(device_of(pipeline), request.height, request.width, tuple(tried), most)


@contextlib.contextmanager
def naming_lack_of_memory(pictures: int, release: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Turn torch's lack of memory for so many pictures into a NoMemoryError, and give back what can be.

    `release` gives back what more there is.
    """
    from ldm.inference.runtime import is_out_of_memory, release_memory

    try:
        yield
        return
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        said = str(error).strip().splitlines() or ["out of memory"]
    release()
    release_memory()  # behind the except clause: the error holds the frames that hold the tensors
    advice = "smaller pictures, or a card with more memory, are needed" if pictures == 1 else "fewer at once may fit"
    raise NoMemoryError(f"{said[0]}; {advice}")


def picture_or_second_try(
    request: GenerationRequest, attempted: Attempted, pipeline: Pipeline, info: RunInfo
) -> Union[Picture, GenerationError]:
    """The picture; one that overflowed or came out blank in half precision is made once more in float32."""
    if not isinstance(attempted, GenerationError):
        return to_picture(attempted, info)
    if pipeline.in_full_precision:
        return attempted
    log.warning("%s; trying float32", attempted)
    try:
        with naming_lack_of_memory(1), pipeline.in_float32():
            (again,) = pipeline.attempt([request])
    except NoMemoryError as error:
        return GenerationError(f"{attempted}; there is no memory to try it in float32: {error}")
    if isinstance(again, GenerationError):
        return GenerationError(f"{attempted}; in float32 too: {again}")
    return dataclasses.replace(to_picture(again, info), note=f"made in float32: {attempted}")


def check_unchanged(model: RunModel) -> None:
    """Raise WeightsError if config or checkpoint are no longer what was planned: before loading, by the size alone."""
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


@contextlib.contextmanager
def settled(model: RunModel) -> Iterator[None]:
    """Around the reading of the weights: WeightsError if they are others of the same size, or replaced meanwhile.

    Their hash is remembered from the planning; where it is not, the file is read once more for it.
    """
    checkpoint = Path(model.checkpoint)
    with naming_the_file(checkpoint):
        before = state_of(checkpoint)
    yield
    with naming_the_file(checkpoint):
        found = remembered_sha256(checkpoint)
        if state_of(checkpoint) != before:
            raise WeightsError(f"{checkpoint} was replaced while it was read; let the copy to it end, then start again")
    if found != model.checkpoint_sha256:
        raise WeightsError(
            f"{model.checkpoint} is as large as the file that the run was planned with, but another: its sha256 begins "
            f"with {found[:12]}, that one's with {model.checkpoint_sha256[:12]}; put that file back, or submit anew"
        )


def to_picture(image: GeneratedImage, info: RunInfo) -> Picture:
    """The file of a picture with its parameters inside; none for one that the safety policy dropped."""
    encode = None if image.pixels is None else functools.partial(_encode, image.request, image.pixels, info)
    return Picture(encode=encode, flagged=image.flagged, seconds=image.seconds)


def _encode(request: GenerationRequest, pixels: Pixels, info: RunInfo) -> bytes:
    from ldm.inference.images import encode

    text = parameters_text(request, model=info.model.name, checkpoint_sha256=info.model.checkpoint_sha256)
    return encode(pixels, info.settings.spec.format, text, quality=info.settings.spec.quality)


def _censor(model: RunModel, spec: JobSpec) -> Optional[Censor]:
    if model.safety_checker is None:
        return None
    from ldm.inference.censor import Censor
    from ldm.inference.safety import SafetyPolicy

    return Censor(Path(model.safety_checker), SafetyPolicy(spec.safety))
