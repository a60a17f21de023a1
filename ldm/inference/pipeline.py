"""From requests to pictures: a model on its device, with what turns words, pictures and latents into each other.

Each picture's noise comes from its own seed, drawn on the CPU in float32, so that neither the batch, the shard nor the
device changes what is drawn. Shapes: B pictures, C latent channels, H W pixels, h w latent pixels, L tokens, D their
width.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, TypeVar, Union

import torch
from torch import Tensor

from ldm.errors import ConfigError, GenerationError, RequestError
from ldm.inference.censor import Censor, Inspected
from ldm.inference.checkpoint import LoadReport, load_model
from ldm.inference.digests import sha256_of
from ldm.inference.images import Pixels, read_picture, resize, to_pixels, to_tensor
from ldm.inference.placing import in_float32, left_to_packing, make_ready, recordings_of
from ldm.inference.replay import CALLS_BEFORE
from ldm.inference.room import Rooms, shared_out
from ldm.inference.runtime import (
    Precision,
    choose_arithmetic,
    describe_device,
    dtype_name,
    is_out_of_memory,
    memory_of,
    pick_device,
    release_memory,
)
from ldm.inference.spec import GenerationRequest, InitImage, SamplerConfig, SamplerName
from ldm.inference.transfer import send_draw
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.dpm_solver import DPMSolverSampler
from ldm.models.diffusion.guidance import guided, last_guided, network
from ldm.models.diffusion.lcm import LCMSampler
from ldm.models.diffusion.plms import PLMSSampler
from ldm.models.diffusion.sampler import DrawNoise, Sampler, run
from ldm.modules.encoders.modules import FrozenCLIPEmbedder
from ldm.modules.encoders.tokenizer import find_tokenizer
from ldm.modules.token_merging import LEAST_TOKENS

log = logging.getLogger(__name__)

SAMPLERS = {
    SamplerName.DDIM: DDIMSampler,
    SamplerName.PLMS: PLMSSampler,
    SamplerName.DPM_SOLVER: DPMSolverSampler,
    SamplerName.LCM: LCMSampler,
}
TEXTS_KEPT = 256  # 0.1 MiB each for SD v1
INIT_LATENTS_KEPT = 16

T = TypeVar("T")

# Called after every step with the number of steps done and the number there are.
OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class GeneratedImage:
    """A picture made: `pixels` (H,W,3) uint8, None if it was flagged and the policy is to drop such.

    `seconds` is its share of the time that its batch took.
    """

    request: GenerationRequest
    pixels: Optional[Pixels]
    seconds: float
    flagged: bool = False


Attempted = Union[GeneratedImage, GenerationError]


class SeededNoise:
    """Unit noise for a batch of latents of one `shape` (C,h,w); row i depends on seeds[i] alone."""

    def __init__(self, seeds: Sequence[int], shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self._generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]

    def draw(self) -> Tensor:
        """The next (B,C,h,w) float32 on the CPU."""
        return torch.stack([torch.randn(self.shape, generator=generator) for generator in self._generators])

    def draw_like(self, x: Tensor) -> Tensor:
        """The next (B,C,h,w) on the device and in the dtype of x."""
        return send_draw(self.draw(), x.device, x.dtype)


def noise_for(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """The start noise (B,C,h,w) of pictures with these seeds, float32 on the CPU."""
    return SeededNoise(seeds, shape).draw()


def steps_from(init: InitImage, sampler: Sampler, config: SamplerConfig) -> int:
    """How many of the chosen steps img2img takes; near 1000 the schedule has fewer than were asked for."""
    return min(init.steps_of(config.steps), len(sampler.table))


class Pipeline:
    """What a request needs of a model: text encoder, sampler, first stage; one picture or a batch of them at a time."""

    def __init__(self, model: Any, censor: Optional[Censor] = None, report: Optional[LoadReport] = None) -> None:
        self.model = model
        self.censor = censor
        self.report = report
        self.rooms = Rooms(memory_of(model.device), self.drop_recordings)
        self.encode_prompt = functools.lru_cache(maxsize=TEXTS_KEPT)(self._encode_prompt)
        self.encode_init = functools.lru_cache(maxsize=INIT_LATENTS_KEPT)(self._encode_init)
        self._warn_once = functools.lru_cache(maxsize=None)(log.warning)

    @classmethod
    def load(
        cls,
        config: Path,
        checkpoint: Path,
        *,
        device: str = "auto",
        precision: Precision = Precision.AUTOCAST,
        clip: Optional[str] = None,
        use_ema: str = "auto",
    ) -> Pipeline:
        """The model of a v1-style YAML and its weights, on a device; `clip` is a folder with the tokenizer's files.

        Weights are kept in the dtype that they are worked with, on a CPU from their first use on. Raises ConfigError,
        WeightsError or DeviceError.
        """
        place = pick_device(device)
        arithmetic = choose_arithmetic(place, precision)
        log.info("%s: %s", describe_device(place), arithmetic)
        leave = left_to_packing(place, arithmetic.dtype)
        model, report = load_model(
            config, checkpoint, use_ema=use_ema, dtype=arithmetic.dtype, device=place, leave=leave
        )
        text_encoder = model.cond_stage_model
        if text_encoder is None:
            raise ConfigError(f"cond_stage_config of {config} must be a text encoder: pictures are made from prompts")
        make_ready(model, arithmetic)
        if isinstance(text_encoder, FrozenCLIPEmbedder):
            text_encoder.use_tokenizer(find_tokenizer(clip, version=text_encoder.version, checkpoint=checkpoint))
        return cls(model, report=report)

    def with_censor(self, censor: Optional[Censor]) -> Pipeline:
        """The same, with a checker that looks at every picture; None looks at none."""
        return Pipeline(self.model, censor, self.report)

    @property
    def in_full_precision(self) -> bool:
        """Whether the network works in float32 already."""
        return bool(self.model.dtype is torch.float32)

    @property
    def factor(self) -> int:
        """How many pixels of a side one latent pixel stands for."""
        return int(self.model.first_stage_model.factor)

    def sampler(self, config: SamplerConfig) -> Sampler:
        """The sampler of a configuration, its steps chosen."""
        sampler = SAMPLERS[config.name](self.model)
        sampler.make_schedule(config.steps, ddim_discretize=config.schedule.value, ddim_eta=config.eta)
        return sampler

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """B prompts -> (B,L,D); each is encoded alone, so that its neighbours change nothing, and once."""
        return torch.cat([self.encode_prompt(prompt) for prompt in prompts])

    @torch.inference_mode()
    def encode_image(self, pixels: Pixels) -> Tensor:
        """A picture -> its latent (1,C,h,w) float32: the likeliest one, where the original draws one near it."""
        first_stage = self.model.first_stage_model
        image = to_tensor(pixels).to(next(first_stage.parameters()))
        posterior = self._in_strips_if_need_be(self.model.encode_first_stage, image)
        latent: Tensor = self.model.get_first_stage_encoding(posterior.mode())
        return latent.float()

    @torch.inference_mode()
    def decode(self, latent: Tensor) -> Pixels:
        """One latent (C,h,w) -> its picture; one at a time, for the first stage needs the most memory of all.

        Raises GenerationError for what is no picture: numbers that overflowed, or a single colour all over.
        """
        image = self._in_strips_if_need_be(self.model.decode_first_stage, latent[None])
        # NaN is the largest and the smallest of all, and to find those takes a sixth of the time of isfinite or less.
        if not bool(torch.isfinite(torch.stack([image.amin(), image.amax()])).all()):
            raise GenerationError(f"the model gave NaN {self._instead_of_a_picture()}")
        (pixels,) = to_pixels(image)
        if bool((pixels[0] == pixels[0, 0]).all()) and bool((pixels == pixels[0, 0]).all()):
            raise GenerationError(f"the model gave a single colour {self._instead_of_a_picture()}")
        return pixels

    def _instead_of_a_picture(self) -> str:
        advice = "try another seed" if self.in_full_precision else "try precision 'full', or another seed"
        return f"in {dtype_name(self.model.dtype)} instead of a picture; {advice}"

    @torch.inference_mode()
    def inspect(self, pictures: Sequence[Pixels]) -> List[Inspected]:
        """Each picture as the safety policy leaves it, and whether it was flagged; all unchanged without a checker."""
        if self.censor is None:
            return [Inspected(pixels, flagged=False) for pixels in pictures]
        return self.censor.inspect(pictures, self.model.device)

    def generate(self, requests: Sequence[GenerationRequest], on_step: Optional[OnStep] = None) -> List[GeneratedImage]:
        """The pictures of `requests`, in their order. Those that can share a batch do; prompts and seeds may differ.

        Raises GenerationError if one of them became no picture.
        """
        outcomes = self.attempt(requests, on_step)
        for outcome in outcomes:
            if isinstance(outcome, GenerationError):
                raise outcome
        return [outcome for outcome in outcomes if isinstance(outcome, GeneratedImage)]

    @torch.inference_mode()
    def attempt(self, requests: Sequence[GenerationRequest], on_step: Optional[OnStep] = None) -> List[Attempted]:
        """As `generate`, with the GenerationError in the place of what became no picture: the others are kept."""
        made: Dict[int, Attempted] = {}
        for indices in self._batches(requests):
            batch = [requests[i] for i in indices]
            start = time.perf_counter()
            latents = self.sparing(functools.partial(self._sample, batch, on_step))
            decoded = [self._decode_for(*pair) for pair in zip(batch, latents)]
            inspected = iter(self.inspect([each for each in decoded if not isinstance(each, GenerationError)]))
            seconds = (time.perf_counter() - start) / len(batch)
            for i, request, each in zip(indices, batch, decoded):
                if isinstance(each, GenerationError):
                    made[i] = each
                else:
                    pixels, flagged = next(inspected)
                    made[i] = GeneratedImage(request=request, pixels=pixels, seconds=seconds, flagged=flagged)
        return [made[i] for i in range(len(requests))]

    @contextlib.contextmanager
    def in_float32(self) -> Iterator[None]:
        """Inside, the model computes in float32; DeviceError where it cannot be had back from there.

        For a picture that overflowed in half precision: it costs memory and time, and is rarely needed.
        """
        self._forget()  # before a weight moves: on its way back from a failure, too, it has another place
        with in_float32(self.model):
            try:
                yield
            finally:
                self._forget()

    @property
    def calls_to_settle(self) -> int:
        """After how many calls of one shape the network is as quick as it will be."""
        recordings = recordings_of(self.model)
        return 0 if recordings is None or recordings.gave_up else CALLS_BEFORE

    def drop_recordings(self) -> None:
        """Give the memory of what a card has recorded back; a shape that comes often will be recorded anew."""
        recordings = recordings_of(self.model)
        if recordings is not None:
            recordings.forget()
            release_memory()

    def spare_memory(self) -> None:
        """Do from now on without what makes a card quicker at the price of its memory."""
        recordings = recordings_of(self.model)
        if recordings is not None:
            recordings.give_up()

    def sparing(self, work: Callable[[], T]) -> T:
        """work(), a second time without recordings where the memory beside them is too little for it."""
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            recordings = recordings_of(self.model)
            if not is_out_of_memory(error) or recordings is None or not recordings.hold_memory:
                raise
            log.info("not enough memory beside recordings: without them")
        self.spare_memory()
        release_memory()  # behind the except clause: the error holds the frames that hold the tensors
        return work()

    def _in_strips_if_need_be(self, first_stage: Callable[..., Any], x: Tensor) -> Any:
        """first_stage(x), once more in strips where there is too little memory for it at once."""
        try:
            return self.sparing(lambda: first_stage(x))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        log.info("not enough memory for %s at once: in strips", tuple(x.shape))
        release_memory()  # as above
        return first_stage(x, in_strips=True)

    def _forget(self) -> None:
        self.encode_prompt.cache_clear()
        self.encode_init.cache_clear()
        self.drop_recordings()

    def _batches(self, requests: Sequence[GenerationRequest]) -> Iterator[Sequence[int]]:
        """Indices of the requests that are sampled together: what agrees, as far as there is room for it."""
        for indices in _alike(requests):
            first = requests[indices[0]]
            try_network = functools.partial(self._try_network, first)
            yield from shared_out(indices, self.rooms.room(_takes(first), len(indices), try_network))

    def _try_network(self, request: GenerationRequest, pictures: int) -> None:
        if not bool(torch.isfinite(self.run_network(request, pictures)).all()):
            log.warning("the network gives NaN in %s for %dx%d px on this card, so each such picture will be made a "
                        "second time; precision=full does it at once", dtype_name(self.model.dtype), request.width,
                        request.height)  # fmt: skip

    @torch.inference_mode()
    def run_network(self, request: GenerationRequest, pictures: int) -> Tensor:
        """The network's noise (B,C,h,w), once, with the numbers that so many pictures like this one go in with."""
        texts = 1 if request.sampler.guidance_scale == 1.0 else 2
        x = send_draw(noise_for([request.seed] * pictures, self._latent_shape(request)), self.model.device)
        run_once = network(self.model, request.sampler.shortcuts)
        return run_once(x, float(self.model.num_timesteps - 1), self.encode_text([request.prompt] * (texts * pictures)))

    def _latent_shape(self, request: GenerationRequest) -> Tuple[int, int, int]:
        return self.model.channels, request.height // self.factor, request.width // self.factor

    def _sample(self, batch: Sequence[GenerationRequest], on_step: Optional[OnStep]) -> Tensor:
        """Latents (B,C,h,w) of requests that agree on size, sampler and strength."""
        config, init = batch[0].sampler, batch[0].init
        if config.shortcuts.merge_tokens:
            self._warn_if_unmerged(batch[0].height, batch[0].width)
        noise = SeededNoise([request.seed for request in batch], self._latent_shape(batch[0]))
        x = send_draw(noise.draw(), self.model.device)
        sampler = self.sampler(config)
        table = sampler.table
        if init is not None:
            steps = steps_from(init, sampler, config)
            clean = torch.cat([self._init_latent(request) for request in batch])
            x, table = sampler.stochastic_encode(clean, steps, noise=x), table.last(steps)
        cond = self.encode_text([request.prompt for request in batch])
        uncond = self.encode_text([request.negative_prompt for request in batch])
        until = last_guided(table, config.shortcuts.guidance_until)
        predict = guided(network(self.model, config.shortcuts), cond, uncond, config.guidance_scale, until)
        draw: DrawNoise = noise.draw_like if config.eta or sampler.adds_noise else torch.zeros_like
        steps_taken = sampler.steps(predict, table, eta=config.eta, draw_noise=draw)
        return run(steps_taken, x, on_step=None if on_step is None else lambda i, _: on_step(i + 1, len(table)))

    def _warn_if_unmerged(self, height: int, width: int) -> None:
        places = (height // self.factor) * (width // self.factor)
        if not self.model.model.diffusion_model.attends_to_largest:
            self._warn_once("merge_tokens changes nothing: it merges in attention at the largest maps, and this model "
                            "has none there")  # fmt: skip
        elif places < LEAST_TOKENS:
            self._warn_once("merge_tokens changes nothing at %dx%d px: the largest maps have %d places, and it merges "
                            "from %d on", width, height, places, LEAST_TOKENS)  # fmt: skip

    @torch.inference_mode()
    def _encode_prompt(self, prompt: str) -> Tensor:
        text_encoder = self.model.cond_stage_model
        if isinstance(text_encoder, FrozenCLIPEmbedder):
            _warn_if_cut(prompt, text_encoder.count_tokens(prompt), text_encoder.tokenizer.room)
        encoded: Tensor = self.model.get_learned_conditioning([prompt])
        return encoded

    def _decode_for(self, request: GenerationRequest, latent: Tensor) -> Union[Pixels, GenerationError]:
        try:
            return self.decode(latent)
        except GenerationError as error:
            return GenerationError(f"seed {request.seed}, prompt {request.prompt[:60]!r}: {error}")

    def _init_latent(self, request: GenerationRequest) -> Tensor:
        assert request.init is not None
        return self.encode_init(request.init.path, request.init.sha256, request.height, request.width)

    def _encode_init(self, path: str, sha256: str, height: int, width: int) -> Tensor:
        pixels = read_picture(Path(path))
        if sha256_of(Path(path)) != sha256:
            raise RequestError(f"init image {path} is not the one that was asked for: its sha256 is no longer {sha256}")
        return self.encode_image(resize(pixels, height=height, width=width))


def _takes(request: GenerationRequest) -> Tuple[Any, ...]:
    """What the memory of a run of the network depends on, besides the number of pictures."""
    config = request.sampler
    return request.height, request.width, config.guidance_scale == 1.0, config.shortcuts


def _warn_if_cut(prompt: str, tokens: int, room: int) -> None:
    if tokens > room:
        log.warning("the model reads the first %d tokens of a prompt that has %d: %.60r...", room, tokens, prompt)


def _alike(requests: Sequence[GenerationRequest]) -> List[List[int]]:
    """Indices of the requests that can be sampled together, groups and members in the order of the requests."""
    groups: Dict[Tuple[Any, ...], List[int]] = {}
    for i, request in enumerate(requests):
        groups.setdefault(request.batch_key, []).append(i)
    return list(groups.values())
