"""CLIP's byte-pair tokenizer from two local files, and where those files are looked for.

No torch in here: a login node counts the tokens of a prompts file with it. Nothing is ever fetched.
Equal to CLIPTokenizerFast and to the CLIPTokenizer of transformers 5. The slow CLIPTokenizer before that mends the text
with ftfy first, or, where ftfy is absent, strips accents and splits signs: "it's" gets other tokens there.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple

from ldm.errors import RequestError, WeightsError

log = logging.getLogger(__name__)

FILES = ("vocab.json", "merges.txt")
ENVIRONMENT_VARIABLE = "SDBATCH_CLIP"
DEFAULT_FOLDER = "models/clip-vit-large-patch14"
SHIPPED_FOLDER = "models/emoji-v1/tokenizer"
PROJECT_ROOT = Path(__file__).resolve().parents[3]

START, END = "<|startoftext|>", "<|endoftext|>"
# A special token spelled in any case, an English contraction, a run of letters, one digit, a run of any other signs.
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def find_tokenizer(
    asked: Optional[str] = None, *, version: Optional[str] = None, checkpoint: Optional[Path] = None
) -> Path:
    """The folder that holds vocab.json and merges.txt; `places` gives the order. WeightsError lists what was tried."""
    tried = places(asked, version=version, checkpoint=checkpoint)
    for origin, folder in tried:
        if all(os.path.isfile(folder / name) for name in FILES):
            log.debug("CLIP tokenizer from %s (%s)", folder, origin)
            return folder
    shown = "; ".join(f"{origin}: {folder}" for origin, folder in tried)
    raise WeightsError(
        f"no CLIP tokenizer: a folder with {' and '.join(FILES)} (two small files of openai/clip-vit-large-patch14) is "
        f"needed, looked in {shown}; copy them to {DEFAULT_FOLDER} or give --clip FOLDER"
    )


def places(asked: Optional[str], *, version: Optional[str], checkpoint: Optional[Path]) -> List[Tuple[str, Path]]:
    """Where `find_tokenizer` looks, in order, each place with what names it.

    1. --clip, 2. the variable SDBATCH_CLIP: a folder named so is the only one looked at, lest a slip go unseen;
    3. `version` of the YAML, 4. models/clip-vit-large-patch14, both from the working directory, then from the project
    root; 5. `tokenizer/` beside the checkpoint; 6. the copy of CLIP's own table that ships with the project.
    """
    if asked:
        return [("--clip", _at_home(asked))]
    from_environment = os.environ.get(ENVIRONMENT_VARIABLE)
    if from_environment:
        return [(ENVIRONMENT_VARIABLE, _at_home(from_environment))]
    found = [("version in the config", folder) for folder in _from_both_roots(version)] if version else []
    found += [("default", folder) for folder in _from_both_roots(DEFAULT_FOLDER)]
    if checkpoint is not None:
        found.append(("beside the checkpoint", Path(checkpoint).parent / "tokenizer"))
    return [*found, ("shipped", PROJECT_ROOT / SHIPPED_FOLDER)]


def _from_both_roots(folder: str) -> List[Path]:
    """The folder seen from the working directory and from the project root, once if they are the same."""
    return list(dict.fromkeys(root / _at_home(folder) for root in (Path.cwd(), PROJECT_ROOT)))


def _at_home(folder: str) -> Path:
    return Path(os.path.expanduser(folder))


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
    def size(self) -> int:
        """One more than the largest id that it gives."""
        return 1 + int(max(self._pairs.get_vocab().values()))

    @property
    def room(self) -> int:
        """How many tokens of text fit between start and end: 75 for SD v1."""
        return self.context - 2

    def encode(self, text: str) -> List[int]:
        """The token ids of the text alone: no start, no end, nothing cut off. RequestError where it is not Unicode."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            found = f"{text[error.start]!r} at character {error.start + 1}"
            raise RequestError(
                f"a prompt must be text that UTF-8 can write, found {found}; write it in UTF-8"
            ) from error
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
    """A `tokenizers.Tokenizer` over the two files, without start, end or padding. WeightsError if they are no such."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    missing = [name for name in FILES if not os.path.isfile(folder / name)]
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
