#!/usr/bin/env python3
"""Paint pictures from words: the options, files and messages of CompVis's script, without its crashes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.inference.models import LAION_400M, read_shape
from ldm.modules.encoders.tokenizer import find_tokenizer
from scripts._options import OptionParser, Order, find_batches, find_checker, find_model, find_template
from scripts._run import leave, run

OUTDIR = "outputs/txt2img-samples"
SCALE = 7.5


def build_parser() -> OptionParser:
    """The options; what is not said of size is taken from the model."""
    parser = OptionParser("txt2img.py", "Paint pictures from words.", scale=SCALE)
    parser.picture.add_argument("--H", type=int, metavar="PX", help="height (default: the model's; 512)")
    parser.picture.add_argument("--W", type=int, metavar="PX", help="width (default: the model's; 512)")
    parser.model.add_argument("--laion400m", action="store_true", help=f"the older model: {LAION_400M.checkpoints[0]}")
    parser.set_defaults(outdir=OUTDIR, n_iter=2, n_samples=3)
    return parser


def settle(options: argparse.Namespace) -> Order:
    """Check everything that can be checked without the model."""
    if options.laion400m:
        print("Falling back to LAION 400M model...")
        options.outdir = f"{OUTDIR}-laion400m" if options.outdir == OUTDIR else options.outdir
    files = find_model(options)
    shape = read_shape(files.config)
    height, width = (shape.size if side is None else side for side in (options.H, options.W))
    scale = files.guidance_scale or SCALE
    template = find_template(options, shape, scale=scale, height=height, width=width)
    checker = find_checker(options.safety_checker, files.safety_checker)
    words = find_tokenizer(options.clip, version=shape.tokenizer, checkpoint=files.checkpoint)
    return Order(options, files, shape, words, checker, template, batches=find_batches(options))


if __name__ == "__main__":
    leave(run(build_parser(), settle))
