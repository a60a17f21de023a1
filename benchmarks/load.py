"""How long a whole Stable Diffusion v1 takes from file to memory, and how much of it.

    python benchmarks/load.py [--folder DIR] [--repeats N] [--config YAML]

Writes a model of random values as .safetensors and .ckpt (9 GB, deleted at the end), then loads each in fresh
processes: the way everybody does it, the floor (construct on the meta device, map the file, assign, touch every page),
and ours. Seconds are the best of N rounds, counted after the imports, with the file in the page cache. The processor
seconds judge, since the clock's are only as good as the machine is quiet: status 1 where ours takes more than 1.5 times
the floor's, or its .ckpt a second more than its .safetensors.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Mapping

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - found from any working directory, without installing
from omegaconf import OmegaConf  # noqa: E402
from on_processor.talk import peak_mib  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from ldm.inference.checkpoint import load_model, read_state_dict  # noqa: E402
from ldm.inference.runtime import without_init  # noqa: E402
from ldm.util import instantiate_from_config  # noqa: E402

CONFIG = ROOT / "configs" / "stable-diffusion" / "v1-inference.yaml"
PAGE_BYTES = 4096
SPARE = 1.1  # of the disk that both files take
FLOOR_RATIO = 1.5
CKPT_SECONDS_MORE = 1.0


def main() -> int:
    options = parse_options()
    if options.way:
        print(json.dumps(measure(options.way, options.config, options.file)))
        return 0
    with without_init():
        state = build(options.config).state_dict()
    needed = int(2 * SPARE * sum(tensor.numel() * tensor.element_size() for tensor in state.values()))
    free = shutil.disk_usage(options.folder).free
    if free < needed:
        raise SystemExit(f"{options.folder} must have {needed:,} bytes free, has {free:,}; try --folder")
    with tempfile.TemporaryDirectory(prefix="sdbatch-load-", dir=options.folder) as folder:
        files = write_files(state, Path(folder))
        rounds = [{way: run(way, options.config, files) for way in LOADERS} for _ in range(options.repeats)]
    results = {way: {key: min(round_[way][key] for round_ in rounds) for key in rounds[0][way]} for way in LOADERS}
    show(results)
    return 0 if meets_the_bar(results) else 1


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where 9 GB may lie for a few minutes")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (3)")
    parser.add_argument("--config", type=Path, default=CONFIG, help="the model's YAML (SD v1)")
    parser.add_argument("--way", choices=LOADERS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def write_files(state: Mapping[str, Tensor], folder: Path) -> dict[str, Path]:
    """One model of random values in both formats, a tensor at a time in memory."""
    safetensors, ckpt = folder / "model.safetensors", folder / "model.ckpt"
    write_random_safetensors(state, safetensors)
    torch.save({"state_dict": read_state_dict(safetensors)[0], "global_step": 470000}, ckpt)
    return {".safetensors": safetensors, ".ckpt": ckpt}


def write_random_safetensors(state: Mapping[str, Tensor], path: Path) -> None:
    header, end = {}, 0
    for name, tensor in state.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        dtype = "F32" if tensor.is_floating_point() else "I64"
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode("ascii")
    text += b" " * (-len(text) % 8)
    noise = torch.randn(max(tensor.numel() for tensor in state.values())) * 0.02
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in state.values():
            values = noise[: tensor.numel()] if tensor.is_floating_point() else tensor.flatten()
            file.write(values.numpy().data)


def run(way: str, config: Path, files: Mapping[str, Path]) -> dict[str, float]:
    file = files[".ckpt" if way.endswith(".ckpt") else ".safetensors"]
    command = [sys.executable, __file__, "--way", way, "--config", str(config), "--file", str(file)]
    result: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return result


def measure(way: str, config: Path, file: Path) -> dict[str, float]:
    """Seconds until the model is there, until its every page was touched, and the most memory the process had."""
    load = LOADERS[way]
    import_networks(config)
    start, start_cpu = time.perf_counter(), time.process_time()
    model = load(config, file)
    loaded = time.perf_counter()
    touch(model)
    return {
        "loaded_s": loaded - start,
        "touched_s": time.perf_counter() - start,
        "touched_cpu_s": time.process_time() - start_cpu,
        "peak_mib": peak_mib(),
    }


def import_networks(config: Path) -> None:
    """Build the model once without values; on the meta device torch imports more of itself, for two seconds."""
    for context in (without_init(), torch.device("meta")):
        with context:
            build(config)


def build(config: Path) -> Any:
    return instantiate_from_config(OmegaConf.load(config).model)


def load_default(config: Path, file: Path) -> nn.Module:
    model: nn.Module = build(config)
    model.load_state_dict(load_file(str(file)))
    return model


def load_floor(config: Path, file: Path) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = build(config)
    model.load_state_dict(load_file(str(file)), assign=True)
    return model


def load_ours(config: Path, file: Path) -> nn.Module:
    return load_model(config, file)[0]


def load_ours_in_bfloat16(config: Path, file: Path) -> nn.Module:
    return load_model(config, file, dtype=torch.bfloat16)[0]


LOADERS: dict[str, Callable[[Path, Path], nn.Module]] = {
    "default": load_default,
    "floor": load_floor,
    "ours": load_ours,
    "ours, bfloat16": load_ours_in_bfloat16,
    "ours, .ckpt": load_ours,
}


def touch(model: nn.Module) -> None:
    for tensor in model.state_dict().values():
        tensor.detach().flatten()[:: PAGE_BYTES // tensor.element_size()].sum()


def show(results: Mapping[str, Mapping[str, float]]) -> None:
    floor = results["floor"]["touched_cpu_s"]
    print(f"{'way':14} {'loaded s':>9} {'+ touched s':>12} {'processor s':>12} {'x floor':>8} {'peak MiB':>9}")
    for way, result in results.items():
        print(
            f"{way:14} {result['loaded_s']:9.2f} {result['touched_s']:12.2f} {result['touched_cpu_s']:12.2f} "
            f"{result['touched_cpu_s'] / floor:8.2f} {result['peak_mib']:9,.0f}"
        )


def meets_the_bar(results: Mapping[str, Mapping[str, float]]) -> bool:
    floor, ours, ckpt = (results[way]["touched_cpu_s"] for way in ("floor", "ours", "ours, .ckpt"))
    return ours <= FLOOR_RATIO * floor and ckpt <= ours + CKPT_SECONDS_MORE


if __name__ == "__main__":
    sys.exit(main())
