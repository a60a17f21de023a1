#!/usr/bin/env python3
"""Paint pictures from words and a picture: the options, files and messages of CompVis's script, without its crashes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.errors import RequestError
from ldm.inference.models import read_shape
from ldm.modules.encoders.tokenizer import find_tokenizer
from scripts._options import OptionParser, Order, find_batches, find_checker, find_model, find_template
from scripts._run import leave, run

SCALE = 5.0
SIDE_MULTIPLE = 32  # px, to which the original rounds the sides of the init image down


def build_parser() -> OptionParser:
    """The options; sizes are those of the init image."""
    parser = OptionParser("img2img.py", "Paint pictures from words and a picture.", scale=SCALE)
    parser.picture.add_argument("--init-img", required=True, metavar="FILE", help="the picture to start from")
    parser.picture.add_argument(
        "--strength", type=float, default=0.75, help="how little is kept of it, above 0 to 1 (default: %(default)s)"
    )
    parser.set_defaults(outdir="outputs/img2img-samples", n_iter=1, n_samples=2, laion400m=False)
    return parser


def settle(options: argparse.Namespace) -> Order:
    """Check everything that can be checked without the model."""
    from ldm.inference.digests import sha256_of
    from ldm.inference.images import read_picture, resize
    from ldm.inference.spec import InitImage

    files = find_model(options)
    shape = read_shape(files.config)
    path = Path(options.init_img)
    pixels = read_picture(path)
    multiple = max(SIDE_MULTIPLE, shape.size_multiple)  # both are powers of two
    height, width = (side - side % multiple for side in pixels.shape[:2])
    if not height or not width:
        raise RequestError(f"init image must have at least {multiple} px a side, {path} has {pixels.shape[1::-1]}")
    init = InitImage(path=str(path), sha256=sha256_of(path), strength=options.strength)
    scale = files.guidance_scale or SCALE
    template = find_template(options, shape, scale=scale, height=height, width=width, init=init)
    checker = find_checker(options.safety_checker, files.safety_checker)
    print(f"loaded input image of size ({pixels.shape[1]}, {pixels.shape[0]}) from {path}")
    fitted = resize(pixels, height=height, width=width)
    words = find_tokenizer(options.clip, version=shape.tokenizer, checkpoint=files.checkpoint)
    return Order(options, files, shape, words, checker, template, batches=find_batches(options), init=fitted)


if __name__ == "__main__":
    leave(run(build_parser(), settle))
