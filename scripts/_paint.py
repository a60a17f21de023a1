"""Paint an `Order`: load, sample batch by batch, write, and say on the way what the original says.

The draws of random numbers are the original's: one seed for all, start noise for a whole batch from the device's own
generator, and whatever the samplers draw between. Jobs give each picture its own seed instead: `Pipeline.generate`.
"""

from __future__ import annotations

import dataclasses
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.errors import GenerationError
from ldm.inference.censor import Censor, Inspected
from ldm.inference.files import NumberedFiles, make_folder
from ldm.inference.images import Pixels, encode_png, make_grid
from ldm.inference.infotext import describe, format_infotext
from ldm.inference.pipeline import Pipeline, steps_from
from ldm.inference.runtime import Precision, remember_draws
from ldm.inference.safety import SafetyPolicy
from ldm.inference.spec import SamplerName
from ldm.inference.watermark import Stamp, load_stamp
from ldm.inference.weightfile import model_hash
from ldm.models.diffusion.sampler import Sampler
from scripts._options import Order

LABELS = {
    SamplerName.DDIM: "DDIM",
    SamplerName.PLMS: "PLMS",
    SamplerName.DPM_SOLVER: "DPM-Solver",
    SamplerName.LCM: "LCM",
}


def paint(order: Order, pipeline: Pipeline, digest: Optional[Future[str]]) -> None:
    """Everything that the order asks for, onto the disk.

    digest  of the weights, for the pictures' metadata; None leaves it out.
    """
    options = order.options
    outdir = make_folder(Path(options.outdir))
    samples = NumberedFiles(make_folder(outdir / "samples"), "{:05}.png")
    if options.from_file:
        print(f"reading prompts from {options.from_file}")
    if options.watermark:
        print("Creating invisible watermark encoder (see https://github.com/ShieldMnt/invisible-watermark)...")
    studio = Studio(order, pipeline, digest, load_stamp() if options.watermark else None)
    for_grid: List[Tuple[Pixels, str]] = []
    for pixels, parameters in studio.pictures():
        if not options.skip_save:
            samples.write(encode_png(pixels, parameters))
        if not options.skip_grid:
            for_grid.append((pixels, parameters))
    if for_grid:
        grid = make_grid([pixels for pixels, _ in for_grid], per_row=options.n_rows or options.n_samples)
        NumberedFiles(outdir, "grid-{:04}.png").write(encode_png(studio.stamp(grid), for_grid[0][1]))
    if studio.flagged:
        print(f"{studio.flagged} of {studio.painted} pictures were flagged by the safety checker and blackened")
    print(f"Your samples are ready and waiting for you here: \n{options.outdir} \n \nEnjoy.")


def load(order: Order) -> Pipeline:
    """The pipeline of the order, with what the original prints while it loads."""
    options, shape = order.options, order.shape
    print(f"Global seed set to {options.seed}")
    print(f"Loading model from {order.files.checkpoint}")
    pipeline = Pipeline.load(
        order.files.config,
        order.files.checkpoint,
        device=options.device,
        precision=Precision(options.precision),
        clip=str(order.tokenizer),
        use_ema=options.use_ema,
    ).with_censor(Censor(order.checker, SafetyPolicy.BLACK) if order.checker else None)
    if pipeline.report is not None:
        if pipeline.report.global_step is not None:
            print(f"Global Step: {pipeline.report.global_step}")
        print(f"Took {pipeline.report.which_weights}")
        print("LatentDiffusion: Running in eps-prediction mode")
        print(f"DiffusionWrapper has {pipeline.report.network_parameters * 1e-6:,.2f} M params.")
    side = shape.first_stage_size // shape.factor
    width = pipeline.model.first_stage_model.encoder.norm_out.num_channels
    attention = f"making attention of type 'vanilla' with {width} in_channels"
    print(attention)
    print(f"Working with z of shape (1, {shape.channels}, {side}, {side}) = {shape.channels * side**2} dimensions.")
    print(attention)
    return pipeline


