"""Train a model: `python scripts/train.py CONFIG.yaml [key=value ...] [--resume]`.

First the autoencoder, then the diffusion in its latents; a run that was stopped goes on with --resume.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ldm.errors import SdbatchError  # noqa: E402  # after the root is on the path


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path, help="a YAML such as configs/emoji/train-autoencoder.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that replace the YAML's")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in outdir")
    options = parser.parse_args()
    try:
        # Lightning and torch take seconds to import, --help must not.
        from ldm.training.run import train
        from ldm.training.spec import read_spec

        train(read_spec(options.config, options.overrides), ROOT, resume=options.resume)
    except SdbatchError as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return error.exit_code
    except ImportError as error:
        print(f"train.py: error: {error}; install the extra: pip install -e '.[train]'", file=sys.stderr)
        return SdbatchError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
