"""diffusers, answering the questions that our server answers, with nothing of ours but the watch and the prompt.

python benchmarks/peers/diffusers_server.py FOLDER INPUTS --dtype bfloat16 [--channels-last] [--compile]
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any, Callable, Dict

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from on_processor.talk import Answers, peak_mib, seconds_of, serve
from on_processor.task import GUIDANCE, PROMPT, PROMPTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("inputs", type=Path)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), required=True)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true", help="the U-Net by torch.compile, weights frozen")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    serve(lambda: answers(options))


def answers(options: argparse.Namespace) -> Answers:
    """Load, and the questions that can then be asked."""
    import diffusers
    import torch
    from safetensors.torch import load_file

    pipeline = load(options.folder, getattr(torch, options.dtype), channels_last=options.channels_last)
    if options.compile:
        from torch._inductor import config

        config.freezing = True
        pipeline.unet.forward = torch.compile(pipeline.unet.forward, dynamic=False)
    calls = networks(pipeline, load_file(str(options.inputs)))

    def timed(what: str, *size: int) -> float:
        with torch.no_grad() if options.compile else torch.inference_mode():  # freezing asks for it
            return seconds_of(lambda: calls[what](*size))

    def write(what: str, file: str, *size: int) -> None:
        with torch.inference_mode():
            calls[what](*size).float().contiguous().numpy().tofile(file)

    def about() -> Dict[str, Any]:
        versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
        return {**versions, "threads": torch.get_num_threads(), "dtype": options.dtype}

    return {"time": timed, "write": write, "about": about, "peak": peak_mib}


def load(folder: Path, dtype: Any, *, channels_last: bool) -> Any:
    """The pipeline of a folder as its documentation has it, quiet."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(str(folder), torch_dtype=dtype, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    if channels_last:
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
    return pipeline


def networks(pipeline: Any, given: Dict[str, Any]) -> Dict[str, Callable[..., Any]]:
    """What can be computed."""
    import torch

    dtype, scale = pipeline.unet.dtype, pipeline.vae.config.scaling_factor
    words = given["text"].to(dtype)

    def unet(size: int) -> Any:
        noisy = given[f"noisy-{size}"][:1].to(dtype)
        return pipeline.unet(torch.cat([noisy, noisy]), given["timestep"], words).sample

    def text() -> Any:
        padded = pipeline.tokenizer(PROMPT, padding="max_length", truncation=True, return_tensors="pt")
        return pipeline.text_encoder(padded.input_ids)[0]

    def sample(size: int, steps: int, number: int) -> Any:
        seen = []

        def keep(_pipeline: Any, _step: int, _timestep: Any, tensors: Dict[str, Any]) -> Dict[str, Any]:
            seen.append(tensors["latents"].float())
            return tensors

        pipeline(
            PROMPTS[number],
            height=size,
            width=size,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            latents=given[f"start-{size}"].roll(number, dims=3).to(dtype),
            output_type="latent",
            callback_on_step_end=keep,
        )
        return torch.cat(seen[1:])  # its first two calls of the network are one step

    return {
        "unet": unet,
        "vae": lambda size: pipeline.vae.decode(given[f"latent-{size}"].to(dtype) / scale).sample,
        "text": text,
        "sample": sample,
    }


if __name__ == "__main__":
    main()
