"""How much memory the first stage takes for large pictures: all at once, and in strips; and how long.

    python benchmarks/decode.py [--sizes PX ...] [--repeats N] [--config YAML] [--dtype DTYPE] [--json]

Each decoding is in a fresh process, on a CPU, with weights packed; they are random, which changes neither time nor
memory. MiB are the most that the process had, less what it had before it decoded; the least of N rounds. Seconds are
the medians; processor seconds judge where other work is on the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - found from any working directory, without installing
from omegaconf import OmegaConf  # noqa: E402
from on_processor.talk import memory_mib, peak_mib  # noqa: E402

from ldm.inference.packing import can_pack, pack  # noqa: E402
from ldm.models import autoencoder  # noqa: E402
from ldm.util import instantiate_from_config  # noqa: E402

CONFIG = ROOT / "configs" / "stable-diffusion" / "v1-inference.yaml"
WAYS = ("plain", "strips")
Result = Dict[str, Any]


def main() -> int:
    options = parse_options()
    if options.way:
        print(json.dumps(measure(options)))
        return 0
    results = [result for size in options.sizes for result in compare(options, size)]
    print(json.dumps(results) if options.json else table(results))
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048], metavar="PX", help="sides (1024 2048)")
    parser.add_argument("--repeats", type=int, default=1, help="rounds (1)")
    parser.add_argument("--config", type=Path, default=CONFIG, help="the model's YAML (SD v1)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="(bfloat16)")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(options: argparse.Namespace, size: int) -> List[Result]:
    """One result a way; the ways take turns."""
    rounds = [{way: run(options, size, way) for way in WAYS} for _ in range(options.repeats)]
    results = []
    for way in WAYS:
        found = [each[way] for each in rounds]
        results.append(
            {
                "size": size,
                "way": way,
                "peak_mib": min(each["peak_mib"] for each in found),
                "seconds": statistics.median(each["seconds"] for each in found),
                "processor_s": statistics.median(each["processor_s"] for each in found),
            }
        )
    return results


def run(options: argparse.Namespace, size: int, way: str) -> Result:
    command = [sys.executable, __file__, "--way", way, "--sizes", str(size)]
    command += ["--config", str(options.config), "--dtype", options.dtype]
    result: Result = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return result


@torch.inference_mode()
def measure(options: argparse.Namespace) -> Result:
    """One decoding in this process."""
    first_stage = build(options.config, getattr(torch, options.dtype))
    autoencoder.LARGE_MAP_BYTES = sys.maxsize
    side = options.sizes[0] // first_stage.factor
    z = torch.randn(1, first_stage.embed_dim, side, side, generator=torch.Generator().manual_seed(0))
    z = z.to(next(first_stage.parameters()).dtype)
    in_strips = options.way == "strips"
    first_stage.decode(z[:, :, :8, :8], in_strips=in_strips)
    before, start, start_cpu = memory_mib("VmRSS"), time.perf_counter(), time.process_time()
    first_stage.decode(z, in_strips=in_strips)
    return {
        "seconds": time.perf_counter() - start,
        "processor_s": time.process_time() - start_cpu,
        "peak_mib": peak_mib() - before,
    }


def build(config: Path, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    first_stage = instantiate_from_config(OmegaConf.load(config).model.params.first_stage_config)
    first_stage = first_stage.eval().requires_grad_(False).to(dtype)
    if can_pack(dtype):
        pack(first_stage, dtype)
    return first_stage


def table(results: List[Result]) -> str:
    lines = [f"{'px':>5} {'way':7} {'peak MiB':>9} {'s':>8} {'processor s':>12}"]
    for each in results:
        lines.append(
            f"{each['size']:5} {each['way']:7} {each['peak_mib']:9,.0f} "
            f"{each['seconds']:8.1f} {each['processor_s']:12.1f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
