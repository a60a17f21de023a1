"""Our networks, answering over the standard streams; see `talk`.

python benchmarks/on_processor/our_server.py CONFIG WEIGHTS INPUTS --precision autocast [--move LEVER ...]
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path
from typing import Any, Callable, Dict

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from on_processor import levers  # noqa: E402
from on_processor.talk import Answers, peak_mib, seconds_of, serve  # noqa: E402
from on_processor.task import GUIDANCE, PROMPT, PROMPTS  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("config", "weights", "inputs"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--precision", choices=("autocast", "full"), required=True)
    parser.add_argument("--move", nargs="*", default=[], choices=list(levers.LEVERS), metavar="LEVER")
    options = parser.parse_args()
    serve(lambda: answers(options))


def answers(options: argparse.Namespace) -> Answers:
    """Load as the scripts do, and the questions that can then be asked."""
    import torch
    from safetensors.torch import load_file

    from ldm.inference.pipeline import Pipeline
    from ldm.inference.runtime import Precision, dtype_name

    pipeline = Pipeline.load(options.config, options.weights, device="cpu", precision=Precision(options.precision))
    levers.move(pipeline, options.move)
    given = load_file(str(options.inputs))
    calls = networks(pipeline.model, given)

    def timed(what: str, *size: int) -> float:
        with torch.inference_mode():
            return seconds_of(lambda: calls[what](*size))

    def write(what: str, file: str, *size: int) -> None:
        with torch.inference_mode():
            calls[what](*size).float().contiguous().numpy().tofile(file)

    def about() -> Dict[str, Any]:
        dtype = dtype_name(pipeline.model.dtype)
        return {"torch": torch.__version__, "threads": torch.get_num_threads(), "dtype": dtype}

    limit = functools.partial(best_rate, pipeline.model.dtype)
    return {"time": timed, "write": write, "about": about, "peak": peak_mib, "limit": limit}


def networks(model: Any, given: Dict[str, Any]) -> Dict[str, Callable[..., Any]]:
    """What can be computed, each by the way that the samplers and scripts go."""
    import torch

    from ldm.models.diffusion.guidance import network
    from ldm.models.diffusion.plms import PLMSSampler

    dtype = model.dtype
    text, timestep = given["text"].to(dtype), float(given["timestep"][0])
    predict_noise = network(model)

    def sample(size: int, steps: int, number: int) -> Any:
        start = given[f"start-{size}"].roll(number, dims=3)
        _, seen = PLMSSampler(model).sample(
            steps,
            1,
            start.shape[1:],
            model.get_learned_conditioning([PROMPTS[number]]),
            x_T=start,
            unconditional_conditioning=model.get_learned_conditioning([""]),
            unconditional_guidance_scale=GUIDANCE,
            log_every_t=1,
        )
        return torch.cat(seen["x_inter"][1:])

    return {
        "unet": lambda size: predict_noise(given[f"noisy-{size}"][:1], timestep, text),
        "vae": lambda size: model.decode_first_stage(given[f"latent-{size}"].to(dtype)),
        "text": lambda: model.get_learned_conditioning([PROMPT]),
        "sample": sample,
    }


def best_rate(dtype: Any) -> float:
    """GFLOP/s of the fastest large product in this dtype: what the processor can do with the libraries at hand."""
    import torch

    with torch.inference_mode():
        return float(max(flop / seconds_of(call) for flop, call in products(dtype)) / 1e9)


@functools.lru_cache(maxsize=None)
def products(dtype: Any) -> Any:
    """A product of square matrices, a linear layer and a convolution of the U-Net: operations and call of each.

    The convolution has no margin, so that it is not computed by minimal filtering, with fewer operations.
    """
    import torch
    from torch import nn

    from ldm.inference.packing import can_pack, pack

    side, (rows, wide, deep), (channels, place) = 2048, (2048, 1280, 5120), (640, 32)
    left, right = (torch.randn(side, side).to(dtype) for _ in range(2))
    layers = nn.Sequential(nn.Linear(wide, deep), nn.Conv2d(channels, channels, 3))
    layers.to(dtype).requires_grad_(False)
    if can_pack(dtype):
        pack(layers, dtype)
    words = torch.randn(rows, wide).to(dtype)
    picture = torch.randn(2, channels, place, place).to(dtype).contiguous(memory_format=torch.channels_last)
    return [
        (2 * side**3, lambda: left @ right),
        (2 * rows * wide * deep, lambda: layers[0](words)),
        (2 * 2 * (place - 2) ** 2 * 9 * channels**2, lambda: layers[1](picture)),
    ]


if __name__ == "__main__":
    main()
