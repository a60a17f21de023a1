"""What both scripts take: the options of the original and ours, checked before torch is imported or a file written."""

from __future__ import annotations

import argparse
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, List, NoReturn, Optional

from ldm.errors import ConfigError, OutputError, RequestError, WeightsError
from ldm.inference.models import (
    LAION_400M,
    MODELS,
    SD_V1,
    ModelFiles,
    ModelShape,
    entry_named,
    find_file,
    find_files,
    looked_for,
)
from ldm.inference.prompts import read_lines
from ldm.inference.safety_folder import find_weights
from ldm.inference.spec import GenerationRequest, SamplerConfig, SamplerName, Shortcuts, check_size
from ldm.inference.weightfile import UseEma, recognise

WATERMARK_LEAST_SIZE = 256  # px a side, below which the watermark has no room


@dataclass(frozen=True)
class Order:
    """What one call of a script is to paint, checked. `template` is each picture but for its prompt.

    `batches` are the prompts of one iteration; `init` (H,W,3) uint8 is the picture to start from, of the right size.
    """

    options: argparse.Namespace
    files: ModelFiles
    shape: ModelShape
    tokenizer: Path
    checker: Optional[Path]
    template: GenerationRequest
    batches: List[List[str]]
    init: Any = None


class OptionParser(argparse.ArgumentParser):
    """The options that the scripts share; a script adds its own to the groups. An error is one line."""

    def __init__(self, prog: str, description: str, *, scale: float) -> None:
        """`scale`: the guidance of a call that says none, with a model that needs no other."""
        super().__init__(prog=prog, description=description)
        self.picture = self.add_argument_group("the picture")
        add_picture_options(self.picture)
        add_sampling_options(self.add_argument_group("sampling"), scale)
        add_shortcut_options(self.add_argument_group("shortcuts: faster, but another picture (docs/shortcuts.md)"))
        add_output_options(self.add_argument_group("what is written"))
        self.model = self.add_argument_group("the model")
        add_model_options(self.model)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see --help\n")


def add_picture_options(group: argparse._ArgumentGroup) -> None:
    """What is to be seen, and how many of it."""
    group.add_argument(
        "--prompt", default="a painting of a virus monster playing guitar", help="the words (default: %(default)s)"
    )
    group.add_argument("--negative-prompt", default="", metavar="WORDS", help="what is not to be seen (default: none)")
    group.add_argument(
        "--from-file",
        metavar="FILE",
        help="prompts, one a line, instead of --prompt; blank lines and # lines are skipped",
    )
    group.add_argument("--seed", type=int, default=42, help="of all random numbers of the call (default: %(default)s)")
    group.add_argument("--n_iter", type=int, metavar="N", help="go through all prompts so often (default: %(default)s)")
    group.add_argument(
        "--n_samples", type=int, metavar="N", help="pictures painted at a time, the batch size (default: %(default)s)"
    )


