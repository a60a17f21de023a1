#!/usr/bin/env python3
"""Measure how often the small model paints what it is asked for, by a judge that knows only the emoji themselves.

200 prompts, half of them pairs of object and colour that training never shows together. Prints the shares that are
right; with --out also writes report.json, grid.png (the first 40 pictures with their prompts) and grid-all.png. Exit
code 0 means accepted, 1 that a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.errors import SdbatchError
from ldm.inference.files import make_folder, write_atomically
from ldm.inference.images import encode_png
from ldm.inference.models import SHIPPED, entry_named, find_files, read_shape
from ldm.inference.spec import GenerationRequest, SamplerConfig, SamplerName
from ldm.training.acceptance import Outcome, acceptance_tasks, describe, is_accepted, judge_pictures, summarise
from ldm.training.emoji import COLOUR_NAMES, OBJECT_NAMES, caption, load_sprites
from ldm.training.score import Judge
from ldm.training.sheet import Labelled, labelled_sheet

# Prompts in, a picture (H,W,3) uint8 for each out.
Paint = Callable[[Sequence[str], argparse.Namespace], List[np.ndarray]]

GRID_COUNT, GRID_PER_ROW, ALL_PER_ROW = 40, 8, 20


def parse(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_argument_group("model")
    model.add_argument("--model", default=SHIPPED.name, help="name of the model (default: %(default)s)")
    model.add_argument("--config", metavar="FILE", help="another config than the model's own")
    model.add_argument("--ckpt", metavar="FILE", help="another checkpoint than the model's own")
    model.add_argument("--device", default="auto", help="auto, cpu, gpu or dcu (default: %(default)s)")
    model.add_argument("--precision", choices=["full", "autocast"], default="autocast", help="default: %(default)s")
    sampling = parser.add_argument_group("sampling")
    names = [name.value for name in SamplerName]
    sampling.add_argument("--sampler", choices=names, default="plms", help="default: %(default)s")
    sampling.add_argument("--steps", type=int, default=50, help="sampling steps (default: %(default)s)")
    scale = SHIPPED.guidance_scale
    sampling.add_argument("--scale", type=float, default=scale, help="guidance scale (default: %(default)s)")
    sampling.add_argument("--seed", type=int, default=42, help="of the first prompt, then + 1 (default: %(default)s)")
    sampling.add_argument("--batch-size", type=count, default=20, metavar="B", help="default: %(default)s")
    parser.add_argument("--limit", type=count, metavar="N", help="only the first N prompts, for a quick look")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write the report and the grids")
    return parser.parse_args(arguments)


def count(text: str) -> int:
    """A whole number from 1 on."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def paint(prompts: Sequence[str], options: argparse.Namespace) -> List[np.ndarray]:
    """A picture for each prompt, by the pipeline that the other commands use."""
    from tqdm import tqdm

    from ldm.inference.pipeline import Pipeline
    from ldm.inference.runtime import Precision

    files = find_files(entry_named(options.model), config=options.config, checkpoint=options.ckpt)
    size = read_shape(files.config).size
    sampler = SamplerConfig(SamplerName(options.sampler), steps=options.steps, guidance_scale=options.scale)
    requests = [
        GenerationRequest(prompt=prompt, seed=options.seed + number, height=size, width=size, sampler=sampler)
        for number, prompt in enumerate(prompts)
    ]
    precision = Precision(options.precision)
    pipeline = Pipeline.load(files.config, files.checkpoint, device=options.device, precision=precision)
    pictures: List[np.ndarray] = []
    for start in tqdm(range(0, len(requests), options.batch_size), desc="painting", unit="batch"):
        made = pipeline.generate(requests[start : start + options.batch_size])
        pictures += [np.asarray(image.pixels) for image in made]
    return pictures


def evaluate(options: argparse.Namespace, paint: Paint) -> bool:
    """Paint every prompt, judge every picture, report; whether both bars are met."""
    if options.out is not None:
        make_folder(options.out)
    judge = Judge(load_sprites())
    tasks = acceptance_tasks()[: options.limit]
    pictures = paint([task.prompt for task in tasks], options)
    outcomes = judge_pictures(judge, tasks, pictures)
    summary = summarise(outcomes)
    print(as_table(summary))
    if options.out is not None:
        write_report(options, pictures, outcomes)
        print(f"written to {options.out}")
    return is_accepted(summary)


def as_table(summary: Dict[str, Dict[str, float]]) -> str:
    """The shares as a table in Markdown, as the README has it."""
    rows = [
        "| pairs | prompts | object right | among the first five | background right |",
        "| --- | --: | --: | --: | --: |",
    ]
    for side, shares in summary.items():
        percents = " | ".join(f"{100 * shares[name]:.1f} %" for name in ("object_top1", "object_top5", "background"))
        rows.append(f"| {side.replace('_', ' ')} | {shares['count']:.0f} | {percents} |")
    return "\n".join(rows)


def write_report(options: argparse.Namespace, pictures: Sequence[np.ndarray], outcomes: Sequence[Outcome]) -> None:
    """report.json and the two grids, each whole or absent."""
    labelled = [label(pixels, outcome) for pixels, outcome in zip(pictures, outcomes)]
    grid = labelled_sheet(labelled[:GRID_COUNT], per_row=GRID_PER_ROW)
    report = json.dumps(as_report(options, outcomes), indent=1) + "\n"
    write_atomically(options.out / "grid.png", encode_png(grid))
    write_atomically(options.out / "grid-all.png", encode_png(labelled_sheet(labelled, per_row=ALL_PER_ROW)))
    write_atomically(options.out / "report.json", report.encode())


def label(pixels: np.ndarray, outcome: Outcome) -> Labelled:
    """A picture with its prompt, and with what it was taken for where that is something else."""
    prompt, verdict = outcome.task.prompt, outcome.verdict
    if outcome.object_right() and outcome.background_right:
        return Labelled(pixels, prompt)
    colour = COLOUR_NAMES[verdict.colour_index]
    found = caption(OBJECT_NAMES[verdict.ranking[0]], colour) if verdict.ranking else f"plain {colour}"
    return Labelled(pixels, f"{prompt} (taken for {found})", wrong=True)


def as_report(options: argparse.Namespace, outcomes: Sequence[Outcome]) -> Dict[str, Any]:
    """All that was asked, found and counted, as plain values."""
    summary = summarise(outcomes)
    return {
        "model": options.model if options.ckpt is None else Path(options.ckpt).stem,
        "sampler": options.sampler,
        "steps": options.steps,
        "guidance_scale": options.scale,
        "precision": options.precision,
        "accepted": is_accepted(summary),
        "shares": summary,
        "pictures": [{"seed": seed, **describe(outcome)} for seed, outcome in enumerate(outcomes, options.seed)],
    }


def main(arguments: Optional[Sequence[str]] = None, paint: Paint = paint) -> int:
    """The exit code: 0 accepted, 1 not, 2 and up an error that the user can put right."""
    options = parse(arguments)
    try:
        return 0 if evaluate(options, paint) else 1
    except SdbatchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
