#!/usr/bin/env python3
"""Write vocab.json and merges.txt of CLIP's tokenizer from `bpe_simple_vocab_16e6.txt.gz`.

That table of merges (MIT licence, OpenAI) lies in the pip package clip-anytorch, in the folder `clip`:

    python scripts/make_tokenizer.py SITE_PACKAGES/clip/bpe_simple_vocab_16e6.txt.gz models/emoji-v1/tokenizer
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Dict, List

WORD_END = "</w>"
SPECIAL_TOKENS = ("<|startoftext|>", "<|endoftext|>")
VOCAB_SIZE = 49408


def byte_symbols() -> List[str]:
    """The 256 characters that stand for bytes: visible Latin-1 ones for themselves, the rest from U+0100 on."""
    visible = [chr(code) for first, last in ((33, 126), (161, 172), (174, 255)) for code in range(first, last + 1)]
    return visible + [chr(256 + number) for number in range(256 - len(visible))]


def read_merges(table: Path) -> List[str]:
    """The merges that CLIP uses, best first: as many as leave room for the bytes and the special tokens."""
    lines = gzip.decompress(table.read_bytes()).decode("utf-8").splitlines()[1:]
    return lines[: VOCAB_SIZE - 2 * 256 - len(SPECIAL_TOKENS)]


def make_vocab(merges: List[str]) -> Dict[str, int]:
    """Token to id: bytes, bytes that end a word, one token a merge, the special tokens last."""
    symbols = byte_symbols()
    tokens = symbols + [symbol + WORD_END for symbol in symbols]
    tokens += [merge.replace(" ", "") for merge in merges] + list(SPECIAL_TOKENS)
    return {token: number for number, token in enumerate(tokens)}


def main() -> None:
    """Read the command line and write the two files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="bpe_simple_vocab_16e6.txt.gz")
    parser.add_argument("folder", type=Path, help="where vocab.json and merges.txt are written")
    options = parser.parse_args()
    merges = read_merges(options.table)
    options.folder.mkdir(parents=True, exist_ok=True)
    vocab = json.dumps(make_vocab(merges), ensure_ascii=False, separators=(",", ":"))
    (options.folder / "vocab.json").write_text(vocab + "\n", encoding="utf-8")
    (options.folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
