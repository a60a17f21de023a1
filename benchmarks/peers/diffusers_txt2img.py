"""A picture by diffusers from start to file, as its users write it: what scripts/txt2img.py is compared with.

python benchmarks/peers/diffusers_txt2img.py FOLDER FILE.png --dtype bfloat16 [--first-call]
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from on_processor.talk import ending_after
from on_processor.task import GUIDANCE, PROMPT, SEED, SIZE, STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), required=True)
    parser.add_argument("--first-call", action="store_true", help="end once the U-Net was called")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(
        str(options.folder), torch_dtype=getattr(torch, options.dtype), local_files_only=True
    )
    if options.dtype == "bfloat16":  # where it is the quicker way
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
    if options.first_call:
        pipeline.unet.forward = ending_after(pipeline.unet.forward)
    generator = torch.Generator("cpu").manual_seed(SEED)
    size = {"height": SIZE, "width": SIZE}
    made = pipeline(PROMPT, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generator, **size)
    made.images[0].save(options.file)


if __name__ == "__main__":
    main()
