"""The shipped tokenizer files are what the script makes of CLIP's own table."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_shipped_files_come_out_byte_for_byte(tmp_path):
    package = importlib.util.find_spec("clip")
    table = Path(package.origin).parent / "bpe_simple_vocab_16e6.txt.gz" if package else Path("absent")
    if not table.is_file():
        pytest.skip("clip-anytorch is not installed")
    script = ROOT / "scripts/make_tokenizer.py"
    subprocess.run([sys.executable, str(script), str(table), str(tmp_path)], check=True)
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / name).read_bytes() == (ROOT / "models/emoji-v1/tokenizer" / name).read_bytes()