class Studio:
    """Paints the batches of an order one after the other, in the original's order of random draws."""

    def __init__(self, order: Order, pipeline: Pipeline, digest: Optional[Future[str]], stamp: Optional[Stamp]) -> None:
        self.order, self.pipeline, self.digest = order, pipeline, digest
        self.stamp = stamp or (lambda pixels: pixels)
        self.painted = self.flagged = 0
        template, factor = order.template, order.shape.factor
        self._latent_shape = (order.shape.channels, template.height // factor, template.width // factor)
        self._init = self._encoded_init()
        if template.init is not None:
            print(f"target t_enc is {template.init.steps_of(template.sampler.steps)} steps")
        torch.manual_seed(order.options.seed)
        self._code = self._draw(order.options.n_samples) if order.options.fixed_code else None

    def pictures(self) -> Iterator[Tuple[Pixels, str]]:
        """Every picture of the order, each with its parameters."""
        with tqdm(range(self.order.options.n_iter), desc="Sampling") as iterations:
            for iteration in iterations:
                with tqdm(self.order.batches, desc="data") as batches:
                    for prompts in batches:
                        yield from self.paint_batch(prompts, iteration)

    def paint_batch(self, prompts: Sequence[str], iteration: int) -> List[Tuple[Pixels, str]]:
        """The pictures of a batch, checked and stamped, each with its parameters."""
        inspected = self.pipeline.inspect(self._made(prompts))
        self.painted += len(inspected)
        self.flagged += sum(picture.flagged for picture in inspected)
        place = {"Iteration": str(iteration), "Batch size": str(len(prompts))}
        return [
            (self.stamp(picture.pixels), self._parameters(prompt, picture, {**place, "Batch pos": str(position)}))
            for position, (prompt, picture) in enumerate(zip(prompts, inspected))
        ]

    def _made(self, prompts: Sequence[str]) -> List[Pixels]:
        """The pictures of a batch; where one is none in half precision, all are made again in float32, of one draw."""
        draw_again = remember_draws(self.pipeline.model.device)

        def made(init: Optional[Tensor]) -> List[Pixels]:
            draw_again()
            return [self.pipeline.decode(latent) for latent in self._sample(prompts, init)]

        try:
            return self.pipeline.sparing(lambda: made(self._init))
        except GenerationError as error:
            if self.pipeline.in_full_precision:
                raise
            failed = str(error)
        tqdm.write(f"{failed}; trying float32", file=sys.stderr)
        with self.pipeline.in_float32():
            try:
                return made(self._encoded_init())
            except GenerationError as error:
                raise GenerationError(f"{failed}; in float32 too: {error}") from error

    def _encoded_init(self) -> Optional[Tensor]:
        return None if self.order.init is None else self.pipeline.encode_image(self.order.init)

    def _sample(self, prompts: Sequence[str], init: Optional[Tensor]) -> Tensor:
        """Latents (B,C,h,w), from noise or from that of a picture."""
        config = self.order.template.sampler
        sampler = self.pipeline.sampler(config)
        guided = config.guidance_scale != 1.0
        negative = [self.order.template.negative_prompt] * len(prompts)
        cond = self.pipeline.encode_text(prompts)
        uncond = self.pipeline.encode_text(negative) if guided else None
        x, steps = self._start(sampler, len(prompts), init)
        self._announce(len(prompts), steps or len(sampler.table))
        description = f"{LABELS[config.name]} Sampler" if steps is None else "Decoding image"
        with tqdm(total=steps or len(sampler.table), desc=description) as bar:

            def advance(_: int) -> None:
                bar.update()

            latents, _ = sampler.sample(
                S=config.steps,
                batch_size=len(prompts),
                shape=self._latent_shape,
                conditioning=cond,
                unconditional_conditioning=uncond,
                unconditional_guidance_scale=config.guidance_scale,
                eta=config.eta,
                x_T=x,
                strength_steps=steps,
                shortcuts=config.shortcuts,
                callback=advance,
                verbose=False,
            )
        return latents

    def _start(self, sampler: Sampler, size: int, clean: Optional[Tensor]) -> Tuple[Optional[Tensor], Optional[int]]:
        """What a batch starts from and how many of the steps it takes; None where the sampler draws, and takes all."""
        noise = None if self._code is None else self._code[:size]
        if clean is None:
            return noise, None
        init = self.order.template.init
        assert init is not None
        steps = steps_from(init, sampler, self.order.template.sampler)
        return sampler.stochastic_encode(clean.repeat(size, 1, 1, 1), steps, noise=noise), steps

    def _draw(self, size: int) -> Tensor:
        return torch.randn((size, *self._latent_shape), device=self.pipeline.model.device)

    def _announce(self, size: int, steps: int) -> None:
        config = self.order.template.sampler
        label = LABELS[config.name]
        if self._init is None:
            eta = f", eta {config.eta}" if config.name is SamplerName.DDIM else ""
            tqdm.write(f"Data shape for {label} sampling is {(size, *self._latent_shape)}{eta}")
        tqdm.write(f"Running {label} Sampling with {steps} timesteps")

    def _parameters(self, prompt: str, picture: Inspected, place: Dict[str, Optional[str]]) -> str:
        """The A1111 text of a picture, with its place: noise is a whole batch's, so the seed alone is not enough."""
        extra: Dict[str, Optional[str]] = {"Model hash": self._model_hash(), "Model": self.order.files.name, **place}
        extra["Fixed code"] = "yes" if self._code is not None else None
        extra["RNG"] = "CompVis"
        extra["Safety"] = "flagged" if picture.flagged else None
        return format_infotext(describe(dataclasses.replace(self.order.template, prompt=prompt), extra))

    def _model_hash(self) -> Optional[str]:
        if self.digest is None:
            return None
        try:
            return model_hash(self.digest.result())
        except OSError as error:  # the file is gone by now, or its server
            tqdm.write(f"pictures come without the hash of the weights: {error}", file=sys.stderr)
            self.digest = None
            return None
