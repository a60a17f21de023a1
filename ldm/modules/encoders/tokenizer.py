"""CLIP's byte-pair tokenizer from two local files, and where those files are looked for.

No torch in here: a login node counts the tokens of a prompts file with it. Nothing is ever fetched.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple

from ldm.errors import WeightsError

FILES = ("vocab.json", "merges.txt")
ENVIRONMENT_VARIABLE = "SDBATCH_CLIP"
DEFAULT_FOLDER = Path("models/clip-vit-large-patch14")
PROJECT_ROOT = Path(__file__).resolve().parents[3]

START, END = "<|startoftext|>", "<|endoftext|>"
# A special token spelled in any case, an English contraction, a run of letters, one digit, a run of any other signs.
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def find_tokenizer(
    asked: Optional[str] = None, *, version: Optional[str] = None, checkpoint: Optional[Path] = None
) -> Path:
    """The folder that holds vocab.json and merges.txt; see `places` for the order. WeightsError lists what was tried."""
    tried = places(asked, version=version, checkpoint=checkpoint)
    for _, folder in tried:
        if all((folder / name).is_file() for name in FILES):
            return folder
    shown = "; ".join(f"{origin}: {folder}" for origin, folder in tried)
    raise WeightsError(
        f"no CLIP tokenizer found: a folder with {' and '.join(FILES)} is needed (both are small files of "
        f"openai/clip-vit-large-patch14), looked in {shown}; copy them to ./{DEFAULT_FOLDER} or give --clip FOLDER"
    )


def places(asked: Optional[str], *, version: Optional[str], checkpoint: Optional[Path]) -> List[Tuple[str, Path]]:
    """What `find_tokenizer` looks at, first wins, each with where its name comes from.

    A folder named by --clip or by SDBATCH_CLIP is the only place looked at: a slip there must not pass for another's files.
    Then: `version` of the YAML when it is a folder, models/clip-vit-large-patch14, `tokenizer/` beside the checkpoint;
    relative names from the working directory, then from the project root.
    """
    if asked:
        return [("--clip", Path(asked).expanduser())]
    from_environment = os.environ.get(ENVIRONMENT_VARIABLE)
    if from_environment:
        return [(ENVIRONMENT_VARIABLE, Path(from_environment).expanduser())]
    found = [("version in the config", folder) for folder in _from_roots(Path(version or "")) if folder.is_dir()]
    found = found if version else []
    found += [("default", folder) for folder in _from_roots(DEFAULT_FOLDER)]
    if checkpoint is not None:
        found.append(("beside the checkpoint", Path(checkpoint).parent / "tokenizer"))
    return found


def _from_roots(folder: Path) -> List[Path]:
    """The folder seen from the working directory and from the project root, once if they are the same."""
    seen = [Path.cwd() / folder.expanduser(), PROJECT_ROOT / folder.expanduser()]
    return seen[:1] if seen[0] == seen[1] else seen


class ClipTokenizer:
    """Text to token ids as CLIP does it: NFC, blanks folded, lower case, words, byte pairs (Sennrich et al. 2016).

    Rows are `context` long: start, at most `room` tokens of text, then end up to the last place, which SD v1 pads with.
    """

    def __init__(self, folder: Path, *, context: int = 77) -> None:
        self.folder = Path(folder)
        self.context = context
        self._pairs = load_pairs(self.folder)
        self._start, self._end = (self._pairs.token_to_id(token) for token in (START, END))

    @property
    def room(self) -> int:
        """How many tokens of text fit between start and end: 75 for SD v1."""
        return self.context - 2

    def encode(self, text: str) -> List[int]:
        """The token ids of the text alone: no start, no end, nothing cut off."""
        ids: List[int] = self._pairs.encode(text, add_special_tokens=False).ids
        return ids

    def count(self, text: str) -> int:
        """How many tokens the text has; what exceeds `room` is cut off when the text is encoded for the model."""
        return len(self.encode(text))

    def rows(self, texts: Sequence[str]) -> List[List[int]]:
        """One row of `context` token ids a text."""
        return [self._row(self.encode(text)) for text in texts]

    def _row(self, ids: List[int]) -> List[int]:
        kept = [self._start, *ids[: self.room]]
        return kept + [self._end] * (self.context - len(kept))


def load_pairs(folder: Path) -> Any:
    """A `tokenizers.Tokenizer` over the two files, without start, end or padding. WeightsError names an unusable file."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise WeightsError(f"the CLIP tokenizer needs {' and '.join(FILES)}; {' and '.join(missing)} not in {folder}")
    vocab, merges = (str(folder / name) for name in FILES)
    try:
        pairs = models.BPE.from_file(vocab, merges, unk_token=END, end_of_word_suffix="</w>")
    except Exception as error:  # the package raises bare Exception for every kind of bad file
        raise WeightsError(
            f"{folder} does not hold a CLIP tokenizer: {error}; copy vocab.json and merges.txt anew"
        ) from error
    tokenizer = Tokenizer(pairs)
    if tokenizer.token_to_id(START) is None or tokenizer.token_to_id(END) is None:
        raise WeightsError(
            f"{vocab} must hold {START} and {END}: it is the vocabulary of another tokenizer than CLIP's"
        )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (START, END)])
    return tokenizer