def add_sampling_options(group: argparse._ArgumentGroup, scale: float) -> None:
    """How noise becomes a picture."""
    group.add_argument("--ddim_steps", type=int, default=50, metavar="N", help="of any sampler (default: %(default)s)")
    group.add_argument("--plms", action="store_true", help="sample with PLMS; the default is DDIM")
    group.add_argument("--dpm_solver", action="store_true", help="sample with DPM-Solver++, whatever else is said")
    group.add_argument(
        "--lcm", dest="by_lcm", action="store_true", help="sample with LCM: for weights distilled for it, 4 to 8 steps"
    )
    group.add_argument(
        "--ddim_eta", type=float, default=0.0, metavar="ETA", help="fresh noise in DDIM, 0 to 1 (default: %(default)s)"
    )
    group.add_argument(
        "--scale", type=float, help=f"guidance by the prompt; 1.0 is none (default: the model's; {scale})"
    )
    group.add_argument("--fixed_code", action="store_true", help="start every batch from the same noise")
    group.add_argument(
        "--precision",
        choices=["full", "autocast"],
        default="autocast",
        help="full is float32; autocast what is fast on the device (default: %(default)s)",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, gpu or dcu (default: %(default)s)")


def add_shortcut_options(group: argparse._ArgumentGroup) -> None:
    """What may be left out of the work."""
    group.add_argument(
        "--cache-interval", type=int, default=1, metavar="N", help="run the deep blocks in one step of N, 1 to 5"
    )
    group.add_argument(
        "--guidance-until", type=float, default=1.0, metavar="SHARE", help="guide this share of the steps alone"
    )
    group.add_argument(
        "--merge-tokens", type=float, default=0.0, metavar="SHARE", help="merge places of large maps, 0 to 0.75 of them"
    )


def add_output_options(group: argparse._ArgumentGroup) -> None:
    """What is written, and where."""
    group.add_argument("--outdir", metavar="FOLDER", help="created if need be (default: %(default)s)")
    group.add_argument("--skip_grid", action="store_true", help="write no grid of all pictures")
    group.add_argument("--skip_save", action="store_true", help="write no single pictures")
    group.add_argument(
        "--n_rows", type=int, default=0, metavar="N", help="pictures in a row of the grid (default: those of a batch)"
    )
    group.add_argument(
        "--watermark", action="store_true", help="stamp each picture with the original's invisible watermark"
    )


def add_model_options(group: argparse._ArgumentGroup) -> None:
    """What paints, and what looks at it afterwards."""
    group.add_argument(
        "--model", choices=list(MODELS), default=SD_V1.name, help="a model by its name (default: %(default)s)"
    )
    group.add_argument("--config", metavar="FILE", help=f"its YAML (default: the model's; {SD_V1.config})")
    group.add_argument("--ckpt", metavar="FILE", help=f"its weights (default: the model's; {SD_V1.checkpoints[1]})")
    group.add_argument(
        "--clip", metavar="FOLDER", help="vocab.json and merges.txt of CLIP (default: where they usually are)"
    )
    group.add_argument(
        "--use-ema",
        choices=[choice.value for choice in UseEma],
        default=UseEma.AUTO.value,
        help="the weights averaged over training; auto takes them where the file has them (default: %(default)s)",
    )
    group.add_argument("--C", type=int, metavar="N", help="channels of a latent (default: the model's; 4)")
    group.add_argument("--f", type=int, metavar="N", help="pixels a latent pixel stands for (default: the model's; 8)")
    group.add_argument(
        "--safety-checker",
        metavar="FOLDER|off",
        help=f"what blackens unsafe pictures (default: {SD_V1.safety_checker} if the model needs one)",
    )


def find_model(options: argparse.Namespace) -> ModelFiles:
    """The files of the model asked for; a file that holds no weights is refused here, before anything is loaded."""
    entry = LAION_400M if options.laion400m else entry_named(options.model)
    files = find_files(entry, config=options.config, checkpoint=options.ckpt)
    recognise(files.checkpoint)
    return files


def find_checker(asked: Optional[str], usual: Optional[str]) -> Optional[Path]:
    """The folder of the safety checker, all its files there; None if the model needs none or it was asked to be off."""
    wanted = asked or usual
    if wanted is None or wanted == "off":
        return None
    folder = find_file([wanted], folder=True)
    if folder is None:
        raise WeightsError(
            f"no safety checker: looked for the folder {looked_for([wanted])}; copy "
            "CompVis/stable-diffusion-safety-checker there, name its folder with --safety-checker FOLDER, "
            "or switch it off with --safety-checker off"
        )
    find_weights(folder)
    return folder


def find_batches(options: argparse.Namespace) -> List[List[str]]:
    """The prompts of one iteration, at most `n_samples` together; the last batch may be short."""
    for name in ("n_iter", "n_samples"):
        if getattr(options, name) < 1:
            raise RequestError(f"--{name} must be at least 1, got {getattr(options, name)}")
    if options.n_rows < 0:
        raise RequestError(f"--n_rows must be at least 1, or 0 for as many as a batch has, got {options.n_rows}")
    if options.from_file is None:
        return [[options.prompt] * options.n_samples]
    if options.from_file.endswith(".jsonl"):
        raise RequestError(
            f"--from-file takes one prompt a line; a .jsonl file is for: python -m jobs submit {options.from_file}"
        )
    prompts = read_lines(Path(options.from_file))
    return [prompts[i : i + options.n_samples] for i in range(0, len(prompts), options.n_samples)]


def check_outdir(options: argparse.Namespace) -> None:
    """Refuse a folder that cannot be made or written to, before the work; nothing is made yet."""
    wanted = Path(os.path.abspath(options.outdir))
    there = next(folder for folder in (wanted, *wanted.parents) if os.path.exists(folder))
    if not os.path.isdir(there) or not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {wanted}: {there} is no folder that you may write to; choose another --outdir")


def find_template(options: argparse.Namespace, shape: ModelShape, *, scale: float, **picture: Any) -> GenerationRequest:
    """What all pictures of the call have in common; `picture` are its `height`, `width` and `init`."""
    for name, value in (("C", shape.channels), ("f", shape.factor)):
        if getattr(options, name) not in (None, value):
            raise RequestError(f"--{name} must be {value} for this model, got {getattr(options, name)}; leave it out")
    check_size("height", picture["height"], shape.size_multiple)
    check_size("width", picture["width"], shape.size_multiple)
    check_watermark(options, min(picture["height"], picture["width"]))
    check_outdir(options)
    return GenerationRequest(
        prompt=check_text(options.prompt),
        negative_prompt=check_text(options.negative_prompt),
        seed=options.seed,
        sampler=SamplerConfig(
            name=find_sampler(options),
            steps=options.ddim_steps,
            guidance_scale=scale if options.scale is None else options.scale,
            eta=options.ddim_eta,
            shortcuts=Shortcuts(options.cache_interval, options.guidance_until, options.merge_tokens),
        ),
        **picture,
    )


def find_sampler(options: argparse.Namespace) -> SamplerName:
    """The sampler asked for; DPM-Solver++ wins, as in the original."""
    asked = {
        SamplerName.DPM_SOLVER: options.dpm_solver,
        SamplerName.LCM: options.by_lcm,
        SamplerName.PLMS: options.plms,
        SamplerName.DDIM: True,
    }
    return next(name for name, is_asked in asked.items() if is_asked)


def check_text(words: str) -> str:
    """Refuse words that the terminal did not send as its locale says; they cannot be written into a picture."""
    try:
        words.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the prompt must be text in the terminal's encoding, its sign {error.start + 1} is not"
        ) from error
    return words


def check_watermark(options: argparse.Namespace, least_side: int) -> None:
    """Refuse a watermark that cannot be made, before the work."""
    if not options.watermark:
        return
    if importlib.util.find_spec("imwatermark") is None:
        raise ConfigError("--watermark needs the package invisible-watermark: pip install invisible-watermark")
    if least_side < WATERMARK_LEAST_SIZE:
        raise RequestError(f"--watermark needs pictures of at least {WATERMARK_LEAST_SIZE} px a side, got {least_side}")
